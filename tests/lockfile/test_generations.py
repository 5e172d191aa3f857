"""
The generations of entries: that each change writes a new one, and what a reader gets of them.
"""

from __future__ import annotations

import errno
import os

import pytest
from forked import Child
from patching import replace_here

from dogpile_filesystem.lockfile import GENERATION_SIZE, Ledger, generation_offset
from dogpile_filesystem.lockfile.format import GENERATIONS_AT, GENERATIONS_OF_SHARD

NAME, NEIGHBOUR, OTHER = "0a1bc3v", "0a1bffv", "0a1c00v"
END = GENERATIONS_AT + 256 * GENERATIONS_OF_SHARD * GENERATION_SIZE


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lock")


@pytest.fixture
def generations(path):
    # The ledger keeps the file open.
    ledger = Ledger.open(path)
    ledger.generations.ledger = ledger
    return ledger.generations


def test_each_change_writes_a_new_one(generations):
    """After each change an entry has a generation that it never had, and so have those that share it, but no others."""
    other = generations.seen(OTHER)
    seen = []
    for _ in range(100):
        generations.changed(NAME)
        seen.append(generations.seen(NAME))
        assert generations.seen(NEIGHBOUR) == seen[-1]
    assert len(set(seen)) == 100
    assert generations.seen(OTHER) == other


def test_none_in_a_new_file(generations, path):
    """A reader that finds no generation writes one, which stays, so that no two lock files have the same."""
    first = generations.seen(NAME)
    assert len(first) == GENERATION_SIZE
    assert first != bytes(GENERATION_SIZE)
    assert generations.seen(NAME) == first
    os.unlink(path)
    assert Ledger.open(path).generations.seen(NAME) != first


def test_nobody_reads(generations, path):
    """Changes of entries that no process keeps write nothing: the lock file does not grow."""
    before = os.stat(path).st_size
    generations.changing(NAME)
    generations.changed(NAME)
    assert os.stat(path).st_size == before < GENERATIONS_AT


def test_first_read_while_an_entry_is_replaced(generations):
    """While an entry may just be being replaced, a reader writes no first generation, which the writer would miss."""
    with generations.ledger.shard(0x0A):
        generations.changing(NAME)
        assert generations.seen(NAME) is None
        generations.changed(NAME)
    assert generations.seen(NAME) is not None


def test_first_read_without_a_place(generations, monkeypatch):
    """A first generation that cannot be written leaves the shard unlocked."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    replace_here(monkeypatch, os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        generations.seen(NAME)
    monkeypatch.undo()
    assert generations.seen(NAME) is not None


def test_none_while_an_entry_is_replaced(generations):
    """While an entry is being replaced it has no generation, until it is said to have changed."""
    before = generations.seen(NAME)
    generations.changing(NAME)
    assert generations.seen(NAME) is None
    generations.changed(NAME)
    assert generations.seen(NAME) not in (None, before)


def test_children_have_their_own(generations):
    """A forked child writes other generations than its parent."""

    def changes():
        seen = []
        for _ in range(50):
            generations.changed(NAME)
            seen.append(generations.seen(NAME))
        return seen

    child = Child(changes)
    assert not set(child.result()) & set(changes())


def test_all_changed(generations, path):
    """A change of all changes each that was read, and makes the file no larger on the disk."""
    names = [f"{number:04x}v" for number in range(0, 0x4000, 64)]
    before = [generations.seen(name) for name in names]
    blocks = os.stat(path).st_blocks
    generations.changed_all()
    after = [generations.seen(name) for name in names]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert os.stat(path).st_blocks == blocks


def test_all_changed_while_an_entry_is_replaced(generations):
    """Who was told that nobody keeps the old entry, and so will not say that it has changed, is still right then."""
    generations.seen(NAME)
    with generations.ledger.shard(0x0A):
        assert not generations.changing(OTHER)
        generations.changed_all()
        child = Child(lambda: generations.seen(OTHER))
        assert child.result() is None
    assert generations.seen(OTHER) is not None


def test_places():
    """Each entry has its place inside of the table, and so has a stranger's file, whatever its name is."""
    assert generation_offset("0000v") == GENERATIONS_AT
    assert generation_offset("ffffv") == END - GENERATION_SIZE
    assert generation_offset(NAME) != generation_offset(OTHER)
    for name in ("", "-fff", "+fff", "zz", "notes", " 1 ", "1_0v"):
        assert GENERATIONS_AT <= generation_offset(name) < END


def test_short_write(generations, monkeypatch):
    """If the system writes a generation in parts, the whole of it is written."""
    real = os.pwrite
    replace_here(monkeypatch, os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    generations.seen(NAME)
    generations.changed(NAME)
    generations.seen(OTHER)
    generations.changing(OTHER)
    monkeypatch.undo()
    found = generations.seen(NAME)
    assert found is not None
    assert 0 not in found[3:7] or found[3:] != bytes(5)
    assert generations.seen(OTHER) is None


def test_number_of_another_file(generations, tmp_path):
    """A program that became a daemon may have a file of its own under the number. Nothing is written to that."""
    fd = generations.ledger.file.descriptor.fd
    kept = os.dup(fd)
    stranger = os.open(tmp_path / "stranger", os.O_RDWR | os.O_CREAT)
    os.dup2(stranger, fd)
    try:
        assert generations.seen(NAME) is None
        assert os.fstat(stranger).st_size == 0
    finally:
        os.dup2(kept, fd)
        os.close(kept)
        os.close(stranger)
