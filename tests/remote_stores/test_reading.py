"""
Reading from real storage servers through the cache: S3, SFTP and HTTP.
"""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")
from dogpile_filesystem.remote import SourceChanged  # noqa: E402 - the extra fsspec

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(3 * MIB + 5)
OTHER = random.Random(2).randbytes(len(CONTENT))


class Stored:
    """
    A file at a store, which is written past the cache.

    :ivar path: of the file.
    """

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.path = f"{storage.root}/files/b.bin"
        self._seconds = itertools.count(1_000_000_000)

    def write(self, content: bytes) -> None:
        """Write a version of the file that is old enough to be kept, and is told from those before."""
        if self.storage.protocol == "s3":
            fsspec.filesystem("s3", **self.storage.options, skip_instance_cache=True).pipe_file(self.path, content)
        else:
            local = self.local()
            os.makedirs(os.path.dirname(local), exist_ok=True)
            with open(local, "wb") as file:
                file.write(content)
            second = next(self._seconds)
            os.utime(local, (second, second))

    def local(self) -> str:
        """Where the file lies on this machine."""
        directory = self.storage.directory if self.storage.protocol == "http" else self.storage.root
        return f"{directory}/files/b.bin"

    def remove(self) -> None:
        if self.storage.protocol == "s3":
            fsspec.filesystem("s3", **self.storage.options, skip_instance_cache=True).rm(self.path)
        else:
            os.unlink(self.local())


@pytest.fixture(params=["s3", "sftp", "http"])
def stored(request):
    """
    A file at each of the stores.
    """
    stored = Stored(request.getfixturevalue(request.param))
    stored.write(CONTENT)
    return stored


def read_in_every_way(fs, path, directory):
    """The file by each call that reads it whole, and parts of it by each call that reads parts."""
    with fs.open(path) as file:
        opened = b"".join(iter(lambda: file.read(100_000), b""))
    with fs.open(path) as file:
        end = file.seek(-9, os.SEEK_END)
        tail = file.read()
        file.seek(MIB - 2)
        across = file.read(4)
    fs.get(path, f"{directory}/copy")
    with open(f"{directory}/copy", "rb") as file:
        copied = file.read()
    whole = [opened, copied, fs.cat(path), fs.cat_file(path)]
    parts = [
        (tail, CONTENT[end:]),
        (across, CONTENT[MIB - 2 : MIB + 2]),
        (fs.cat_file(path, start=-100, end=-50), CONTENT[-100:-50]),
        (fs.head(path, 10), CONTENT[:10]),
        (fs.tail(path, 10), CONTENT[-10:]),
        (fs.read_block(path, 3, 10), CONTENT[3:13]),
        *zip(
            fs.cat_ranges([path] * 3, [0, 5, MIB - 1], [10, 100, 2 * MIB]),
            [CONTENT[:10], CONTENT[5:100], CONTENT[MIB - 1 : 2 * MIB]],
            strict=True,
        ),
    ]
    return whole, parts


def test_reading(stored, cached, tmp_path):
    """Every way to read gives the file's bytes; they come from the source once, and are looked up at each opening."""
    first, second = cached(stored.storage), cached(stored.storage)
    for fs in (first, second):
        whole, parts = read_in_every_way(fs, stored.path, tmp_path)
        assert [content == CONTENT for content in whole] == [True] * 4
        assert [found == expected for found, expected in parts] == [True] * 9
    assert first.stats().process.source.source_bytes == len(CONTENT)
    # Ten calls; cat_ranges looks the file up once, and get and head need not ask for what was told a moment ago.
    assert second.stats().process.source.source_bytes == 0
    assert second.stats().process.source.requests <= 11


def test_never_looked_up_again(stored, cached):
    """With check="never", the source gets no request for what is there, not even from another process."""
    assert cached(stored.storage, check="never").cat_file(stored.path) == CONTENT
    fs = cached(stored.storage, check="never")
    with fs.open(stored.path) as file:
        assert file.read() == CONTENT
    assert fs.info(stored.path)["size"] == len(CONTENT)
    assert fs.stats().process.source.requests == 0


def test_rewritten(stored, cached):
    """A rewrite with the same size is seen at the next opening, and the blocks of the old version are gone."""
    fs = cached(stored.storage)
    assert fs.cat_file(stored.path) == CONTENT
    entries = fs.stats().entries
    stored.write(OTHER)
    assert fs.cat_file(stored.path) == OTHER
    with fs.open(stored.path) as file:
        assert file.read() == OTHER
    source = fs.stats().process.source
    assert (source.open_outdated, source.source_bytes, fs.stats().entries) == (1, 2 * len(CONTENT), entries)


def test_changed_while_it_is_read(stored, cached):
    """A reader of a file that changes gets bytes of the version it has opened, or an error; never a mix."""
    fs = cached(stored.storage)
    with fs.open(stored.path) as file:
        assert file.read(MIB) == CONTENT[:MIB]
        stored.write(OTHER)
        with pytest.raises(SourceChanged, match="open it again"):
            file.read()
        file.seek(0)
        assert file.read(MIB) == CONTENT[:MIB]
    assert fs.cat_file(stored.path) == OTHER


def test_removed(stored, cached):
    """A file that is removed is gone at the next opening, and there again when it is written again."""
    fs = cached(stored.storage)
    assert fs.cat_file(stored.path) == CONTENT
    stored.remove()
    for read in (fs.cat_file, fs.open, fs.info):
        with pytest.raises(FileNotFoundError):
            read(stored.path)
    assert not fs.exists(stored.path)
    stored.write(OTHER)
    assert fs.cat_file(stored.path) == OTHER


def test_listings(stored, cached):
    """Listings, patterns and what is told of a file are the source's own."""
    fs = cached(stored.storage)
    source = fsspec.filesystem(stored.storage.protocol, **stored.storage.options)
    directory = os.path.dirname(stored.path)
    for look in (
        lambda fs: fs.ls(directory, detail=False),
        lambda fs: fs.find(directory),
        lambda fs: fs.glob(f"{directory}/*.bin"),
        lambda fs: [(root, sorted(dirs), sorted(files)) for root, dirs, files in fs.walk(directory)],
        lambda fs: (fs.exists(stored.path), fs.isfile(stored.path), fs.size(stored.path)),
        lambda fs: [fs.info(stored.path)[name] for name in ("name", "size", "type")],
    ):
        assert look(fs) == look(source)


@pytest.mark.parametrize("name", ["s3", "sftp"])
def test_writing(name, request, cached):
    """What is written, moved or removed through the cache is so at the source, and read as it is there."""
    storage = request.getfixturevalue(name)
    path, moved = f"{storage.root}/b.bin", f"{storage.root}/moved.bin"
    fs, source = cached(storage), fsspec.filesystem(storage.protocol, **storage.options)

    def both():
        source.invalidate_cache()
        return fs.cat_file(path), source.cat_file(path)

    fs.pipe_file(path, b"first")
    assert both() == (b"first", b"first")
    with fs.open(path, "wb") as file:
        file.write(b"other")
    assert both() == (b"other", b"other")
    fs.mv(path, moved)
    assert fs.cat_file(moved) == b"other"
    assert not fs.exists(path)
    fs.rm(moved)
    with pytest.raises(FileNotFoundError):
        fs.cat_file(moved)


def test_one_url(stored, cached, base_dir):
    """A URL with the protocol in front of the source's reads the file, and writes its text."""
    protocol = stored.storage.protocol
    url = stored.path if protocol == "http" else f"{protocol}://{stored.path}"
    options = {"dogpile": {"base_dir": base_dir}, protocol: stored.storage.options}
    with fsspec.open(f"dogpile::{url}", **options) as file:
        assert file.read() == CONTENT
    stored.write(b"one\ntwo\n")
    with fsspec.open(f"dogpile::{url}", "rt", **options) as file:
        assert list(file) == ["one\n", "two\n"]


def test_versions_of_s3(s3, cached):
    """Each version of an object that a bucket keeps is a file of its own."""
    boto3 = pytest.importorskip("boto3")
    key, secret, endpoint = (s3.options[name] for name in ("key", "secret", "endpoint_url"))
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
    )
    client.put_bucket_versioning(Bucket=s3.root, VersioningConfiguration={"Status": "Enabled"})
    made = [client.put_object(Bucket=s3.root, Key="k", Body=body)["VersionId"] for body in (b"one", b"two")]
    storage = s3._replace(options={**s3.options, "version_aware": True})
    for _ in range(2):
        fs = cached(storage)
        found = [fs.cat_file(f"{s3.root}/k?versionId={version}") for version in made]
        assert [*found, fs.cat_file(f"{s3.root}/k")] == [b"one", b"two", b"two"]
    assert fs.stats().process.source.source_bytes == 0


def test_just_written_to_sftp(sftp, cached):
    """A file that was changed in this second is read, but not kept: the server tells times in seconds."""
    stored = Stored(sftp)
    stored.write(CONTENT)
    # Ahead of every clock, so that the second never ends while the test runs.
    os.utime(stored.local(), (4_000_000_000, 4_000_000_000))
    fs = cached(sftp)
    for _ in range(2):
        assert fs.cat_file(stored.path) == CONTENT
    assert fs.stats().entries == 0


#: What an HTTP server may do with a request: honour ranges, tell an etag, a time of change and a length, compress.
MANNERS = list(
    itertools.product([True, False], ["strong", "weak", None], [True, False], [True, False], [None, "asked", "always"])
)


@pytest.mark.parametrize("manners", MANNERS, ids=lambda manners: "-".join(map(str, manners)))
def test_manners_of_http(http, cached, manners):
    """Whatever an HTTP server does with ranges, etags, times, lengths and compression, the bytes are right."""
    stored, content = Stored(http), CONTENT[: MIB + 5]
    stored.write(content)
    http.ranges, http.etag, http.last_modified, http.length, http.gzip = manners
    for _ in range(2):
        fs = cached(http)
        assert fs.cat_file(stored.path) == content
        with fs.open(stored.path) as file:
            assert file.read(10) == content[:10]
            assert file.read() == content[10:]
    # A weak etag does not tell what changed within a second, and is kept only where a time says that this is over.
    is_kept = http.etag == "strong" or http.last_modified
    source = fs.stats().process.source
    assert (source.cache_bytes > 0, source.source_bytes > 0) == ((True, False) if is_kept else (False, bool(http.etag)))


@pytest.mark.parametrize("etag", ["weak", None])
def test_bare_http(http, cached, etag):
    """A file of which the server tells nothing, or too little, is kept for so many seconds, if the user says so."""
    stored = Stored(http)
    stored.write(CONTENT)
    http.bare()
    http.etag = etag
    assert cached(http, check=3600).cat_file(stored.path) == CONTENT
    http.forget()
    fs = cached(http, check="3600")
    with fs.open(stored.path) as file:
        file.seek(MIB)
        assert file.read() == CONTENT[MIB:]
    assert http.answered() == []


def test_requests_to_http(http, cached):
    """A file that is read in order needs few requests, each for more, and each version is looked up behind them."""
    stored = Stored(http)
    stored.write(CONTENT)
    fs = cached(http, block_size="256KiB")
    with fs.open(stored.path) as file:
        while file.read(50_000):
            pass
    assert [each.sent >> 10 for each in http.answered("GET")] == [256, 1024, 1792]
    assert len(http.answered("HEAD")) == 1 + 3
    assert http.sent() == len(CONTENT)


@pytest.mark.parametrize("name", ["s3", "sftp"])
def test_kept_listings(name, request, cached):
    """What is written and removed through the cache shows in listings that are kept, and these cost no request."""
    storage = request.getfixturevalue(name)
    fs = cached(storage, listings_expiry_time=600, check=600)
    root = f"{storage.root}/kept"
    fs.makedirs(root, exist_ok=True)
    assert fs.find(root) == []
    fs.pipe_file(f"{root}/a", b"a")
    fs.makedirs(f"{root}/d", exist_ok=True)
    fs.pipe_file(f"{root}/d/b", b"bb")
    expected = [f"{root}/a", f"{root}/d/b"]
    other = cached(storage, listings_expiry_time=600, check=600)
    assert fs.find(root) == other.find(root) == other.fs.find(root) == expected
    requests = other.stats().process.source.requests
    assert other.du(root) == 3
    assert [len(files) for _, _, files in other.walk(root)] == [1, 1]
    assert not other.exists(f"{root}/missing")
    assert other.stats().process.source.requests == requests
    fs.rm(f"{root}/d", recursive=True)
    assert other.find(root) == [f"{root}/a"]
    assert not other.exists(f"{root}/d")
    assert other.cat_file(f"{root}/a") == b"a"


def test_kept_listings_of_pages(stored, cached):
    """Over each protocol, with listings kept, a file is found that was put beside the listed ones by somebody else."""
    stored.write(CONTENT)
    fs = cached(stored.storage, listings_expiry_time=600)
    directory = stored.path.rpartition("/")[0]
    assert [row["name"] for row in fs.ls(directory)] == [stored.path]
    assert fs.info(stored.path)["size"] == len(CONTENT)
    assert fs.cat_file(stored.path) == CONTENT
