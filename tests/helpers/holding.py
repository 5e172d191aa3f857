"""
Helper: a mutex of a key, in this process and in others, and calls that have to wait for it.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import Any

from patience import PATIENCE

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.lockfile.file import open_lock_file
from dogpile_filesystem.lockfile.mutex import KeyMutex
from dogpile_filesystem.lockfile.statistics import Statistics

OFFSET = 1 << 62
COUNTS = Failures(""), Statistics(Failures(""))

#: The beginning of programs that use mutexes.
MUTEXES = """
    import os, random, sys, threading, time
    from dogpile_filesystem.failures import Failures
    from dogpile_filesystem.lockfile.file import open_lock_file
    from dogpile_filesystem.lockfile.mutex import KeyMutex
    from dogpile_filesystem.lockfile.statistics import Statistics

    path, offset = sys.argv[1], int(sys.argv[2])
    failures = Failures("")

    def make_mutex(offset=offset):
        return KeyMutex(path, lambda _: open_lock_file(path), offset, None, failures, Statistics(failures))
"""

HOLDER = (
    MUTEXES
    + """
    mutex = make_mutex()
    assert mutex.acquire()
    print("held", flush=True)
    sys.stdin.readline()
    mutex.release()
    print("released", flush=True)
    sys.stdin.readline()
"""
)


def mutex_of(path: str, offset: int = OFFSET, lock_timeout: float | None = None) -> KeyMutex:
    """The mutex at an offset of a lock file."""
    return KeyMutex(path, lambda _: open_lock_file(path), offset, lock_timeout, *COUNTS)


def go_on(process: subprocess.Popen[str]) -> None:
    """Let a process go on that reads a line."""
    process.stdin.write("\n")
    process.stdin.flush()


def must_block(call: Callable[[], Any]) -> Callable[..., Any]:
    """
    Run ``call`` in a thread that has to wait. Returns a function that waits for its end and gives its result.
    """
    result = []
    thread = threading.Thread(target=lambda: result.append(call()), daemon=True)
    thread.start()
    # A slow machine makes these checks weaker, and never makes them fail: the thread is alive as long as it must wait.
    thread.join(0.05)
    assert thread.is_alive(), "it did not block"

    def finish(*, but_not_yet: bool = False) -> Any:
        thread.join(0.05 if but_not_yet else PATIENCE)
        assert thread.is_alive() is but_not_yet
        return None if but_not_yet else result[0]

    return finish
