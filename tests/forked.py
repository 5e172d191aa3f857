"""
Functions in forked processes: one starts within milliseconds, since all modules are imported already.
"""

from __future__ import annotations

import os
import signal
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

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
