"""
Helper: a process that writes, replaces, renames and removes files of its own at random, over a flaky source, and keeps
a journal of what was accepted. It may be killed at any time. The next one with its number goes on.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from backed import CachedFileSystem, Flaky

_NAMES = 5
_LARGEST = 150_000

#: A path and the number of its content; None: it is not there.
State = dict[str, int | None]


def content(number: int) -> bytes:
    """The content of a number: no other one begins like it."""
    rng = random.Random(number)
    return b"%012d " % number + rng.randbytes(rng.choice([0, 10, 5_000, _LARGEST]))


def number_of(data: bytes) -> int:
    return int(data[:12])


class Journal:
    """
    What a worker did.

    :ivar state: what is where, as far as is known.
    :ivar doubt: other states that are possible, since the last operation did not end.
    :ivar history: the contents that each path may have had, in their order.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state: State = {}
        self.doubt: list[State] = []
        self.history: dict[str, list[int]] = {}
        self.count = 0
        if path.exists():
            for line in path.read_text().splitlines():
                self._apply(json.loads(line))

    def note(self, *event: object) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, json.dumps(event).encode() + b"\n")
        os.close(fd)
        self._apply(json.loads(json.dumps(event)))

    def _apply(self, event: list) -> None:
        what, *arguments = event
        self.count += 1
        if what == "begin":
            self.doubt = [state for state in arguments[0] if state != self.state]
            for state in self.doubt:
                for path, number in state.items():
                    if number is not None and self.state.get(path) != number:
                        self.history.setdefault(path, []).append(number)
        elif what == "is":
            self.state, self.doubt = {**self.state, **arguments[0]}, []


class Worker:
    """
    :param number: of the worker.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.journal = Journal(directory / f"journal.{number}")
        self.fs: CachedFileSystem = Flaky(directory).make(
            str(directory / "cache"), write_after=0.02, max_uploads=2, lock_timeout=30
        )
        self.rng = random.Random(f"{number} {self.journal.count}")
        self.names = [f"w{number}/{name}" for name in range(_NAMES)]

    def run(self) -> None:
        while True:
            if self.journal.doubt:
                self.find_out()
            self.step()

    def find_out(self) -> None:
        """See what became of an operation that did not end."""
        paths = {path for state in self.journal.doubt for path in state}
        found = {path: self.read(path) for path in paths}
        before = {path: self.journal.state.get(path) for path in paths}
        possible = [before, *({**before, **state} for state in self.journal.doubt)]
        assert found in possible, f"found {found}, possible was {possible}"
        self.journal.note("is", found)

    def read(self, path: str) -> int | None:
        """The number of what is at a path."""
        while True:
            try:
                data = self.fs.cat_file(path)
            except FileNotFoundError:
                return None
            except OSError:  # The source's weather is bad.
                continue
            assert data == content(number_of(data)), f"{path} is mixed"
            return number_of(data)

    def step(self) -> None:
        path, other = self.rng.sample(self.names, 2)
        now = self.journal.state.get(path)
        choice = self.rng.random()
        if choice < 0.15:
            found = self.read(path)
            assert found == now, f"found {found} at {path}, and not {now}"
        elif now is None or choice < 0.6:
            new = self.number * 10**9 + self.journal.count
            self.change([{path: new}], lambda: self.fs.pipe_file(path, content(new)))
        elif choice < 0.8:
            self.change([{path: None}], lambda: self.fs.rm(path))
        else:
            self.change([{other: now}, {path: None, other: now}], lambda: self.fs.mv(path, other))

    def change(self, states: list[State], function) -> None:
        self.journal.note("begin", states)
        try:
            function()
        except OSError:
            self.find_out()  # What became of it, only a look tells.
        else:
            self.journal.note("is", states[-1])


def work(directory: str, number: int) -> None:
    """Run until killed. What must not be found is told in a file."""
    try:
        Worker(Path(directory), number).run()
    except BaseException as error:
        with open(f"{directory}/wrong", "a") as file:
            file.write(f"{number}: {error!r}\n")
        raise
