"""
Processes that work on one directory and are killed at random moments.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import time

import disks
import pytest
from forked import Forked, in_child
from ondisk import difference
from patience import PATIENCE
from workload import KEYS, Workload, in_threads

from dogpile_filesystem.layout import BLOCK, FILE, VALUE
from dogpile_filesystem.store.store import Store

#: Kills, one each 100 ms where the machine is fast enough.
KILLS = 500
PROCESSES, THREADS = 8, 3
CACHE_SIZE = 256 * BLOCK


@pytest.fixture
def directory(tmp_path):
    """
    A filesystem of its own, whose free space is exact at every instant. The second item is False if there is none.
    """
    with contextlib.ExitStack() as stack:
        try:
            path, is_exact = stack.enter_context(disks.tmpfs(tmp_path, "size=64m")).path, True
        except pytest.skip.Exception:
            path, is_exact = tmp_path, False
        yield str(path), is_exact


class Progress:
    """
    How many steps each thread of each process has done, in shared memory, and whether to continue.
    """

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, 8 * (1 + PROCESSES * THREADS))).cast("Q")

    def step(self, process: int, thread: int) -> None:
        self._memory[1 + process * THREADS + thread] += 1

    def stop(self) -> None:
        self._memory[0] = 1

    def is_over(self) -> bool:
        return bool(self._memory[0])

    def steps(self) -> list[int]:
        return list(self._memory[1:])


def work(_, directory: str, report: str, number: int, seed: int, progress: Progress) -> None:
    """Runs several threads until the process is killed or the test ends, and reports violations."""
    load = Workload(f"{directory}/cache", f"{directory}/sources", cache_size=CACHE_SIZE, expiration_time=5)
    parent = os.getppid()  # If the test itself is killed, nobody stops this process.

    def tell(what: str) -> None:
        with open(report, "a") as file:
            file.write(f"process {number}, seed {seed}: {what}\n")

    def run(thread: int) -> None:
        rng = random.Random(seed * THREADS + thread)
        while not progress.is_over() and os.getppid() == parent:
            load.step(rng, f"{number}.{thread}")
            progress.step(number, thread)

    in_threads(THREADS, run, tell)
    for region in (load.values, load.files):
        unexpected = set(region.backend.store.failures.counts) - {"no room"}
        if unexpected:
            tell(f"failures: {unexpected}")


def used(directory: str) -> int:
    found = os.statvfs(directory)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def all_go_on(progress: Progress) -> bool:
    """Whether each thread of each process comes one step further. None may wait for ever."""
    before, give_up_at = progress.steps(), time.monotonic() + PATIENCE
    while time.monotonic() < give_up_at:
        if all(now > then for now, then in zip(progress.steps(), before, strict=True)):
            return True
        time.sleep(0.01)
    return False


def state_at_the_end(base_dir: str) -> list[str]:
    """Returns what is wrong after one `prune`, once no process works any more."""
    store = Store(base_dir, cache_size=CACHE_SIZE, expiration_time=5)
    store.prune()
    found = difference(store.usage(), base_dir)
    if store.usage().size > CACHE_SIZE:
        found.append(f"over the bound: {store.usage()}")
    return found + [key for key in KEYS for kind in (VALUE, FILE) if store.mutex(kind, key.encode()).locked()]


def test_random_kills(directory, tmp_path, rng):
    """
    While one of 8 processes after the other is killed, nobody gets a wrong value or an exception, the bound holds at
    every instant, nobody waits for the dead; and at the end the ledger equals the disk, nothing is left over or locked.
    """
    path, is_exact = directory
    os.makedirs(f"{path}/sources")
    report, progress = tmp_path / "report", Progress()

    def start(number):
        return Forked(work, path, str(report), number, rng.randrange(1 << 32), progress)

    workers = [start(number) for number in range(PROCESSES)]
    killed = most = steps = 0
    try:
        kill_at = time.monotonic()
        # The cache has to fill, however slow the machine is.
        while (killed < KILLS or (is_exact and most <= CACHE_SIZE // 2)) and not report.exists():
            most = max(most, used(path))
            if time.monotonic() >= kill_at and sum(progress.steps()) > steps:
                kill_at, steps = time.monotonic() + 0.1, sum(progress.steps())
                number = rng.randrange(PROCESSES)
                workers[number].kill()
                workers[number] = start(number)
                killed += 1
            time.sleep(0.002)
        goes_on = all_go_on(progress)
        progress.stop()
        ends = [worker.wait() for worker in workers] if goes_on else []
    finally:
        for worker in workers:
            worker.kill()
    assert not report.exists(), report.read_text()
    assert goes_on, f"after {killed} kills, somebody does not go on"
    assert ends == [0] * PROCESSES
    assert in_child(lambda: state_at_the_end(f"{path}/cache")) == []
    if is_exact:
        # Besides the cache there are one block of source per thread, the lock file, which only grows, and the tag.
        lock_file = os.stat(f"{path}/cache/lock").st_blocks * 512
        assert most <= CACHE_SIZE + lock_file + (PROCESSES * THREADS + 1) * BLOCK
