"""
The fixtures that the tests share: directories, a clock that is moved by hand, stores, and other processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cases
import ondisk
import pytest

from dogpile_filesystem.store.store import Store


class Clock:
    """
    A clock that stands until it is moved.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def base_dir(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def make_store(base_dir, clock):
    """
    Makes stores on one directory.
    """

    def make(**arguments):
        return Store(base_dir, **{"clock": clock, **arguments})

    return make


@pytest.fixture
def files(base_dir):
    """
    Lists the files under values/ by the last part of their names.
    """
    return lambda: {os.path.basename(path): path for path in ondisk.files(f"{base_dir}/values")}


@pytest.fixture
def usage_on_disk(base_dir):
    """
    What lies on the disk, counted without the ledger.
    """
    return lambda: ondisk.usage_on_disk(base_dir)


@pytest.fixture
def scratch():
    """
    A directory for thousands of cases.
    """
    with cases.scratch() as directory:
        yield directory


@pytest.fixture
def spawn():
    """
    Starts Python programs, given as text, in processes of their own. Those still running at the end are killed.
    """
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def open_descriptors(tmp_path):
    """
    Counts the descriptors of this process that lead below the test's own directory, or to what was deleted there: those
    of earlier tests may go at any time.
    """
    if not Path("/proc/self/fd").exists():
        pytest.skip("counts descriptors in /proc")

    def leads_below(number):
        try:
            return os.readlink(f"/proc/self/fd/{number}").startswith(str(tmp_path))
        except FileNotFoundError:  # The descriptor of the listing itself.
            return False

    return lambda: sum(map(leads_below, os.listdir("/proc/self/fd")))
