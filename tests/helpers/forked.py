"""
Helper: functions in forked processes. One starts within milliseconds, since all modules are imported already.

:class:`Forked` is talked with, and killed, and may :func:`obey` meanwhile; :class:`Child` makes one call that must
succeed; :func:`in_child` makes one that may be killed underway.
"""

from __future__ import annotations

import os
import signal
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from patience import PATIENCE

T = TypeVar("T")

# The parent's ends of the pipes to all children. A child closes those it inherits, or none would see the parent end.
_parents_ends: weakref.WeakSet[Connection] = weakref.WeakSet()


class Forked:
    """
    ``work(pipe, *arguments)`` in a forked process, which ends with status 0 if that returns, else with 1.

    :ivar pipe: the other end of the child's pipe; reading from it raises EOFError once the child has ended.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self.status: int | None = None
        self.pipe, childs_end = Pipe()
        _parents_ends.add(self.pipe)
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, childs_end, arguments)
        childs_end.close()

    def ask(self, *message: Any) -> Any:
        """The child's answer to a message."""
        self.pipe.send(message)
        return self.pipe.recv()

    def is_alive(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def wait(self) -> int:
        """The status with which the child ends: negative, if by a signal."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def _run(work: Callable[..., None], pipe: Connection, arguments: tuple[Any, ...]) -> None:
    status = 1
    try:
        for end in _parents_ends:
            end.close()
        work(pipe, *arguments)
        status = 0
    except EOFError:  # The parent has ended.
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Child(Forked):
    """
    One call in a forked process, with all that the parent had at that moment.

    :param ids: user, group and list of supplementary groups that the process takes on first.
    """

    def __init__(self, call: Callable[[], Any], ids: tuple[int, int, list[int]] | None = None) -> None:
        def work(pipe: Connection) -> None:
            # pytest-timeout's handler would go on with the tests, in the child.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            if ids is not None:
                os.setgroups(ids[2])
                os.setgid(ids[1])
                os.setuid(ids[0])
            _report(call, pipe)

        super().__init__(work)

    def result(self) -> Any:
        """What the call returned. An exception that it raised, or a child that hangs, fails the test."""
        found = _reported(self)
        assert found, f"the child ended with {self.status} and without a report: it hung, or was killed"
        return found[0]


def obey(pipe: Connection, make: Callable[..., object], *arguments: Any) -> None:
    """Work for :class:`Forked`: calls methods of an object of its own, as it is told, and answers what they return."""
    obeying = make(*arguments)
    while True:
        name, *said = pipe.recv()
        pipe.send(getattr(obeying, name)(*said))


def in_child(function: Callable[[], T]) -> T | None:
    """Returns the result of a function in a forked child, or None if the child was killed during the call."""

    def work(pipe: Connection) -> None:
        _report(function, pipe)
        # Not `os._exit`, where coverage would write a file for each of thousands of children.
        os.kill(os.getpid(), signal.SIGKILL)

    found = _reported(Forked(work))
    return found[0] if found else None


def _report(call: Callable[[], Any], pipe: Connection) -> None:
    try:
        report = (call(), "")
    except BaseException:  # It is raised again in the parent.
        report = (None, traceback.format_exc())
    pipe.send(report)


def _reported(child: Forked) -> list[Any]:
    """Returns the result of a call as a list, which is empty if its process ended before."""
    try:
        result, trouble = child.pipe.recv()
    except (EOFError, ConnectionResetError):
        child.wait()
        return []
    child.wait()
    if trouble:
        raise AssertionError(trouble)
    return [result]


class Gate:
    """
    A gate between parent and child: closed until one of them opens it, once.
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
