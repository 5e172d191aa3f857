"""
Pollers of real storage servers: the same table as for local directories on S3, and what SFTP and HTTP cannot tell.
"""

from __future__ import annotations

import json
import os

import pytest
from polling import reported
from situations import BY_NAME, SITUATIONS
from store_tree import StoreTree

from dogpile_filesystem.poller import PollerUnavailable, StorePoller, make_poller

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("cached")  # It registers the protocol, if the package is not installed.

IN_STORES = [situation.name for situation in SITUATIONS if not situation.is_local]
both = pytest.mark.parametrize("recurse", [False, True], ids=["flat", "deep"])


@pytest.fixture
def watch():
    """
    Makes pollers, which are closed at the end.
    """
    made = []

    def make(url, **options):
        made.append(make_poller(url, **options))
        return made[-1]

    yield make
    for poller in made:
        poller.close()


@pytest.fixture
def somebody(s3):
    """
    The bucket as somebody else has it, who remembers no listing.
    """
    return fsspec.filesystem("s3", **s3.options, use_listings_cache=False, skip_instance_cache=True)


# S3


@both
@pytest.mark.parametrize("name", IN_STORES)
def test_s3(s3, somebody, watch, name, recurse):
    """Each step is reported once, and nothing else."""
    tree = StoreTree(somebody, f"{s3.root}/place")
    url = f"s3://{tree.root}"
    for start in BY_NAME[name].start:
        tree.write(start)
    poller = watch(url, recurse=recurse, storage_options=s3.options)
    assert reported(poller, url) == {}
    for step in BY_NAME[name].steps:
        step.act(tree)
        assert reported(poller, url) == step.expected(recurse)
    assert reported(poller, url) == {}


@both
def test_s3_buckets(s3, somebody, watch, recurse):
    """A bucket that is emptied has all deleted; one that is gone is an error, and nothing is deleted."""
    url = f"s3://{s3.root}"
    somebody.pipe({f"{s3.root}/{number:04}": b"%d" % number for number in range(1050)})
    poller = watch(url, recurse=recurse, existing=True, storage_options=s3.options)
    assert len(poller.get_new_events()) == 1050  # More than a page has.
    assert poller.get_new_events() == []
    somebody.rm(s3.root, recursive=True)
    with pytest.raises(PollerUnavailable):
        poller.get_new_events()
    somebody.mkdir(s3.root)
    assert set(reported(poller, url).values()) == {"deleted"}


def test_s3_through_the_cache(s3, somebody, watch, cached):
    """A poller of a chained URL looks at the source, and what it reports is dropped from the cache."""
    fs = cached(s3, check="never")
    poller = watch(f"dogpile::s3://{s3.root}", fs=fs, recurse=True, existing=True)
    fs.watch(poller)
    somebody.pipe_file(f"{s3.root}/d/a", b"old")
    assert fs.poll() == [(f"dogpile::s3://{s3.root}/d/a", "created")]
    assert fs.cat_file(f"{s3.root}/d/a") == b"old"
    somebody.pipe_file(f"{s3.root}/d/a", b"new")
    assert fs.cat_file(f"{s3.root}/d/a") == b"old"
    assert fs.poll() == [(f"dogpile::s3://{s3.root}/d/a", "modified")]
    assert fs.cat_file(f"{s3.root}/d/a") == b"new"


def test_s3_known_versions(s3, somebody, watch, cached):
    """What was cached before a poller's first look stays cached if it is the version that the listing tells."""
    fs = cached(s3, check="never")
    somebody.pipe_file(f"{s3.root}/a", b"old")
    assert fs.cat_file(f"{s3.root}/a") == b"old"
    fs.watch(watch(f"s3://{s3.root}", existing=True, storage_options=s3.options))
    assert len(fs.poll()) == 1
    before = fs.stats().process.source.requests
    assert fs.cat_file(f"{s3.root}/a") == b"old"
    assert fs.stats().process.source.requests == before


FORKING = """
    import json, os, sys
    from dogpile_filesystem.poller import make_poller

    _, bucket, state, options = sys.argv
    poller = make_poller(f"s3://{bucket}", state=state, storage_options=json.loads(options))
    assert poller.get_new_events() == []
    poller.fs.pipe_file(f"{bucket}/a", b"1")
    if os.fork() == 0:
        print([event for _, event in poller.get_new_events()], flush=True)
        poller.close()
        os._exit(0)
    os.wait()
    print(poller.get_new_events(), flush=True)
"""


def test_s3_after_a_fork(s3, spawn, tmp_path):
    """A child of fork looks with connections of its own, and what it acknowledges its parent does not get."""
    process = spawn(FORKING, s3.root, tmp_path / "state", json.dumps(s3.options))
    assert process.communicate()[0] == "['created']\n[]\n"


# SFTP


def test_sftp(sftp, watch, clock):
    """A file is reported once no other change can have the same second; links are what they are."""
    url = f"sftp://{sftp.options['host']}{sftp.root}"

    def write(name, seconds_ago, data="data"):
        with open(f"{sftp.root}/{name}", "w") as file:
            file.write(data)
        os.utime(f"{sftp.root}/{name}", (clock.now - seconds_ago,) * 2)

    clock.now = float(int(clock.now))
    os.makedirs(f"{sftp.root}/d")
    write("d/a", 60)
    os.symlink("..", f"{sftp.root}/d/loop")
    options = {name: value for name, value in sftp.options.items() if name != "host"}
    poller = watch(url, recurse=True, clock=clock, storage_options=options)
    assert poller.get_new_events() == []
    write("d/a", 30)
    write("d/b", 0)
    assert poller.get_new_events() == [(f"{url}/d/a", "modified")]
    clock.move(3)
    assert poller.get_new_events() == [(f"{url}/d/b", "created")]
    os.unlink(f"{sftp.root}/d/a")
    assert poller.get_new_events() == [(f"{url}/d/a", "deleted")]
    os.rename(sftp.root, f"{sftp.root}-away")
    with pytest.raises(PollerUnavailable):
        poller.get_new_events()
    os.rename(f"{sftp.root}-away", sftp.root)


# HTTP


def test_http(http, watch):
    """Files of a server of pages are told apart by their etags, in all directories."""
    (http.directory / "d").mkdir()
    (http.directory / "d" / "a").write_bytes(b"old")
    poller = watch(f"{http.url}/", recurse=True)
    assert poller.get_new_events() == []
    (http.directory / "d" / "a").write_bytes(b"newer")
    (http.directory / "new file").write_bytes(b"")
    assert dict(poller.get_new_events()) == {f"{http.url}/d/a": "modified", f"{http.url}/new%20file": "created"}
    (http.directory / "d" / "a").unlink()
    assert poller.get_new_events() == [(f"{http.url}/d/a", "deleted")]
    assert poller.get_new_events() == []


def test_bare_http(http, watch):
    """A server that tells nothing of its files has them created and deleted, and ``contents=False`` asks for none."""
    (http.directory / "a").write_bytes(b"old")
    http.bare()
    poller = watch(http.url, contents=False)
    assert poller.get_new_events() == []
    http.forget()
    (http.directory / "a").write_bytes(b"new")
    (http.directory / "b").write_bytes(b"new")
    assert poller.get_new_events() == [(f"{http.url}/b", "created")]
    assert {each.path for each in http.answered()} == {"/"}


def test_http_outage(http, watch):
    """A server that is down is an error, and nothing is deleted."""
    (http.directory / "a").write_bytes(b"old")
    poller = watch(http.url)
    assert poller.get_new_events() == []
    http.stop()
    with pytest.raises(PollerUnavailable):
        poller.get_new_events()
    assert poller.stats().pending == 0


def test_http_broken_off(http, watch, monkeypatch):
    """Where a single file cannot be asked for, for want of an answer, nothing is known; a denied one stays as it is."""
    for name in ("a", "b"):
        (http.directory / name).write_bytes(b"old")
    poller = watch(http.url)
    assert isinstance(poller, StorePoller)
    assert poller.get_new_events() == []
    whole = poller.fs.info

    class Answer(Exception):
        def __init__(self, status):
            self.status = status

    def info(status):
        def asked(url):
            if url.endswith("a"):
                raise FileNotFoundError(url) from Answer(status)
            return whole(url)

        return asked

    monkeypatch.setattr(poller.fs, "info", info(503))
    with pytest.raises(PollerUnavailable):
        poller.get_new_events()
    monkeypatch.setattr(poller.fs, "info", info(403))
    assert poller.get_new_events() == []
    assert poller.stats().skipped == 1
    monkeypatch.setattr(poller.fs, "info", info(404))
    assert poller.get_new_events() == [(f"{http.url}/a", "deleted")]
