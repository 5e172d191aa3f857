"""
Taking in files: which are moved, copied or refused, and that the caller's file is not harmed.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import tempfile

import pytest
from patching import replace_here

from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.files import open_content_file
from dogpile_filesystem.store.ingest import ExternalFile


@pytest.fixture
def target(tmp_path):
    return str(tmp_path / "target")


def take_in(file, target, *, movable=False):
    source = ExternalFile(file, movable=movable)
    source.take_in(target, Directory(os.path.dirname(target), Access()))
    source.discard_copied()
    with open(target, "rb") as taken:
        content = taken.read()
    assert len(content) == source.length
    assert os.stat(target).st_mode & 0o777 == 0o600
    return content


@pytest.fixture
def source_path(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"content")
    path.chmod(0o644)
    return path


def open_files(path):
    """
    Opens a file of every kind that can be read and seeked, with the given content.
    """

    def spooled(max_size):
        file = tempfile.SpooledTemporaryFile(max_size)
        file.write(b"content")
        return file

    def compressed():
        packed = path.with_suffix(".gz")
        packed.write_bytes(gzip.compress(b"content"))
        return gzip.open(packed)

    def temporary(factory):
        file = factory()
        file.write(b"content")
        return file

    return {
        "rb": lambda: open(path, "rb"),
        "unbuffered": lambda: open(path, "rb", buffering=0),
        "r+b": lambda: open(path, "r+b"),
        "BytesIO": lambda: io.BytesIO(b"content"),
        "TemporaryFile": lambda: temporary(tempfile.TemporaryFile),
        "NamedTemporaryFile": lambda: temporary(tempfile.NamedTemporaryFile),
        "spooled in memory": lambda: spooled(1000),
        "spooled on disk": lambda: spooled(1),
        "gzip": compressed,
    }


KINDS = list(open_files(None))


@pytest.mark.parametrize("movable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(source_path, target, kind, movable):
    """The whole content is stored, unflushed data included, and the file stays open at its position."""
    with open_files(source_path)[kind]() as file:
        file.seek(3)
        assert take_in(file, target, movable=movable) == b"content"
        assert file.tell() == 3
        assert file.read() == b"tent"


def test_unflushed(tmp_path, target):
    """Data that was written to the file but not flushed is stored."""
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"not flushed")
        assert take_in(file, target) == b"not flushed"
        assert file.tell() == 11


def test_copied_file_stays(source_path, target):
    """A file that is not movable keeps its name."""
    with open(source_path, "rb") as file:
        take_in(file, target)
    assert source_path.exists()


def test_moved_file_goes_on_working(source_path, target):
    """A movable file loses its name, becomes the content itself without a copy, and can still be read."""
    inode = source_path.stat().st_ino
    with open(source_path, "rb") as file:
        assert take_in(file, target, movable=True) == b"content"
        assert file.read() == b"content"
    assert not source_path.exists()
    assert os.stat(target).st_ino == inode


def test_write_only_file_is_moved(tmp_path, target):
    """A file that was opened only for writing can be moved, since its bytes need not be read."""
    with open(tmp_path / "file", "wb") as file:
        file.write(b"content")
        assert take_in(file, target, movable=True) == b"content"


def replaced(path, file):
    os.unlink(path)
    path.write_bytes(b"another")


def linked(path, file):
    os.link(path, path.with_name("second"))


def test_entry_of_the_cache_is_copied(source_path, target):
    """A file that a hit returned is already an entry's content, so storing it under another key copies it."""
    with open_content_file(source_path.name, os.open(source_path.parent, os.O_RDONLY), str(source_path.parent)) as file:
        assert take_in(file, target, movable=True) == b"content"
    assert source_path.exists()


def test_wrappers_around_a_file(source_path, target):
    """If an object wraps a file and shows only a part of it, that part is stored and not the whole file."""

    class Window(io.BytesIO):
        def __init__(self, file):
            super().__init__(file.read()[3:])
            self.file = self.raw = file
            self.name = file.name

        def fileno(self):
            return self.file.fileno()

    class Upper(io.BufferedReader):
        def read(self, size=-1, /):
            return super().read(size).upper()

        def readinto(self, buffer, /):
            raise io.UnsupportedOperation

    with open(source_path, "rb") as file, Window(file) as window:
        assert take_in(window, target, movable=True) == b"tent"
    os.unlink(target)
    with Upper(io.FileIO(source_path)) as upper:
        assert take_in(upper, target, movable=True) == b"CONTENT"


def test_given_back(source_path, target):
    """A file that was moved but could not be kept gets its name back."""
    with open(source_path, "rb") as file:
        source = ExternalFile(file, movable=True)
        source.take_in(target, Directory(os.path.dirname(target), Access()))
        assert not source_path.exists()
        source.give_back()
    assert source_path.read_bytes() == b"content"


def test_file_of_somebody_else(source_path, target, monkeypatch):
    """A file whose mode may not be changed is copied."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, "not permitted")

    replace_here(monkeypatch, os, "fchmod", refuse)
    with open(source_path, "rb") as file:
        assert take_in(file, target, movable=True) == b"content"


def behind_a_link(path, file):
    os.rename(path, path.with_name("elsewhere"))
    os.symlink(path.with_name("elsewhere"), path)


@pytest.mark.parametrize("change", [replaced, linked, behind_a_link])
def test_name_that_is_not_only_this_file(source_path, target, change):
    """A file is copied and its name left alone if the name leads elsewhere, is a link, or is one of two names."""
    with open(source_path, "rb") as file:
        change(source_path, file)
        assert take_in(file, target, movable=True) == b"content"
    assert source_path.exists()


def test_name_that_is_another_file_by_now(source_path, target):
    """If another file took over the name since it was checked, the file is copied and the other one left alone."""
    with open(source_path, "rb") as file:
        source = ExternalFile(file, movable=True)
        replaced(source_path, file)
        other = source_path.read_bytes()
        source.take_in(target, Directory(os.path.dirname(target), Access()))
        source.discard_copied()
    with open(target, "rb") as taken:
        assert taken.read() == b"content"
    assert source_path.read_bytes() == other


def test_temporary_file_that_stays(target, tmp_path):
    """A NamedTemporaryFile with delete=False is moved."""
    with tempfile.NamedTemporaryFile(delete=False, dir=tmp_path) as file:
        file.write(b"content")
        assert take_in(file, target, movable=True) == b"content"
    assert not os.path.exists(file.name)


def test_file_that_deletes_itself(target):
    """A NamedTemporaryFile with delete=True is copied: if moved, it would later delete any file that took its name."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"content")
        assert take_in(file, target, movable=True) == b"content"
        assert os.path.exists(file.name)


def test_other_filesystem(source_path, target, monkeypatch):
    """A movable file on another filesystem is copied, and its name is removed."""

    def rename(*_, **__):
        raise OSError(errno.EXDEV, "another filesystem")

    replace_here(monkeypatch, os, "rename", rename)
    with open(source_path, "rb") as file:
        assert take_in(file, target, movable=True) == b"content"
    assert not source_path.exists()


def test_real_other_filesystem(tmp_path):
    """A movable file is copied between real filesystems too, where there are two."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second filesystem at /dev/shm")
    directory = tempfile.mkdtemp(dir="/dev/shm")
    try:
        path = os.path.join(directory, "source")
        with open(path, "w+b") as file:
            file.write(b"content" * 100_000)
            assert take_in(file, str(tmp_path / "target"), movable=True) == b"content" * 100_000
        assert not os.path.exists(path)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("refused", [["copy_file_range"], ["copy_file_range", "sendfile"]])
def test_kernel_that_does_not_copy(source_path, target, monkeypatch, refused):
    """If the kernel cannot copy between two files, the content is copied by other means."""

    def refuse(*_):
        raise OSError(errno.EXDEV, "not between these")

    for name in refused:
        replace_here(monkeypatch, os, name, refuse)
    with open(source_path, "rb") as file:
        file.seek(3)
        assert take_in(file, target) == b"content"
        assert file.tell() == 3


def test_kernel_that_stops_in_the_middle(source_path, target, monkeypatch):
    """If one way of copying fails half-way, another continues where it stopped."""
    copy_file_range = os.copy_file_range
    results = iter([3])

    def partly(source, target, length, offset):
        try:
            return copy_file_range(source, target, next(results), offset)
        except StopIteration:
            raise OSError(errno.EIO, "no more") from None

    replace_here(monkeypatch, os, "copy_file_range", partly)
    with open(source_path, "rb") as file:
        assert take_in(file, target) == b"content"


def closed():
    file = io.BytesIO()
    file.close()
    return file


def pipe():
    reading, writing = os.pipe()
    os.close(writing)
    return open(reading, "rb")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: b"bytes", TypeError, "not bytes"),
        (lambda: "text", TypeError, "not str"),
        (lambda: None, TypeError, "not NoneType"),
        (lambda: io.StringIO("text"), TypeError, "text file"),
        (lambda: open(__file__), TypeError, "text file"),
        (lambda: tempfile.NamedTemporaryFile("w+"), TypeError, "text file"),
        (closed, ValueError, "closed"),
        (pipe, ValueError, "seek"),
        (lambda: open(os.devnull, "wb"), ValueError, "cannot be read"),
    ],
    ids=["bytes", "str", "None", "StringIO", "text", "temporary text", "closed", "pipe", "write-only"],
)
@pytest.mark.parametrize("movable", [False, True])
def test_refused(make, error, message, movable):
    """An object that is not an open, seekable, binary file is refused with advice on what to pass instead."""
    value = make()
    try:
        with pytest.raises(error, match=message) as caught:
            ExternalFile(value, movable=movable)
        assert "open(path, 'rb')" in str(caught.value)
    finally:
        if hasattr(value, "close"):
            value.close()
