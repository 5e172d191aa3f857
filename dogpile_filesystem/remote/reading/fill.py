"""
Filling: one thread per process fetches the files that were opened, going round all of them, a request for each in turn.

It goes on when the readers have gone. A block that is there is passed over; the fetch of a reader is waited for.

Concurrency. Any number of threads may add files. The thread ends when there is nothing left to fetch.

Crash. What was fetched stays; whoever opens the file again goes on with the rest.

Limits. The thread is a daemon: it does not keep the process from ending, and a request on its way is given up then. A
file that changes, whose source fails, or that cannot be kept is given up. A file that is larger than the cache is not
filled: it would evict itself.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.blocks import Blocks

#: Bytes of one file that are fetched before it is the next one's turn.
_TURN = 4 << 20


class Filler:
    """
    The filling of this process: the one :data:`filler`.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew, in a child: its parent's thread goes on in the parent."""
        # Guards the table and the thread.
        self._guard = threading.Lock()
        self._jobs: OrderedDict[tuple[int, bytes], tuple[Blocks, Iterator[bool]]] = OrderedDict()
        self._thread: threading.Thread | None = None
        # Whose turn it is: it is not in the table meanwhile.
        self._current: tuple[int, bytes] | None = None

    def add(self, blocks: Blocks, version: Version) -> None:
        """Have a version fetched whole, unless that is being done already."""
        key = id(blocks), version.key(0)
        with self._guard:
            if key == self._current or key in self._jobs or not version.is_kept or not blocks.fits(version):
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="dogpile_filesystem fill", daemon=True)
                try:
                    thread.start()  # It waits for the guard.
                except RuntimeError:  # The interpreter ends.
                    return
                self._thread = thread
            self._jobs[key] = blocks, _turns(blocks, version)
            blocks.counter.fills_started += 1

    def is_idle(self) -> bool:
        """Whether there is nothing left to fetch."""
        with self._guard:
            return self._thread is None

    def _run(self) -> None:
        while True:
            with self._guard:
                if not self._jobs:
                    self._thread = None
                    return
                key, (blocks, turns) = self._jobs.popitem(last=False)
                self._current = key
            is_done = _take_turn(blocks, turns)
            with self._guard:
                self._current = None
                if not is_done:
                    self._jobs[key] = blocks, turns


def _take_turn(blocks: Blocks, turns: Iterator[bool]) -> bool:
    """Do one turn of a file; whether it was the last one."""
    try:
        is_kept = next(turns)
    except StopIteration:
        blocks.counter.fills_finished += 1
        return True
    except Exception:  # Of the source. A reader that comes to the missing part gets it raised.
        is_kept = False
    if not is_kept:
        blocks.counter.fills_given_up += 1
    return not is_kept


def _turns(blocks: Blocks, version: Version) -> Iterator[bool]:
    """Fetch what is missing, a request in each turn; whether it could be kept."""
    count = max(1, min(_TURN, blocks.largest_request) // version.block_size)
    number = 0
    while number < version.blocks:
        if blocks.has(version, number):
            number += 1
            continue
        fetched = blocks.fetch(version, number, count)
        if fetched is not None and not fetched.is_kept:
            yield False
        number += 1
        yield True


filler = Filler()
os.register_at_fork(after_in_child=filler.reset)
