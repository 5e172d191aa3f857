"""
Invalidation across processes: every process sees it at once, and it survives deletions.
"""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from forked import Child
from patching import replace_here

from dogpile_filesystem import FilesystemInvalidation
from dogpile_filesystem.lockfile import current
from dogpile_filesystem.lockfile.ledger import Ledger


@pytest.fixture
def make_regions(base_dir):
    """Makes two regions on one directory that share no more state than two processes do."""

    def make(**arguments):
        return [
            make_region().configure(
                "paylogic.filesystem",
                arguments={"base_dir": base_dir},
                region_invalidator=FilesystemInvalidation(base_dir),
                **arguments,
            )
            for _ in range(2)
        ]

    return make


def test_hard(make_regions):
    """After a hard invalidation, older values are misses for every process, and newer values are hits."""
    one, other = make_regions()
    one.set("k", "old")
    assert other.get("k") == "old"
    other.invalidate()
    assert one.get("k") is other.get("k") is NO_VALUE
    assert one.get_or_create("k", lambda: "new") == "new"
    assert other.get_or_create("k", lambda: "unused") == "new"


def test_soft(make_regions):
    """After a soft invalidation, one creator makes a new value while other callers are served the old one."""
    one, other = make_regions(expiration_time=3600)
    one.set("k", "old")
    other.invalidate(hard=False)
    assert one.get("k") is NO_VALUE
    served = []

    def create():
        served.append(other.get_or_create("k", lambda: "created twice"))
        return "new"

    assert one.get_or_create("k", create) == "new"
    assert served == ["old"]
    assert other.get_or_create("k", lambda: "unused") == "new"


def test_one_after_the_other(base_dir, make_regions):
    """A hard invalidation replaces a soft one, and a soft invalidation leaves a hard one in place."""
    one, _ = make_regions()
    one.set("k", "value")
    times = [time.time()]
    invalidator = FilesystemInvalidation(base_dir)
    for hard in (False, True, False):
        invalidator.invalidate(hard=hard)
        times.append(time.time())
        assert invalidator.was_soft_invalidated() is not hard
        assert invalidator.is_invalidated(times[-2])
        assert not invalidator.is_invalidated(times[-1])
    assert invalidator.was_hard_invalidated()
    assert [invalidator.is_hard_invalidated(each) for each in times] == [True, True, False, False]
    assert [invalidator.is_soft_invalidated(each) for each in times] == [True, True, True, False]


def test_other_process(make_regions, spawn, base_dir):
    """A process that has read before, and its children, see another process's invalidation at their next read."""
    one, _ = make_regions()
    one.set("k", "value")
    assert one.get("k") == "value"
    process = spawn(
        """
        import sys
        from dogpile_filesystem import FilesystemInvalidation
        FilesystemInvalidation(sys.argv[1]).invalidate()
        """,
        base_dir,
    )
    assert process.wait() == 0
    assert one.get("k") is NO_VALUE
    one.set("k", "value")
    assert Child(lambda: one.get("k")).result() == "value"
    assert Child(one.invalidate).result() is None
    assert one.get("k") is NO_VALUE


def test_one_look(make_regions, monkeypatch):
    """A hit costs one read of 16 bytes, whichever way dogpile reaches it."""
    one, _ = make_regions(expiration_time=3600)
    one.set("k", "value")
    one.get("k")
    reads, pread = [], os.pread

    def count(fd, length, offset):
        reads.append(length)
        return pread(fd, length, offset)

    replace_here(monkeypatch, os, "pread", count)
    assert one.get("k") == "value"
    assert reads == [16]
    assert one.get_or_create("k", lambda: "unused") == "value"
    assert reads == [16, 16]


def test_asked_again(base_dir, make_regions):
    """The stamps that dogpile's two questions share are not reused for a third question."""
    one, _ = make_regions()
    one.set("k", "value")
    asked, another = FilesystemInvalidation(base_dir), FilesystemInvalidation(base_dir)
    age = time.time()
    assert not asked.is_hard_invalidated(age)
    assert not asked.is_soft_invalidated(age)
    another.invalidate(hard=False)
    assert asked.is_soft_invalidated(age)


def test_first_value_of_another_process(base_dir, monkeypatch):
    """
    The first value of a cache is not taken for invalidated, whenever another process makes the lock file and the values
    while this one looks for them.
    """
    asked, exists = FilesystemInvalidation(base_dir), os.path.exists

    def exists_a_moment_later(path):
        monkeypatch.undo()
        make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir}).set("k", "value")
        return exists(path)

    monkeypatch.setattr(os.path, "exists", exists_a_moment_later)
    age = time.time()
    assert not asked.is_hard_invalidated(age)


def test_another_thread_looks(base_dir, monkeypatch):
    """A thread that comes while another one looks for the first time does not take everything for invalidated."""
    make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir}).set("k", "value")
    asked, find, answers = FilesystemInvalidation(base_dir), current.Current.find, []

    def find_slowly(self):
        monkeypatch.undo()
        self.fresh.renew(time.monotonic())
        with ThreadPoolExecutor(1) as other:
            answers.append(other.submit(asked.is_hard_invalidated, time.time()).result())
        return find(self)

    monkeypatch.setattr(current.Current, "find", find_slowly)
    answers.append(asked.is_hard_invalidated(time.time()))
    assert answers == [False, False]


def test_lock_file_being_made(base_dir, monkeypatch):
    """A process that met the lock file while it was being made looks at it again before it trusts what it saw."""
    monkeypatch.setattr(current, "TRUST", 3600)
    os.mkdir(base_dir, 0o700)
    Path(base_dir, "lock").touch(0o600)
    asked = FilesystemInvalidation(base_dir)
    assert asked.is_hard_invalidated(time.time())
    make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir}).set("k", "value")
    assert not asked.is_hard_invalidated(time.time())


def test_directory_deleted(make_regions, base_dir):
    """Invalidating a deleted directory raises nothing, and a directory made again can be invalidated as usual."""
    one, other = make_regions()
    shutil.rmtree(base_dir)
    one.invalidate()
    assert one.get("k") is NO_VALUE
    assert not os.path.exists(base_dir)
    one.set("k", "value")
    assert other.get("k") == "value"
    other.invalidate()
    assert one.get("k") is NO_VALUE


@pytest.mark.parametrize("hard", [True, False])
def test_not_to_be_written(make_regions, caplog, monkeypatch, hard):
    """If the lock file cannot be written, an invalidation acts in its own process only, and that is logged."""
    one, other = make_regions(expiration_time=3600)
    one.set("k", "value")

    def fail(ledger, now, *, hard):
        raise OSError(30, "read-only")

    monkeypatch.setattr(Ledger, "stamp", fail)
    one.invalidate(hard=hard)
    assert "other processes do not see an invalidation" in caplog.text
    assert one.get("k") is NO_VALUE
    assert other.get("k") == "value"
    assert one.get_or_create("k", lambda: "new") == "new"
    assert one.get("k") == "new"


@pytest.mark.parametrize("harm", ["truncated", "zeroed", "overwritten", "a directory", "deleted"])
def test_lock_file_that_cannot_be_read(base_dir, make_regions, open_descriptors, harm):
    """
    If the stamps cannot be read, a process uses the last ones it knows, and a process that knows none treats every
    value as invalidated. So no invalidated value comes back, and no read leaks a descriptor.
    """
    one, other = make_regions()
    one.set("old", "value")
    one.invalidate()
    other.set("new", "value")
    assert [one.get("old"), one.get("new")] == [NO_VALUE, "value"]
    lock = f"{base_dir}/lock"
    if harm == "truncated":
        os.truncate(lock, 0)
    elif harm in ("zeroed", "overwritten"):
        with open(lock, "r+b") as file:
            file.write(bytes(6400) if harm == "zeroed" else b"something else " * 1000)
    else:
        os.unlink(lock)
        if harm == "a directory":
            os.mkdir(lock)
    fresh = FilesystemInvalidation(base_dir)
    assert one.get("old") is NO_VALUE
    knows = harm != "deleted"  # A missing lock file means that everything is invalidated.
    for _ in range(2):
        one.region_invalidator._current.fresh.until = fresh._current.fresh.until = 0.0
        assert one.get("old") is NO_VALUE
        assert one.get("new") == ("value" if knows else NO_VALUE)
        assert fresh.is_invalidated(time.time())
        assert not fresh.was_soft_invalidated()
        before = open_descriptors()
        assert fresh.is_invalidated(time.time())
        assert open_descriptors() == before


@pytest.mark.parametrize("harm", ["truncated", "deleted"])
def test_lock_file_made_anew(base_dir, make_regions, harm):
    """After a lost lock file is made again, older values are misses and newer values are hits for every process."""
    one, other = make_regions()
    one.set("old", "value")
    other.set("older", "value")
    one.invalidate()
    assert other.get("old") is NO_VALUE
    if harm == "truncated":
        os.truncate(f"{base_dir}/lock", 0)
    else:
        os.unlink(f"{base_dir}/lock")
    for region in (one, other):
        region.backend.store.directory.distrust()
    other.set("first", "value")  # It is older than the lock file that it makes.
    other.set("new", "value")
    for region in (one, other):
        region.region_invalidator._current.fresh.drop()
        assert [region.get("old"), region.get("new")] == [NO_VALUE, "value"]
    assert not FilesystemInvalidation(base_dir).is_invalidated(time.time())


def test_clock_that_was_ahead(base_dir, make_regions):
    """The next invalidation corrects one that was made while the clock was far ahead."""
    one, other = make_regions()
    one.set("k", "old")
    one.backend.store.directory.ledger().stamp(time.time() + 1e6, hard=True)
    assert other.get("k") is NO_VALUE
    other.set("k", "older")
    assert one.get("k") is NO_VALUE
    other.invalidate()
    assert one.get("k") is NO_VALUE
    one.set("k", "new")
    assert other.get("k") == "new"


def test_modes(base_dir, caplog):
    """A lock file made by an invalidation has the mode of the directory, and none is made where everybody may write."""
    os.mkdir(base_dir)
    os.chmod(base_dir, 0o777)
    FilesystemInvalidation(base_dir).invalidate()
    assert os.listdir(base_dir) == []
    assert "everybody can write" in caplog.text
    os.chmod(base_dir, 0o2770)
    FilesystemInvalidation(base_dir).invalidate()
    assert os.stat(f"{base_dir}/lock").st_mode & 0o7777 == 0o660


def test_reading_makes_nothing(base_dir):
    """Reading the stamps of a new directory returns none and makes no file."""
    os.mkdir(base_dir)
    asking = FilesystemInvalidation(base_dir)
    assert not asking.is_invalidated(time.time())
    assert not asking.was_hard_invalidated()
    assert os.listdir(base_dir) == []


@pytest.mark.parametrize("wrong", [None, 5, ""])
def test_wrong_base_dir(wrong):
    """A base_dir that is not a path is refused at once."""
    with pytest.raises((TypeError, ValueError), match="base_dir"):
        FilesystemInvalidation(wrong)
