"""
The fixtures that the tests share: directories, a clock that is moved by hand, stores, and other processes. Also the
rules for all tests: the folder gives the marker, random choices repeat, and the gate accepts few reasons to skip.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import cases
import hypothesis
import ondisk
import pytest

from dogpile_filesystem.maintenance import check
from dogpile_filesystem.store.store import Store

TESTS = Path(__file__).parent
#: The marker of all tests in a folder.
MARKERS = {
    "faults": "faults",
    "processes": "stress",
    "servers": "servers",
    "remote_stores": "remote",
    "machines": "machines",
}
#: The gate sets this variable. A test that is skipped then fails, unless one of `ACCEPTED` is in the reason.
MUST_NOT_SKIP = "TESTS_MUST_NOT_SKIP"
#: What no installation mends, and why.
ACCEPTED = {
    "dogpile.cache ships its suites from 1.3 on": "the oldest supported release is tested without them",
    "needs to be root": "the user decides who runs the tests",
    "cannot mount a filesystem here": "the kernel or the container refuses to",
    "cannot unshare mounts here": "the kernel or the container refuses to",
    "cannot make namespaces here": "the kernel or the container refuses to",
    "needs FUSE": "the kernel or the container has none",
    "user-mode Linux is not there for": "another architecture",
    "counts descriptors in /proc": "another operating system",
    "needs a second filesystem at /dev/shm": "another operating system",
}

# A test gives the same result each time that it runs. tests/soak.py tries random examples.
hypothesis.settings.register_profile("gate", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("soak", derandomize=False, deadline=None, print_blob=True, database=None)
hypothesis.settings.load_profile("gate")


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=1, help="of the tests that make random choices (default: 1)")
    parser.addoption("--full", action="store_true", help="the tests of cached files at their full length")


def pytest_ignore_collect(collection_path, config):
    """A folder of tests that are not to run is not even imported: what they need is installed elsewhere."""
    marker, wanted = MARKERS.get(collection_path.name), config.option.markexpr
    first = wanted.partition(" and ")[0]
    is_other = first in MARKERS.values() and first != marker
    return True if marker and (is_other or f"not {marker}" in wanted) else None


def pytest_collection_modifyitems(items):
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in MARKERS:
            item.add_marker(MARKERS[folder])


def pytest_report_header():
    return f"skipped tests fail, unless the reason is accepted: {MUST_NOT_SKIP} is set" if must_not_skip() else None


def must_not_skip():
    return bool(os.environ.get(MUST_NOT_SKIP))


def fail_if_skipped(report):
    if must_not_skip() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(accepted in reason for accepted in ACCEPTED):
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid} must not be skipped in the gate. {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return fail_if_skipped((yield))


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
def seed(request):
    """
    The seed of a test that makes random choices. pytest prints it when the test fails.
    """
    number = request.config.getoption("--seed")
    print(f"pytest --seed {number}")
    return number


@pytest.fixture
def rng(seed):
    return random.Random(seed)


@pytest.fixture
def base_dir(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture(autouse=True)
def stores_made(request):
    """
    The directory and the arguments of each store that ``make_store`` made. When the test ends, a check of the directory
    must find nothing wrong, unless the test has the marker ``leaves_damage``.
    """
    # Every test uses it, so pytest sets it up first and tears it down last, when nothing is patched any more.
    made: list[tuple[str, dict[str, Any]]] = []
    yield made
    if made and request.node.get_closest_marker("leaves_damage") is None:
        assert_nothing_is_wrong(*made[-1])


@pytest.fixture
def make_store(base_dir, clock, stores_made):
    """
    Makes stores on one directory, which know of each other as little as those of two processes do. The directory is
    checked at the end: see ``stores_made``.
    """

    def make(**arguments):
        # Stores with one clock would share what they know of the directory.
        arguments = {"clock": lambda: clock.now, **arguments}
        stores_made.append((base_dir, arguments))
        return Store(base_dir, **arguments)

    return make


def assert_nothing_is_wrong(base_dir, arguments):
    """
    Fails if a new store on a directory finds something wrong there, with the arguments that the last store had.
    """
    now = arguments["clock"]()
    report = check(Store(base_dir, **{**arguments, "clock": lambda: now}))
    assert report.ok, f"the test leaves a cache that is not whole: {report}"


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
