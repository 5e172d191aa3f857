"""
Several processes that work off one directory, with one state.
"""

from __future__ import annotations

import os
import time

import pytest
from forked import Forked
from patience import PATIENCE

from dogpile_filesystem.poller import FilePoller, INotifyPoller

PROCESSES = 4
FILES = 20_000
#: Kills of one run, one each 50 ms where the machine is fast enough.
KILLS = 60


class Inbox:
    """A directory, its state, and what was handled by which process."""

    def __init__(self, directory):
        self.root, self.state, self.log = (f"{directory}/{name}" for name in ("root", "state", "log"))
        os.mkdir(self.root)
        os.mkdir(self.log)
        with FilePoller(self.root, state=self.state, exclude="stop") as poller:
            assert poller.get_new_events() == []

    def work(self, pipe, kind):
        """Handle events until the file ``stop`` is there and nothing is left."""
        log = os.open(f"{self.log}/{os.getpid()}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        with kind(self.root, state=self.state, exclude="stop") as poller:
            self.handle(poller, log)
        pipe.send("done")

    def handle(self, poller, log):
        while True:
            is_last = os.path.exists(f"{self.root}/stop")
            events = poller.get_new_events(limit=100)
            for subject, event in events:
                os.write(log, f"{os.path.basename(subject)} {event}\n".encode())
            if is_last and not events and poller.stats().pending == 0:
                return

    def handled(self):
        lines = []
        for name in os.listdir(self.log):
            with open(f"{self.log}/{name}") as log:
                lines += log.read().splitlines()
        return lines


@pytest.fixture
def inbox(tmp_path):
    return Inbox(tmp_path)


def deliver(inbox, between=lambda _: None):
    for number in range(FILES):
        os.close(os.open(f"{inbox.root}/{number}", os.O_CREAT | os.O_WRONLY))
        between(number)
    os.close(os.open(f"{inbox.root}/stop", os.O_CREAT | os.O_WRONLY))


@pytest.mark.parametrize("kind", [FilePoller, INotifyPoller], ids=["scan", "hints"])
def test_exactly_once(inbox, kind):
    """Without kills, each event goes to exactly one of the processes, while files are still coming."""
    workers = [Forked(inbox.work, kind) for _ in range(PROCESSES)]
    deliver(inbox)
    assert [worker.wait() for worker in workers] == [0] * PROCESSES
    assert sorted(inbox.handled()) == sorted(f"{number} created" for number in range(FILES))


def test_at_least_once(inbox, rng):
    """With kills at random moments, each event is handled by at least one of the processes."""
    workers = [Forked(inbox.work, INotifyPoller) for _ in range(PROCESSES)]
    killed = 0

    def kill():
        nonlocal killed
        number = rng.randrange(PROCESSES)
        workers[number].kill()
        workers[number] = Forked(inbox.work, INotifyPoller)
        killed += 1

    deliver(inbox, lambda number: number % (2 * FILES // KILLS) or kill())
    deadline = time.monotonic() + PATIENCE
    while killed < KILLS and any(worker.is_alive() for worker in workers):
        assert time.monotonic() < deadline
        kill()
    assert [worker.wait() for worker in workers] == [0] * PROCESSES
    expected = {f"{number} created" for number in range(FILES)}
    handled = inbox.handled()
    assert set(handled) == expected
    # At most what was in the hands of the killed ones came twice.
    assert len(handled) - FILES <= 100 * killed
