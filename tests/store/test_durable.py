"""
What is synced: a file or a directory, and once the directories above it.
"""

from __future__ import annotations

import errno
import os
import socket

import pytest
from patching import replace_here

from dogpile_filesystem.store import sync_directory, sync_file


@pytest.fixture
def synced(monkeypatch):
    """The inodes that were synced, each time."""
    inodes, real = [], os.fsync

    def sync(fd):
        real(fd)
        inodes.append(os.fstat(fd).st_ino)

    replace_here(monkeypatch, os, "fsync", sync)
    return inodes


def test_directories_above(tmp_path, synced):
    """A directory is synced with those above it at first, and alone afterwards."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    expected = [each.stat().st_ino for each in (inner, inner.parent, tmp_path)]
    sync_directory(str(inner))
    assert synced[:3] == expected
    synced.clear()
    sync_directory(str(inner))
    assert synced == expected[:1]


def test_another_directory(tmp_path, synced):
    """Another directory under the path of one that was synced has a name that is not synced yet."""
    for name in ("inner", "other"):
        (tmp_path / name).mkdir()
    sync_directory(str(tmp_path / "inner"))
    (tmp_path / "inner").rmdir()
    (tmp_path / "other").rename(tmp_path / "inner")
    synced.clear()
    sync_directory(str(tmp_path / "inner"))
    assert tmp_path.stat().st_ino in synced


def test_error(tmp_path, monkeypatch):
    """A directory that could not be synced is synced with those above it the next time."""
    (tmp_path / "inner").mkdir()
    failing = (tmp_path / "inner").stat().st_ino
    inodes = []

    def sync(fd):
        inodes.append(os.fstat(fd).st_ino)
        if inodes == [failing]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    replace_here(monkeypatch, os, "fsync", sync)
    with pytest.raises(OSError, match="Input/output"):
        sync_directory(str(tmp_path / "inner"))
    sync_directory(str(tmp_path / "inner"))
    assert inodes[:3] == [failing, failing, tmp_path.stat().st_ino]


def test_what_has_no_content(tmp_path, monkeypatch):
    """A socket or a pipe that is renamed has nothing to sync, and is passed over."""
    monkeypatch.chdir(tmp_path)  # The path of a socket has to be short.
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
        sync_file("pipe")
        sync_file("socket")


def test_missing(tmp_path):
    """A file that is not there cannot be synced."""
    with pytest.raises(FileNotFoundError):
        sync_file(str(tmp_path / "missing"))
