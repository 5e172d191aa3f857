"""
Children of a test: forked ones that report what a call returns, and what those of multiprocessing are to do.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

from dogpile.cache import make_region

#: Seconds after which a child is taken for one that hangs.
PATIENCE = 30


class Child:
    """
    A forked child that makes one call.

    :param call: made in the child, with all that the parent had at that moment.
    :param ids: user, group and list of supplementary groups that the child takes on first.
    """

    def __init__(self, call: Callable[[], Any], ids: tuple[int, int, list[int]] | None = None) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _run(call, ids, writing)
        os.close(writing)
        self._reading = reading

    def result(self) -> Any:
        """What the call returned. An exception that it raised, or a child that hangs, fails the test."""
        with open(self._reading, "rb") as reading:
            report = reading.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert report, f"the child ended with {status} and without a report: it hung, or was killed"
        succeeded, result = pickle.loads(report)
        assert succeeded, result
        return result


class Gate:
    """
    What parent and child wait for each other with: closed until one of them opens it, once.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def open(self) -> None:
        os.write(self._writing, b"x")

    def wait(self) -> None:
        assert os.read(self._reading, 1)

    def __del__(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


def _run(call: Callable[[], Any], ids: tuple[int, int, list[int]] | None, writing: int) -> None:
    report = b""
    # pytest-timeout's handler would go on with the tests, in the child.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE)
    try:
        if ids is not None:
            os.setgroups(ids[2])
            os.setgid(ids[1])
            os.setuid(ids[0])
        report = pickle.dumps((True, call()))
    except BaseException:
        report = pickle.dumps((False, traceback.format_exc()))
    finally:
        with contextlib.suppress(OSError), open(writing, "wb") as pipe:
            pipe.write(report)
        os._exit(0)


def create_all(base_dir: str, log: str, keys: list[str]) -> None:
    """Ask a region of its own for every key, and log each that this process creates."""

    def create(key: str) -> str:
        with open(log, "a") as file:
            file.write(key + "\n")
        time.sleep(0.005)
        return f"value of {key}"

    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    for key in keys:
        assert region.get_or_create(key, create, creator_args=((key,), {})) == f"value of {key}"
