"""
A program for developers, not a test. It does everything at once for as long as it is told, and watches memory,
descriptors, threads and left-over files::

    python tests/soak.py --minutes 60 --directory /mnt/disk

Some processes live all the time, and are measured. Others are killed every second. Now and then the lock file or a
shard is deleted. Beside them, the tests that make random choices (``RANDOM``) run again and again, each time with
another seed; the gate runs them with the same seed always. A failure prints the command that repeats it.

The exit status is 1 if something grew between the second and the last quarter of the time, if a process got a wrong
value or an exception or did not go on, or if a test failed. Needs /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from forked import Forked
from ondisk import left_over
from workload import Workload, in_threads

LASTING, VICTIMS, THREADS = 4, 2, 3
CACHE_SIZE = 2 << 20
#: Seconds between two samples, kills, deletions, and lines.
SAMPLE, KILL, DELETE, LINE = 2.0, 1.0, 10.0, 15.0
#: The tests that make random choices: models, damaged bytes, kills.
RANDOM = [
    "store/test_model.py",
    "faults/test_faulty_model.py",
    "faults/test_damaged_bytes.py::test_random_damage",
    "faults/test_random_kills.py",
    "remote/back/test_model.py",
    "remote/back/test_peers.py",
]
#: A step is a fork with this probability.
FORK = 0.002


class Sample(NamedTuple):
    """
    What a process has.

    :ivar rss: KiB of memory.
    :ivar private: KiB that it shares with no other.
    """

    rss: int
    private: int
    descriptors: int
    threads: int


#: Amounts that may be higher at the end without counting as growth: noise of the allocator, and work in progress.
SLACK = Sample(rss=2048, private=2048, descriptors=8, threads=3)
SLACK_LEFT_OVER = 3 * THREADS * (LASTING + VICTIMS)


def work(_, directory: str, number: int, seed: int) -> None:
    """Runs several threads until the process is killed, and reports violations."""
    load = Workload(f"{directory}/cache", f"{directory}/sources", cache_size=CACHE_SIZE, expiration_time=20)
    load.values.backend.store.failures.report = lambda *_: None  # Failures by deleted files are expected.

    def run(thread: int) -> None:
        rng = random.Random(seed * THREADS + thread)
        name = f"{number}.{thread}"
        while True:
            load.step(rng, name)
            if rng.random() < FORK:
                fork(load, rng, f"{name}.child")
            Path(directory, "progress", name).touch()

    def tell(what: str) -> None:
        with open(f"{directory}/report", "a") as report:
            report.write(f"process {number}, seed {seed}: {what}\n")

    in_threads(THREADS, run, tell)


def fork(load: Workload, rng: random.Random, name: str) -> None:
    """Lets a child run for a few steps while other threads of the parent hold locks."""
    child = os.fork()
    if child == 0:
        try:
            for _ in range(5):
                load.step(rng, name)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        msg = f"a forked child ended with {status}"
        raise RuntimeError(msg)


def measure(pid: int) -> Sample:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    private = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                private += int(line.split()[1])
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(int(status["VmRSS"].split()[0]), private, descriptors, int(status["Threads"]))


def delete_something(base_dir: str, rng: random.Random) -> None:
    if rng.random() < 0.5:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{base_dir}/lock")
    else:
        shutil.rmtree(f"{base_dir}/values/{rng.randrange(256):02x}", ignore_errors=True)


def stalled(directory: str) -> list[str]:
    """Returns the threads of lasting processes that have made no progress for half a minute."""
    names = [f"{number}.{thread}" for number in range(LASTING) for thread in range(THREADS)]
    return [name for name in names if time.time() - os.stat(f"{directory}/progress/{name}").st_mtime > 30]


class RandomTests:
    """
    The tests that make random choices, in a process of their own, again and again with another seed each time.

    :ivar rounds: the number of rounds that have ended well.
    """

    def __init__(self, directory: str, rng: random.Random) -> None:
        self.rounds = 0
        self._log = Path(directory, "tests.log")
        self._temporary = f"{directory}/tests"
        self._rng = rng
        self._start()

    def _start(self) -> None:
        seed = str(self._rng.randrange(1 << 32))
        tests = Path(__file__).parent
        options = ["--seed", seed, "--hypothesis-profile", "soak", "--hypothesis-seed", seed]
        self._command = [sys.executable, "-m", "pytest", *options, *(str(tests / name) for name in RANDOM)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "-q", "-p", "no:cacheprovider", "--basetemp", self._temporary],
                cwd=tests.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def trouble(self) -> list[str]:
        """What a failed round printed, and the command that repeats it. After any other round the next one starts."""
        status = self._process.poll()
        if status:
            return [self._log.read_text(errors="replace"), f"repeat it with: {shlex.join(self._command)}"]
        if status == 0:
            self.rounds += 1
            self._start()
        return []

    def stop(self) -> None:
        # pytest takes the chance to unmount what its tests have mounted.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        self._process.wait()


class Soak:
    """
    One run, and what was measured in it: the samples of each lasting process, and the numbers of left-over files.
    """

    def __init__(self, directory: str, seed: int) -> None:
        self.directory = directory
        self.base_dir = f"{directory}/cache"
        self.rng = random.Random(seed)
        self.samples: list[list[Sample]] = [[] for _ in range(LASTING)]
        self.left_over: list[int] = []
        self.killed = self.deleted = 0
        for name in ("sources", "progress"):
            os.mkdir(f"{directory}/{name}")
        self.lasting = [self.start(number) for number in range(LASTING)]
        self.victims = [self.start(LASTING + number) for number in range(VICTIMS)]
        self.tests = RandomTests(directory, self.rng)

    def start(self, number: int) -> Forked:
        return Forked(work, self.directory, number, self.rng.randrange(1 << 32))

    def run(self, seconds: float) -> None:
        started_at = time.monotonic()
        acts = [(SAMPLE, self.sample), (KILL, self.kill), (DELETE, self.delete), (LINE, self.print_line)]
        due = [started_at + interval for interval, _ in acts]
        while time.monotonic() < started_at + seconds and not self.trouble():
            for number, (interval, act) in enumerate(acts):
                if time.monotonic() >= due[number]:
                    act()
                    due[number] = time.monotonic() + interval
            time.sleep(0.05)

    def stop(self) -> None:
        for process in self.lasting + self.victims:
            process.kill()
        self.tests.stop()

    def sample(self) -> None:
        for process, samples in zip(self.lasting, self.samples, strict=True):
            samples.append(measure(process.pid))
        with contextlib.suppress(OSError):  # Files may disappear while they are listed.
            self.left_over.append(len(left_over(self.base_dir)))

    def kill(self) -> None:
        number = self.rng.randrange(VICTIMS)
        self.victims[number].kill()
        self.victims[number] = self.start(LASTING + number)
        self.killed += 1

    def delete(self) -> None:
        delete_something(self.base_dir, self.rng)
        self.deleted += 1

    def print_line(self) -> None:
        most = [max(values) for values in zip(*(samples[-1] for samples in self.samples), strict=True)]
        what = ", ".join(f"{name} {value}" for name, value in zip(Sample._fields, most, strict=True))
        left = self.left_over[-1] if self.left_over else 0
        done = f"{self.killed} killed, {self.deleted} deleted, {self.tests.rounds} rounds of tests"
        print(f"{done}; at most: {what}; left over {left}", flush=True)

    def trouble(self) -> list[str]:
        report = Path(self.directory, "report")
        found = [report.read_text()] if report.exists() else []
        ended = [number for number, process in enumerate(self.lasting) if not process.is_alive()]
        found += [f"process {number} has ended" for number in ended]
        found += self.tests.trouble()
        return found + ([f"not going on: {names}"] if self.samples[0] and (names := stalled(self.directory)) else [])

    def growth(self) -> Iterator[str]:
        """Returns what is higher in the last quarter than in the second."""
        for number, samples in enumerate(self.samples):
            for name, slack, values in zip(Sample._fields, SLACK, zip(*samples, strict=True), strict=True):
                yield from grown(f"{name} of process {number}", list(values), slack)
        yield from grown("left-over files", self.left_over, SLACK_LEFT_OVER)


def grown(what: str, values: list[int], slack: int) -> Iterator[str]:
    quarter = len(values) // 4
    if quarter:
        before = statistics.median(values[quarter : 2 * quarter])
        after = statistics.median(values[3 * quarter :])
        if after > before * 1.05 + slack:
            yield f"{what} grew from {before} to {after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--directory", help="on the filesystem to be used")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="soak-", ignore_cleanup_errors=True) as directory:
        soak = Soak(directory, arguments.seed)
        try:
            soak.run(arguments.minutes * 60)
            trouble = soak.trouble() or list(soak.growth())
        finally:
            soak.stop()
    print("\n".join(trouble) or "nothing grew")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
