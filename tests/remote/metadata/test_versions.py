"""
A reader gets bytes of one version, the one that the source has by the rules of ``check``, and of nobody else's file.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import ondisk
import pytest
from http_store import http_store
from serving import wait_for

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from dogpile_filesystem.layout import VERSION  # noqa: E402 - after those that may be missing
from dogpile_filesystem.remote import SourceChanged  # noqa: E402
from dogpile_filesystem.remote.namespace import namespace_of  # noqa: E402

BLOCK = cached.BLOCK_SIZE
OLD = cached.noise(6 * BLOCK + 100, 1)
NEW = cached.noise(6 * BLOCK + 100, 2)


# When the source is asked


def test_always(make, source, clock):
    """With "always", each opening asks the source once, and gets the version that it has now."""
    fs = make()
    for content in (OLD, NEW, OLD[:1000], b""):
        source.write("a", content)
        clock.move(1)
        assert fs.cat_file("a") == content
    clock.move(1)
    source.asked()
    fs.cat_file("a")
    fs.cat_file("a")
    fs.open("a").close()
    assert source.asked() == source.asked("info") + 3 == 3


def test_pandas(make, source, clock):
    """A library that asks for a file three times and opens it twice makes one request for each opening."""
    source.write("a", OLD)
    fs = make()
    fs.cat_file("a")
    clock.move(1)
    source.asked()
    fs.info("a")
    fs.info("a")
    first = fs.open("a")
    fs.info("a")
    second = fs.open("a")
    assert first.read() == second.read() == OLD
    assert source.asked() == 2


def test_cold_opening(make, source):
    """To open and read a file that is not in the cache takes a look, a read, and a look behind it."""
    source.write("a", OLD[:BLOCK])
    assert make().cat_file("a") == OLD[:BLOCK]
    assert [each.kind for each in source.control.requests()] == ["info", "read", "info"]


def test_info_is_not_kept(make, source, clock):
    """What the source said of a file is told again for a tenth of a second, and then asked anew."""
    source.write("a", OLD)
    fs = make()
    assert fs.info("a")["size"] == len(OLD)
    source.write("a", OLD[:10])
    clock.move(0.09)
    assert fs.info("a")["size"] == len(OLD)
    clock.move(0.02)
    assert fs.info("a")["size"] == 10


def test_seconds(make, source, clock):
    """With seconds, the source is asked again when it was last asked longer ago, whichever process asked."""
    fs, other = make(check=60), make(check=60)
    source.write("a", OLD)
    assert fs.cat_file("a") == OLD
    source.write("a", NEW)
    source.asked()
    clock.move(59)
    assert fs.cat_file("a") == other.cat_file("a") == OLD
    assert other.info("a")["size"] == len(OLD)
    assert source.asked() == 0
    clock.move(2)
    assert other.cat_file("a") == NEW
    source.asked()
    clock.move(59)
    assert fs.cat_file("a") == NEW
    assert source.asked() == 0


def test_never(make, source, clock):
    """With "never", the source is asked once, also by processes that are started later."""
    source.write("a", OLD)
    assert make(check="never").cat_file("a") == OLD
    source.write("a", NEW)
    source.asked()
    clock.move(10**9)
    assert make(check="never").cat_file("a") == OLD
    assert source.asked() == 0
    assert make().cat_file("a") == NEW


def test_clock_that_was_wrong(make, source, clock):
    """A record from the future, by a clock that was wrong, is not believed until that time comes."""
    source.write("a", OLD)
    clock.move(10**6)
    assert make(check=60).cat_file("a") == OLD
    source.write("a", NEW)
    clock.move(-(10**6))
    fs = make(check=60)
    assert fs.cat_file("a") == NEW
    source.asked()
    clock.move(30)
    assert fs.cat_file("a") == NEW
    assert source.asked() == 0


def test_later_look_stays(make, source, clock, monkeypatch):
    """A process that asked earlier, and was slower, does not undo what another one found out meanwhile."""
    source.write("a", OLD)
    slow, fast = make(check=60), make(check=60)
    clock.move(1000)
    look = slow.source.look

    def slow_look(path):
        found = look(path)
        clock.move(1)
        source.write("a", NEW)
        assert fast.cat_file("a") == NEW
        return found

    monkeypatch.setattr(slow.source, "look", slow_look)
    assert slow.info("a")["size"] == len(OLD)
    source.asked()
    assert fast.cat_file("a") == NEW
    assert source.asked() == 0


def test_damaged_record(make, source):
    """A record that is damaged, or that another version of this package wrote, is as good as none."""
    source.write("a", OLD)
    fs = make(check="never")
    fs.cat_file("a")
    place = fs.versions._place("a")
    key = f"{place.url}\0{place.namespace}".encode()
    for payload in (b"", b"[]", b"{}", b'{"identity": 1}', b"\xff", b"[" * 100_000):
        assert fs.store.put(key, payload, VERSION)
        assert make(check="never").cat_file("a") == OLD
    assert json.loads(fs.store.get(key, VERSION))["size"] == len(OLD)


# Changes


@pytest.mark.parametrize(
    "content", [NEW, NEW[: 3 * BLOCK], NEW[:10], b"", NEW + NEW], ids=["rewrite", "shrink", "small", "empty", "grow"]
)
def test_change_before_anything_was_read(make, source, content):
    """A reader that has read nothing gets the version that the source has by then, whole."""
    source.write("a", OLD)
    fs = make()
    with fs.open("a") as file:
        source.write("a", content)
        assert file.read() == content
        assert file.size == len(content)
    with fs.open("a") as file:
        source.write("a", OLD)
        file.seek(BLOCK)
        assert file.read(10) == (OLD if content == b"" else content)[BLOCK : BLOCK + 10] or content[BLOCK:] == b""
    source.write("a", OLD)
    source.control.replace("a", content)
    assert fs.cat_file("a") == content


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("content", [NEW, NEW[: 3 * BLOCK], b"", NEW + NEW], ids=["rewrite", "shrink", "empty", "grow"])
def test_change_while_it_is_read(make, source, content, within):
    """A reader that has read something gets an error that says so, never bytes of another version."""
    source.write("a", OLD)
    fs = make()
    with fs.open("a") as file:
        assert file.read(10) == OLD[:10]
        source.control.replace("a", content, within=within)
        file.seek(4 * BLOCK)
        with pytest.raises(SourceChanged, match="open it again"):
            file.read(10)
    assert fs.cat_file("a") == content


def test_what_is_known_binds(make, source):
    """Whoever has learned the size or the identity of a version gets that version, or an error."""
    uses = [
        lambda file: file.size,
        lambda file: file.identity,
        lambda file: file.details,
        lambda file: file.seek(0, os.SEEK_END),
        hash,
        lambda file: file.read(1),
    ]
    fs = make()
    for use in uses:
        source.write("a", OLD)
        with fs.open("a") as file:
            use(file)
            source.write("a", NEW)
            file.seek(5 * BLOCK)
            with pytest.raises(SourceChanged):
                file.read(10)
        fs.forget("a")


def test_vanished_while_it_is_read(make, source):
    """A file that is removed while it is read raises what the source raises; what is cached of it is still read."""
    source.write("a", OLD)
    fs = make()
    with fs.open("a") as file:
        assert file.read(BLOCK) == OLD[:BLOCK]
        (source.root / "a").unlink()
        file.seek(0)
        assert file.read(10) == OLD[:10]
        file.seek(3 * BLOCK)
        with pytest.raises(FileNotFoundError):
            file.read(10)
    with pytest.raises(FileNotFoundError):
        fs.open("a")


def test_became_a_directory(make, source):
    """A file in whose place there is a directory by now is no empty file."""
    source.write("a", OLD)
    with make().open("a") as file:
        (source.root / "a").unlink()
        (source.root / "a").mkdir()
        with pytest.raises(OSError, match="directory"):
            file.read()


def test_length_is_hidden_meanwhile(make, source):
    """A file that is read differently by now is no empty file."""
    source.write("a", OLD)
    with make().open("a") as file:
        source.write("a", NEW)
        source.control.hide_length()
        with pytest.raises(SourceChanged):
            file.read()


def test_identity_is_hidden_meanwhile(make, source):
    """A source that no longer tells the version cannot vouch for the bytes, so that they are not taken for it."""
    source.write("a", OLD)
    with make().open("a") as file:
        assert file.read(10) == OLD[:10]
        source.control.hide_identity()
        file.seek(5 * BLOCK)
        with pytest.raises(SourceChanged):
            file.read(10)


def test_ranges_are_of_one_version(make, source):
    """All ranges of one call are of one version, also if the file is changed in between."""
    source.write("a", OLD)
    fs = make()
    fs.cat_file("a", 0, 10)
    source.control.replace("a", NEW)
    # The first range is in the cache, the second is not.
    assert fs.cat_ranges(["a", "a"], [0, 4 * BLOCK], [10, 4 * BLOCK + 10]) == [
        NEW[:10],
        NEW[4 * BLOCK : 4 * BLOCK + 10],
    ]


def test_always_changing(make, source):
    """A file that is changed whenever it is read raises an error in the end."""
    source.write("a", OLD)
    fs = make()
    for number in range(20):
        source.control.replace("a", cached.noise(BLOCK, number))
    with pytest.raises(SourceChanged):
        fs.cat_file("a")
    source.write("a", OLD)
    with pytest.raises(SourceChanged), fs.open("a") as file:
        file.read()


def test_cut_short(make, source):
    """An answer that is too short is never taken for the file."""
    source.write("a", OLD)
    fs = make()
    source.control.cut(1)
    with pytest.raises(SourceChanged):
        fs.cat_file("a")
    source.control.forget_orders()
    assert fs.cat_file("a") == OLD


def test_blocks_of_the_version_before_are_removed(make, source, clock, fs):
    """When the source has a new version, the blocks of the one before leave the cache."""
    source.write("a", OLD)
    source.write("b", OLD)
    fs.cat_file("a")
    fs.cat_file("b")
    # 7 blocks and a record each.
    assert fs.stats().entries == 16
    source.write("a", NEW[:10])
    clock.move(1)
    assert fs.cat_file("a", 0, 1) == NEW[:1]
    assert fs.stats().entries == 10
    assert fs.stats().process.source.open_outdated == 1
    source.asked()
    assert fs.cat_file("b") == OLD
    assert source.asked("read") == 0


def test_many_blocks_of_the_version_before(make, source, clock, fs):
    """The blocks of a large file are removed too, a little later."""
    source.write("a", bytes(100 * BLOCK))
    fs.cat_file("a")
    assert fs.stats().entries == 101
    source.write("a", b"new")
    clock.move(1)
    assert fs.cat_file("a") == b"new"
    wait_for(lambda: fs.stats().entries == 2)


# What a source does not tell


def test_unsettled(make, tmp_path, clock):
    """A file changed in the last second, by a time in whole seconds, is read but not kept; later it is kept."""
    source = cached.Files(tmp_path, identity="second")
    fs = make(source)
    source.write("a", OLD, changed=clock.now - 1)
    assert fs.cat_file("a") == OLD
    assert fs.cat_file("a") == OLD
    assert (fs.stats().entries, fs.stats().process.source.source_bytes) == (0, 2 * len(OLD))
    # Another content, of which the source tells the same.
    source.write("a", NEW, changed=clock.now - 1)
    assert fs.cat_file("a") == NEW
    clock.move(5)
    assert fs.cat_file("a") == fs.cat_file("a") == NEW
    assert (fs.stats().entries, fs.stats().process.source.source_bytes) == (8, 4 * len(OLD))


def test_slow_answer(make, tmp_path, clock, monkeypatch):
    """Whether a version is settled is a matter of when the source was asked, not of when it answered."""
    source = cached.Files(tmp_path, identity="second")
    fs = make(source)
    source.write("a", OLD, changed=clock.now - 1)
    info = fs.fs.info

    def slow_info(path):
        found = info(path)
        clock.move(10)
        return found

    monkeypatch.setattr(fs.fs, "info", slow_info)
    fs.cat_file("a", 0, 10)
    assert fs.stats().entries == 0


def test_unsettled_replaces_the_version_before(make, tmp_path, clock):
    """A version that is not settled yet replaces the one before: that is counted once, and nothing is left."""
    source = cached.Files(tmp_path, identity="second")
    fs = make(source)
    source.write("a", OLD, changed=clock.now - 100)
    fs.cat_file("a")
    assert fs.stats().entries == 8
    source.write("a", NEW, changed=clock.now)
    for _ in range(3):
        clock.move(0.3)
        assert fs.cat_file("a") == NEW
    assert (fs.stats().entries, fs.stats().process.source.open_outdated) == (0, 1)


def test_local_files_settle(make, tmp_path, base_dir):
    """A local file that has just been written is kept at once: the source waits until a change would be seen."""
    (tmp_path / "a").write_bytes(OLD)
    fs = fsspec.filesystem("dogpile", target_protocol="file", base_dir=base_dir, skip_instance_cache=True)
    assert fs.cat_file(str(tmp_path / "a")) == OLD
    assert fs.stats().process.source.source_bytes == len(OLD)
    assert fs.cat_file(str(tmp_path / "a")) == OLD
    assert fs.stats().process.source.source_bytes == len(OLD)
    times = os.stat(tmp_path / "a")
    (tmp_path / "a").write_bytes(NEW)
    os.utime(tmp_path / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    fs.versions._looks.clear()
    assert fs.cat_file(str(tmp_path / "a")) == NEW


def test_no_identity_with_always(make, tmp_path):
    """A file whose source tells no version is not cached with "always"."""
    source = cached.Files(tmp_path, identity="none")
    fs = make(source)
    source.write("a", OLD)
    assert fs.cat_file("a") == OLD
    assert fs.open("a").read() == OLD
    assert fs.cat_file("a", 5, 10) == OLD[5:10]
    assert fs.stats().entries == 0
    source.write("a", NEW)
    assert fs.cat_file("a") == NEW


def test_no_identity_with_seconds(make, tmp_path, clock):
    """A file whose source tells no version is cached for as many seconds as the user says, and not longer."""
    source = cached.Files(tmp_path, identity="none")
    fs = make(source, check=60)
    source.write("a", OLD)
    assert fs.cat_file("a") == OLD
    source.write("a", NEW)
    source.asked()
    clock.move(59)
    assert fs.cat_file("a") == OLD
    assert source.asked() == 0
    clock.move(2)
    assert fs.cat_file("a") == NEW
    # Another filesystem, which asks always, does not take what is there for outdated.
    assert make(source).cat_file("a") == NEW
    source.asked()
    assert fs.cat_file("a") == NEW
    assert source.asked("read") == 0


# While the source fails


def test_stale_if_error(make, source, clock, caplog):
    """While the source fails, the last known version is served if that was asked for; it is counted and logged."""
    source.write("a", OLD)
    strict, fs = make(), make(stale_if_error=True)
    strict.cat_file("a")
    clock.move(1)
    source.control.fail("EIO")
    with pytest.raises(OSError, match="Input/output"):
        strict.cat_file("a")
    assert fs.cat_file("a") == OLD
    assert fs.info("a")["size"] == len(OLD)
    assert fs.stats().process.source.stale_served == 2
    assert "serve the last known version of slow://a" in caplog.text
    source.control.forget_orders()
    source.write("a", NEW)
    assert fs.cat_file("a") == NEW


@pytest.mark.parametrize("error", ["ETIMEDOUT", "ConnectionError", "RuntimeError"])
def test_stale_whatever_fails(make, source, clock, error):
    """Whatever a broken source raises, the last known version is served."""
    source.write("a", OLD)
    fs = make(stale_if_error=True)
    fs.cat_file("a")
    clock.move(1)
    source.control.fail(error)
    assert fs.cat_file("a") == OLD


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_missing_and_denied_are_raised(make, source, clock, error):
    """That a file is missing or denied is no failure of the source: it is raised."""
    source.write("a", OLD)
    fs = make(stale_if_error=True)
    fs.cat_file("a")
    clock.move(1)
    source.control.fail(error.__name__)
    with pytest.raises(error):
        fs.cat_file("a")
    assert fs.stats().process.source.stale_served == 0


def test_stale_without_a_version(make, source, clock):
    """Where no version is known, or a block of it is missing, the error of the source is raised."""
    source.write("a", OLD)
    source.write("b", OLD)
    fs = make(stale_if_error=True)
    fs.cat_file("a", 0, 10)
    clock.move(1)
    source.control.fail("EIO")
    assert fs.cat_file("a", 0, 10) == OLD[:10]
    for arguments in (("a",), ("a", 5 * BLOCK, 5 * BLOCK + 1), ("b",)):
        with pytest.raises(OSError, match="Input/output"):
            fs.cat_file(*arguments)


# Whose file it is


def test_other_credentials(make, tmp_path):
    """Filesystems whose options differ share nothing, unless they have a namespace in common."""
    ours, theirs = cached.Files(tmp_path, token="our-secret"), cached.Files(tmp_path, token="their-secret")
    ours.write("a", OLD[:BLOCK])
    assert make(ours).cat_file("a") == OLD[:BLOCK]
    ours.asked("read")
    assert make(theirs).cat_file("a") == OLD[:BLOCK]
    assert ours.asked("read") == 1
    assert make(ours).cat_file("a") == OLD[:BLOCK]
    assert ours.asked("read") == 0
    assert make(ours, namespace="both").cat_file("a") == OLD[:BLOCK]
    assert ours.asked("read") == 1
    assert make(theirs, namespace="both").cat_file("a") == OLD[:BLOCK]
    assert ours.asked("read") == 0


def test_denied_to_others(make, tmp_path):
    """A reader whom the source refuses gets nothing of what another one has cached, with any check."""
    ours, theirs = cached.Files(tmp_path, token="our-secret"), cached.Files(tmp_path, token="their-secret")
    ours.write("a", OLD)
    for check in ("always", 60, "never"):
        make(ours, check=check).cat_file("a")
    ours.control.fail("PermissionError")
    for check in ("always", 60, "never"):
        with pytest.raises(PermissionError):
            make(theirs, check=check, stale_if_error=True).cat_file("a")


class Key:
    """Credentials that are an object."""

    def __init__(self, secret):
        self.secret = secret


class Hidden(str):
    """Credentials that do not show."""

    __slots__ = ()

    def __repr__(self):
        return "'***'"


def test_credentials_that_do_not_show():
    """Options are told by what they are, also if they are printed as asterisks."""

    def of(key):
        return namespace_of(fsspec.filesystem("memory", skip_instance_cache=True, key=key))

    assert of(Hidden("ours")) != of(Hidden("theirs"))
    assert of(Hidden("ours")) == of("ours")


def test_credentials_that_are_objects():
    """Options that are objects are told by what they are, not by where they lie in memory."""

    def of(**options):
        return namespace_of(fsspec.filesystem("memory", skip_instance_cache=True, **options))

    assert of(key=Key("a")) == of(key=Key("a")) != of(key=Key("b"))
    # It cannot be pickled: it is another one each time.
    lock = threading.Lock()
    assert of(key=lock) != of(key=lock)
    assert of(a=1, b=[1, {"c": None}]) == of(b=(1, {"c": None}), a=1) != of(a=1, b=[1, {"c": 0}])
    assert of(key={"a", "b"}) == of(key={"b", "a"}) != of(key={"a"})
    inner = fsspec.filesystem("dir", path="/x", fs=fsspec.filesystem("memory"), skip_instance_cache=True)
    other = fsspec.filesystem("dir", path="/x", fs=fsspec.filesystem("file"), skip_instance_cache=True)
    assert namespace_of(inner) == namespace_of(inner) != namespace_of(other)


def test_secrets_are_not_on_disk(make, tmp_path, base_dir):
    """No secret of the source's options lies in the cache."""
    source = cached.Files(tmp_path, token="our-secret")
    source.write("a", OLD)
    make(source).cat_file("a")
    found = b"".join(Path(path).read_bytes() for path in ondisk.files(base_dir))
    assert b"slow://a" in found
    assert b"our-secret" not in found


def test_signed_urls(tmp_path, base_dir):
    """URLs that differ only in a signature share nothing, unless there is a namespace; no signature lies on disk."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(OLD)

    def make(**arguments):
        return fsspec.filesystem(
            "dogpile", target_protocol="http", base_dir=base_dir, check="never", skip_instance_cache=True, **arguments
        )

    with http_store(tmp_path / "files") as http:
        ours, theirs, other = (f"{http.url}/a?{query}" for query in ("x=1&sig=OURS", "x=1&sig=THEIRS", "x=2&sig=OURS"))
        assert make().cat_file(ours) == OLD
        http.forget()
        assert make().cat_file(ours) == OLD
        assert http.sent() == 0
        assert make().cat_file(theirs) == OLD
        assert http.sent() == len(OLD)
        assert make(namespace="all").cat_file(ours) == OLD
        http.forget()
        assert make(namespace="all").cat_file(theirs) == OLD
        assert http.answered() == []
        assert make(namespace="all").cat_file(other) == OLD
        assert http.sent() == len(OLD)
        fs = make()
        fs.forget(ours)
        http.forget()
        assert fs.cat_file(theirs) == OLD
        assert http.answered() == []
    found = b"".join(Path(path).read_bytes() for path in ondisk.files(base_dir))
    assert b"/a?x=1" in found
    assert not [secret for secret in (b"OURS", b"THEIRS") if secret in found]


def test_names_with_nul(base_dir):
    """A name with a NUL character, and one that looks like it in a URL, are two files."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    fs = fsspec.filesystem(
        "dogpile", fs=memory, base_dir=base_dir, namespace="n", check="never", skip_instance_cache=True
    )
    memory.pipe_file("/x\0y", b"one")
    memory.pipe_file("/x%00y", b"two")
    assert (fs.cat_file("/x\0y"), fs.cat_file("/x%00y")) == (b"one", b"two")
    memory.store.clear()
