"""
The table of machines: when the records are believed, and when all shards are counted anew.

A machine is a forked process here that takes another start of the system for its own.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forked import Forked, obey
from patience import PATIENCE

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK
from dogpile_filesystem.lockfile import file as file_module
from dogpile_filesystem.lockfile import format as file_format
from dogpile_filesystem.lockfile.format import MACHINES_AT, SLOTS
from dogpile_filesystem.lockfile.ledger import Ledger, Usage
from dogpile_filesystem.lockfile.machines import LOST_AFTER, Sharing
from dogpile_filesystem.lockfile.stuck import Stuck

NOW = 1_700_000_000.0
#: A slot: start and last sign of life.
SLOT = 16
#: What the ledger says when one block was added, and everything is believed; and when nothing is.
KNOWN, UNKNOWN = Usage(BLOCK, 1, ALL_SHARDS), Usage(BLOCK, 1, 0)


class Machine:
    """One process of a machine, for :func:`.forked.obey`."""

    def __init__(self, path: str, start: int, sharing: Sharing) -> None:
        file_format.start_of_machine = lambda: start
        self._path = path
        self._sharing = sharing
        self._now = NOW
        self._ledger: Any = None

    def open(self, now: float = NOW) -> Usage:
        self._now = now
        self._ledger = Ledger.open(self._path, sharing=self._sharing, clock=lambda: self._now)
        return self._ledger.usage()

    def add(self) -> None:
        with self._ledger.shard(3):
            self._ledger.add(3, BLOCK, 1)

    def look(self, now: float = NOW) -> Usage:
        """As it happens once a minute."""
        self._ledger.file.seat._due_at = 0.0
        self._ledger.look_for_machines(now)
        return self._ledger.usage()

    def close(self) -> None:
        self._ledger = None

    def end(self) -> None:
        file_module._leave_all()

    def fork(self) -> int:
        """A child that has looked, and lives on."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._ledger.look_for_machines(NOW)
            os.write(writing, b"x")
            time.sleep(PATIENCE)
            os._exit(0)
        os.read(reading, 1)
        return pid

    def lock(self) -> None:
        """As a machine that dies while it works on a shard."""
        assert self._ledger.shard(3).acquire(wait=False)

    def unlock(self) -> None:
        self._ledger.shard(3).release()

    def is_stuck(self) -> bool:
        """Lock a shard, which may be locked; whether it is to be counted anew therefore. It stays locked."""
        Stuck.AFTER = 0.05
        return self._ledger.shard(3).acquire(timeout=PATIENCE) and self.was_stuck()

    def was_stuck(self) -> bool:
        lock = self._ledger.shard(3)
        was_stuck, lock.was_stuck = lock.was_stuck, False
        return was_stuck

    def lock_in_child(self) -> int:
        """A child that has locked and unlocked the shard, and lives on."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            with self._ledger.shard(3):
                os.write(writing, b"x")
            os.write(writing, b"x")
            time.sleep(PATIENCE)
            os._exit(0)
        os.read(reading, 1)
        os.read(reading, 1)
        return pid

    def replace_and_unlock(self) -> None:
        """Go on with a new lock file while the shard is locked, and unlock it."""
        os.unlink(self._path)
        lock = self._ledger.shard(3)
        self.open()
        lock.release()

    def try_to_lock(self) -> bool:
        Stuck.AFTER = 0.05
        return self._ledger.shard(3).acquire(timeout=0.3)


@pytest.fixture
def machine(tmp_path) -> Iterator[Callable[..., Forked]]:
    """Starts a process of a machine, by the number of the machine."""
    started = []

    def start(number: int, sharing: Sharing = Sharing.BY_LOCKS) -> Forked:
        started.append(Forked(obey, Machine, str(tmp_path / "lock"), number, sharing))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def table(tmp_path) -> list[int]:
    """The starts in the table."""
    data = (tmp_path / "lock").read_bytes()[MACHINES_AT:][: SLOT * SLOTS]
    slots = [data[at : at + SLOT] for at in range(0, len(data), SLOT)]
    return [int.from_bytes(slot[:8], "little") for slot in slots if slot.strip(b"\0")]


def test_in_turn(machine, tmp_path):
    """Machines that use the file in turn believe the records of each other, and leave no slot."""
    first = machine(1)
    assert first.ask("open") == Usage(0, 0, ALL_SHARDS)
    first.ask("add")
    first.ask("end")
    second = machine(2)
    assert second.ask("open") == KNOWN
    second.ask("close")
    assert table(tmp_path) == []
    assert first.ask("open") == KNOWN


def test_at_once(machine, tmp_path):
    """Machines that use the file at once believe its records, and each has one slot for all its processes."""
    machines = [machine(number) for number in (1, 2, 3, 2)]
    machines[0].ask("open")
    machines[0].ask("add")
    assert [each.ask("open") for each in machines[1:]] == [KNOWN] * 3
    assert [each.ask("look") for each in machines] == [KNOWN] * 4
    assert table(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("how", ["at the next opening", "a minute later"])
def test_lost(machine, tmp_path, how):
    """When the last process of a machine was killed, another machine has all counted anew, once."""
    first, second = machine(1), machine(2)
    first.ask("open")
    first.ask("add")
    if how == "a minute later":
        assert second.ask("open") == KNOWN
    first.kill()
    assert second.ask("open" if how == "at the next opening" else "look") == UNKNOWN
    assert table(tmp_path) == [2]


def test_one_of_two_processes_killed(machine):
    """A machine of which a process lives is not lost."""
    first, other, second = machine(1), machine(1), machine(2)
    first.ask("open")
    first.ask("add")
    other.ask("open")
    first.kill()
    assert second.ask("open") == KNOWN
    assert other.ask("end") is None
    assert second.ask("look") == KNOWN


def test_killed_and_started_again(machine):
    """A process that is started again on its machine, before another one notices, believes the records."""
    first = machine(1)
    first.ask("open")
    first.ask("add")
    first.kill()
    assert machine(1).ask("open") == KNOWN
    assert machine(2).ask("open") == KNOWN


def test_locked_by_a_living_machine(machine):
    """Where a dead machine keeps no locks, one whose byte is locked is not lost, however long it does nothing."""
    first, second = machine(1), machine(2)
    first.ask("open")
    first.ask("add")
    assert second.ask("open", NOW + 2 * LOST_AFTER) == KNOWN


@pytest.mark.parametrize("sharing", [Sharing.BY_LOCKS, Sharing.BY_BOTH])
def test_killed(machine, sharing):
    """A machine whose byte is free is lost at once, wherever locks reach."""
    first = machine(1, sharing)
    first.ask("open")
    first.ask("add")
    first.kill()
    assert machine(2, sharing).ask("open") == UNKNOWN


@pytest.mark.parametrize("seconds", [-LOST_AFTER - 1, LOST_AFTER + 1])
def test_locked_without_a_sign_of_life(machine, tmp_path, seconds):
    """Where dead machines may keep locks, one that gave no sign of life for an hour, or only far ahead, is lost."""
    first, second = machine(1, Sharing.BY_BOTH), machine(2, Sharing.BY_BOTH)
    first.ask("open")
    first.ask("add")
    assert second.ask("open", NOW + seconds * 0.9) == KNOWN
    assert second.ask("look", NOW + seconds) == UNKNOWN
    assert table(tmp_path) == [2]


def test_by_age(machine):
    """Where locks say nothing of another machine, one is lost when it gave no sign of life for an hour."""
    first, second = machine(1, Sharing.BY_AGE), machine(2, Sharing.BY_AGE)
    first.ask("open")
    first.ask("add")
    first.kill()
    assert second.ask("open") == KNOWN
    assert second.ask("look", NOW + LOST_AFTER + 1) == UNKNOWN


def test_child(machine, tmp_path):
    """A forked child keeps the slot of its machine after its parent has ended."""
    first, second = machine(1), machine(2)
    first.ask("open")
    first.ask("add")
    child = first.ask("fork")
    try:
        first.ask("end")
        first.kill()
        assert second.ask("open") == KNOWN
        assert table(tmp_path) == [1, 2]
    finally:
        os.kill(child, 9)


def test_alone_and_shared(machine):
    """What one machine has counted as its own is counted anew when several use the file, and the reverse."""
    assert machine(1, Sharing.ALONE).ask("open").counted == 0
    shared = machine(1)
    assert shared.ask("open").counted == 0
    assert machine(1, Sharing.ALONE).ask("open").counted == 0


def test_nothing_to_count(machine, tmp_path):
    """A new file is counted at once where there are no values; beside values it is not."""
    (tmp_path / "values").mkdir()
    assert machine(1).ask("open") == Usage(0, 0, 0)


def test_full_table(machine, tmp_path):
    """A machine that finds no free slot uses the records all the same."""
    first = machine(1)
    first.ask("open")
    first.ask("add")
    with open(tmp_path / "lock", "r+b") as file:
        sign_of_life = (tmp_path / "lock").read_bytes()[MACHINES_AT + 8 :][:8]
        file.seek(MACHINES_AT)
        file.write(b"".join(number.to_bytes(8, "little") + sign_of_life for number in range(1, SLOTS + 1)))
    last = machine(SLOTS + 1, Sharing.BY_AGE)
    assert last.ask("open") == KNOWN
    last.ask("end")
    assert table(tmp_path) == list(range(1, SLOTS + 1))


def test_damaged_table(machine, tmp_path, rng):
    """Whatever stands in the table, it costs one count of all shards."""
    first, second = machine(1), machine(2)
    first.ask("open")
    first.ask("add")
    first.ask("close")
    with open(tmp_path / "lock", "r+b") as file:
        file.seek(MACHINES_AT)
        file.write(rng.randbytes(SLOT * SLOTS))
    assert second.ask("open") == UNKNOWN
    assert table(tmp_path) == [2]


def one_that_goes_round(machine):
    """Three machines: a dead one, which keeps a range; one that has locked another in its place; and a third one."""
    dead, first, second = machine(1), machine(2), machine(3)
    for each in (dead, first, second):
        each.ask("open")
    dead.ask("lock")
    assert first.ask("is_stuck")
    return dead, first, second


def test_range_of_a_dead_machine(machine):
    """A range that stays locked is replaced by another one, which excludes all who have found that out."""
    _, first, second = one_that_goes_round(machine)
    assert not second.ask("try_to_lock")
    first.kill()
    assert second.ask("is_stuck")


def test_range_that_is_free_again(machine):
    """Who went round a range is told when it is free again: others may have locked it itself meanwhile."""
    dead, first, second = one_that_goes_round(machine)
    dead.kill()
    second.ask("lock")
    first.ask("unlock")
    second.ask("unlock")
    assert first.ask("is_stuck")
    first.ask("unlock")
    first.ask("lock")
    assert not first.ask("was_stuck")


def test_one_dead_machine_makes_no_other_suspect_for_long(monkeypatch):
    """For a minute after a range was found to be stuck another one is soon taken for stuck, and no longer."""
    stuck, now = Stuck(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def seconds_until_stuck(offset: int) -> float:
        nonlocal now
        began = now
        while not stuck.is_stuck(offset):
            now += 0.05
        stuck.forget(offset)
        return now - began

    while not stuck.is_stuck(4096):
        now += 0.05
    assert seconds_until_stuck(4104) < 1
    for _ in range(130):  # It stays locked, and in use.
        now += 0.5
        assert stuck.is_stuck(4096)
    assert seconds_until_stuck(4112) >= Stuck.AFTER


def test_fork_while_a_thread_goes_round(machine):
    """A child of a process that has locked another range in the place of one that is stuck unlocks what it locks."""
    dead, first, second = one_that_goes_round(machine)
    dead.kill()
    child = first.ask("lock_in_child")
    try:
        assert second.ask("try_to_lock")
    finally:
        os.kill(child, 9)


def test_lock_file_deleted_while_a_thread_goes_round(machine):
    """A range that was locked by another one in its place is free, once unlocked, also in a new lock file."""
    dead, first, second = machine(1), machine(2), machine(3)
    for each in (dead, first):
        each.ask("open")
    dead.ask("lock")
    assert first.ask("is_stuck")
    first.ask("replace_and_unlock")
    second.ask("open")
    assert second.ask("lock") is None


def test_daemon_bypasses_memory(tmp_path, monkeypatch):
    """A process that has closed all descriptors reads past the memory of its machine all the same."""
    path = str(tmp_path / "lock")
    ledger = Ledger.open(path, sharing=Sharing.BY_LOCKS)
    tried, real = [], fcntl.fcntl

    def note(fd, what, *arguments):
        tried.append(what)
        return real(fd, what, *arguments)

    monkeypatch.setattr(fcntl, "fcntl", note)
    Ledger.open(path, sharing=Sharing.BY_LOCKS)
    assert fcntl.F_SETFL not in tried
    number = ledger.file.fd
    os.dup2(os.open(tmp_path, os.O_RDONLY), number)  # Another file has the number by now.
    again = Ledger.open(path, sharing=Sharing.BY_LOCKS)
    assert again.file is ledger.file
    assert fcntl.F_SETFL in tried
    os.close(number)


def test_range_of_this_machine_alone(machine):
    """Where no other machine uses the file, a range that stays locked is waited for."""
    holder, waiter = machine(1, Sharing.ALONE), machine(1, Sharing.ALONE)
    for each in (holder, waiter):
        each.ask("open")
    holder.ask("lock")
    assert not waiter.ask("try_to_lock")
