"""
Nothing that was written back is lost, whatever is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")

from backed_workload import Journal, content, number_of, work  # noqa: E402 - it needs fsspec

from dogpile_filesystem.maintenance import check  # noqa: E402 - likewise
from dogpile_filesystem.remote import UploadError  # noqa: E402 - likewise
from dogpile_filesystem.store import Store  # noqa: E402 - likewise

WORKERS = 8
#: Bytes of a content that tell its number.
HEAD = 12
WEATHER = {"fail": 0.05, "break_off": 0.03, "lose": 0.03, "truncate": 0.03}
# A process that is forked begins at once, where one that is spawned imports for a second.
forked = multiprocessing.get_context("fork")


@pytest.fixture
def kills(request):
    return 1000 if request.config.getoption("--full") else 30


def test_kills(tmp_path, rng, kills):
    """After random kills, all that was accepted is on the source, nothing older came after it, and nothing is left."""
    source = backed.Flaky(tmp_path)
    source.control.set_weather(**WEATHER)
    workers = [start(tmp_path, number) for number in range(WORKERS)]
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0.02, 0.15))  # Not for something to happen: to kill at any point of it.
            number = rng.randrange(WORKERS)
            kill(workers[number])
            assert not (tmp_path / "wrong").exists(), (tmp_path / "wrong").read_text()
            workers[number] = start(tmp_path, number)
    finally:
        for worker in workers:
            kill(worker)
    assert not (tmp_path / "wrong").exists(), (tmp_path / "wrong").read_text()
    fs = source.make(str(tmp_path / "cache"), max_uploads=0)
    flush_in_bad_weather(fs)
    source.control.set_weather()
    fs.flush()
    assert fs.unsent() == []
    journals = [Journal(tmp_path / f"journal.{number}") for number in range(WORKERS)]
    verify(source, journals)
    assert sum(journal.count for journal in journals) > kills, "the workers did something between the kills"
    assert os.listdir(tmp_path / "cache" / "unsent") == []
    store = Store(str(tmp_path / "cache"))
    store.prune()
    assert check(store).ok


def start(directory: Path, number: int):
    worker = forked.Process(target=work, args=(str(directory), number), daemon=True)
    worker.start()
    return worker


def kill(worker) -> None:
    with contextlib.suppress(ProcessLookupError):  # It ended because something was wrong.
        os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def flush_in_bad_weather(fs) -> None:
    for _ in range(3):
        try:
            fs.flush()
        except UploadError:
            continue
        else:
            return


def verify(source, journals) -> None:
    files = source.files()
    expected = set()
    for journal in journals:
        states = [journal.state, *({**journal.state, **state} for state in journal.doubt)]
        found = {}
        for path in journal.history:
            found[path] = number_of(files[path]) if path in files else None
            assert path not in files or files[path] == content(found[path]), f"{path} is mixed"
        possible = [{path: state.get(path) for path in journal.history} for state in states]
        assert found in possible, f"lost: {differences(found, possible)}"
        expected |= {path for path, number in found.items() if number is not None}
        for path, numbers in journal.history.items():
            verify_order(path, numbers, source.control.changes(path))
    assert set(files) == expected, "nothing else is left on the source"


def differences(found, possible):
    return [{path: (found[path], state[path]) for path in found if found[path] != state[path]} for state in possible]


def verify_order(path, numbers, changes) -> None:
    """What came to a path on the source is in the order in which it was accepted. Each may come more than once."""
    at = 0
    for change in changes:
        if len(change.head) > HEAD:  # Otherwise it was cut off.
            number = number_of(change.head)
            assert number in numbers[at:], f"{path}: {number} came after newer ones, {numbers}"
            at = numbers.index(number, at)
