"""
Which processes live, and names that no other process uses.

A process has a random name. While it writes to a cache, it keeps the byte of that name locked in the lock file, so that
others can tell whether it will finish a file that has its name.

Crash. The kernel frees the byte when the process ends, in any way.

Limits. Where locks cannot be asked for, every process is believed to live.
"""

from __future__ import annotations

import itertools
import os

from dogpile_filesystem.lockfile.file import LockFile
from dogpile_filesystem.lockfile.format import process_offset

#: Characters of the name of a process, with which all names that it makes begin.
_NAME = 16


class Presence:
    """
    This process, as others see it: the one :data:`presence`.

    Concurrency. Any number of threads may use it without a lock.

    :ivar name: of the process, 16 hexadecimal digits. A child made by ``fork`` has another one than its parent.
    :ivar unfinished: the names under which this process is writing something.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start anew, in a child that must not go on with its parent's names."""
        self.name = os.urandom(_NAME // 2).hex()
        self.unfinished: set[str] = set()
        self._count = itertools.count()

    def unique(self) -> str:
        """A part of a file's name that no process uses a second time."""
        return f"{self.name}{next(self._count):x}"

    def show(self, file: LockFile) -> None:
        """
        Show to all processes that use a lock file that this one lives, until it ends.

        :raises OSError: the file cannot be locked.
        """
        if file.shown_as != self.name:
            file.show(self.name)

    def is_left_over(self, unique_part: str, file: LockFile) -> bool:
        """Whether nobody will finish what is being written under a name: its process has ended, or forgot it."""
        process = unique_part[:_NAME]
        if process == self.name:
            return unique_part not in self.unfinished
        return not is_alive(process, file)


def is_alive(process: str, file: LockFile) -> bool:
    """Whether a process of that name lives. Where locks cannot be asked for: yes."""
    return file.borrow(process_offset(process), 1).is_held(otherwise=True)


presence = Presence()
os.register_at_fork(after_in_child=presence.renew)
