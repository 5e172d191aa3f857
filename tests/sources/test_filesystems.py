"""
Filesystems as sources: what they tell of a file now, and what is known of their answers.
"""

from __future__ import annotations

import errno
import ftplib
import os
from pathlib import Path

import pytest

from dogpile_filesystem.sources import (
    Identity,
    honours_ranges,
    identity_of_stat,
    is_rewritten_in_place,
    says_missing,
    serves_threads,
    source_identity,
)

fsspec = pytest.importorskip("fsspec")
SHM = Path("/dev/shm")


class Filesystem:
    """Only what a look-up needs: it answers from a cache of listings until that is dropped."""

    protocol: str | tuple[str, ...] = ("s3", "s3a")

    def __init__(self):
        self.etag, self.cached = 1, {}

    def _parent(self, path):
        return path.rpartition("/")[0]

    def invalidate_cache(self, path=None):
        self.cached.pop(path, None)

    def info(self, path):
        listed = self.cached.setdefault(self._parent(path), {"name": path, "size": 5, "ETag": f'"{self.etag}"'})
        return self.cached.setdefault(path, listed)


class Wrapper(Filesystem):
    protocol = "dir"

    def __init__(self, fs):
        super().__init__()
        self.fs = fs


class IgnoresRanges(Filesystem):
    __module__ = "sshfs.spec"
    protocol = ("ssh", "sftp")


def test_look_up_is_fresh():
    """What the filesystem has cached of a directory does not hide a new version."""
    fs = Filesystem()
    assert source_identity(fs, "b/a")[1] == Identity("etag:1:5", 5, None, 0.0)
    fs.etag = 2
    info, identity = source_identity(fs, "b/a")
    assert info == {"name": "b/a", "size": 5, "ETag": '"2"'}
    assert identity == Identity("etag:2:5", 5, None, 0.0)


def test_given_info():
    """What was just asked about a file is not asked again."""
    given = {"name": "b/a", "size": 6, "ETag": '"3"'}
    info, identity = source_identity(Filesystem(), "b/a", given)
    assert (info, identity) == (given, Identity("etag:3:6", 6, None, 0.0))


def test_wrapper():
    """A filesystem that is a directory of another one is known as that one."""
    assert not is_rewritten_in_place(Wrapper(Filesystem()))
    assert not honours_ranges(Wrapper(IgnoresRanges()))
    info = {"size": 5, "ETag": '"3"', "LastModified": 1.0}
    assert source_identity(Wrapper(Filesystem()), "a", info)[1] == Identity("etag:3:5", 5, 1.0, 0.0)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        *(("s3", False), (("gs", "gcs"), False), ("abfs", False), (("http", "https"), False)),
        *(("file", True), ("sftp", True), ("webdav", True), ("ftp", True), ("memory", True), ("unknown", True)),
    ],
)
def test_rewritten_in_place(protocol, expected):
    """Stores that replace a whole object are known; of all others the worst is assumed."""
    fs = Filesystem()
    fs.protocol = protocol
    assert is_rewritten_in_place(fs) is expected


@pytest.mark.parametrize(
    ("protocol", "is_async", "expected"),
    [(("sftp", "ssh"), False, False), (("sftp", "ssh"), True, True), ("ftp", False, False), ("s3", True, True)],
)
def test_serves_threads(protocol, is_async, expected):
    """A client with one connection is for one thread, unless it is asynchronous; so is a directory of it."""
    fs = Filesystem()
    fs.protocol, fs.async_impl = protocol, is_async
    assert serves_threads(fs) is expected
    assert serves_threads(Wrapper(fs)) is expected


def test_ranges():
    """The package sshfs does not honour ranges, nor a server that says so; all others may."""
    assert honours_ranges(Filesystem())
    assert honours_ranges(Filesystem(), {"size": 5})
    assert not honours_ranges(Filesystem(), {"size": 5, "partial": False})
    assert not honours_ranges(IgnoresRanges())


@pytest.mark.parametrize("directory", ["disk", "shm"])
def test_local(tmp_path, directory):
    """A local file is told by what the operating system says, on a disk and elsewhere."""
    if directory == "shm" and not SHM.is_dir():
        pytest.skip("needs a second filesystem at /dev/shm")
    path = (SHM if directory == "shm" else tmp_path) / f"test_local.{os.getpid()}"
    path.write_bytes(b"12345")
    try:
        fs = fsspec.filesystem("file")
        info, identity = source_identity(fs, f"file://{path}")
        assert identity == identity_of_stat(path.stat())
        assert info == fs.info(str(path))
        path.write_bytes(b"123456")
        info, identity = source_identity(fs, str(path), info)
        assert (info["size"], info["mtime"], identity.size) == (6, path.stat().st_mtime, 6)
        assert identity == identity_of_stat(path.stat())
    finally:
        path.unlink()


def test_local_link(tmp_path):
    """A symbolic link has the identity of the file that it leads to."""
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("a")
    info, identity = source_identity(fsspec.filesystem("file"), str(tmp_path / "b"))
    assert identity == identity_of_stat((tmp_path / "a").stat())
    assert (info["size"], info["islink"]) == (5, True)


def test_local_without_regular_file(tmp_path):
    """A directory and a pipe are told without being opened, and what is missing is not found."""
    fs = fsspec.filesystem("file")
    os.mkfifo(tmp_path / "pipe")
    assert source_identity(fs, str(tmp_path / "pipe"))[0]["type"] == "other"
    assert source_identity(fs, str(tmp_path))[0]["type"] == "directory"
    with pytest.raises(FileNotFoundError):
        source_identity(fs, str(tmp_path / "missing"))


def test_subclass_of_local():
    """A subclass of the local filesystem may lead elsewhere: only what it tells counts."""

    class Elsewhere(type(fsspec.filesystem("file"))):
        def info(self, path, **_):
            return {"name": path, "size": 5, "mtime": 1.0, "ino": 7}

    assert source_identity(Elsewhere(), "/a")[1] == Identity("time:1.000000:5:7", 5, 1.0, 1.0)
    assert source_identity(fsspec.filesystem("memory"), "/", {"size": 0})[1] is None


class Answered(Exception):
    """As aiohttp has it: an answer of a server with a status that is an error."""

    def __init__(self, status):
        self.status = status


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (None, True),
        (KeyError("NoSuchKey"), True),
        (Answered(404), True),
        (Answered(403), True),
        (Answered(500), False),
        (Answered(429), False),
        (ConnectionRefusedError(), False),
        (TimeoutError(), False),
    ],
)
def test_missing(cause, expected):
    """That a file is missing is an answer of the source, but not where a failure is only said to be that."""
    for error in (FileNotFoundError("b"), PermissionError("b")):
        error.__cause__ = cause
        assert says_missing(error) is expected
    error = OSError("broken")
    error.__cause__ = cause
    assert says_missing(error) is (expected and isinstance(cause, Answered))


class Response:
    """As requests and httpx have it: what a server answered, in the attribute of an error."""

    def __init__(self, status):
        self.status_code = status


@pytest.mark.parametrize(
    ("error", "attributes", "expected"),
    [
        (OSError("Forbidden: bucket/key"), {}, True),  # gcsfs
        (Exception("denied"), {"code": 401}, True),  # likewise
        (Exception("denied"), {"status_code": 403}, True),  # azure
        (OSError("denied"), {"response": Response(404)}, True),  # requests
        (OSError("broken"), {"response": Response(503)}, False),
        (Exception("broken"), {"code": 500}, False),
        (Exception("broken"), {"code": 1}, False),
        (OSError("denied"), {"errno": errno.EACCES}, True),  # smbprotocol
        (OSError("broken"), {"errno": errno.EIO}, False),
        (ftplib.error_perm("550 No such file or directory."), {}, True),
        (ftplib.error_perm("530 Not logged in."), {}, False),
        (NotADirectoryError("a/b"), {}, True),
        (Exception("broken"), {}, False),
    ],
)
def test_missing_in_other_words(error, attributes, expected):
    """Packages say in their own exceptions that a file is missing or denied."""
    vars(error).update({name: value for name, value in attributes.items() if name != "errno"})
    if "errno" in attributes:
        error.errno = attributes["errno"]
    assert says_missing(error) is expected
