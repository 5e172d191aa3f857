"""
Which processes live, and names that no other process uses.

Each process that writes locks a byte of the lock file as long as it lives. The name of a process is the beginning of
the names of everything that it writes. So a file that nobody will finish is recognised at once.
"""

from __future__ import annotations

import itertools
import os

from dogpile_filesystem.lockfile.ledger import Ledger


class Unique:
    """
    Names that no other process uses: a random number of the process and a count. There is one: :data:`unique`.

    :ivar process: the first 16 characters of all of them.
    :ivar unfinished: the names under which this process is writing something.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start anew, in a child that must not go on with its parent's names."""
        self.process = os.urandom(8).hex()
        self.unfinished: set[str] = set()
        self._count = itertools.count()

    def __call__(self) -> str:
        return f"{self.process}{next(self._count):x}"

    def is_left_over(self, unique_part: str, ledger: Ledger) -> bool:
        """Whether nobody will finish what is being written under a name: its process has ended, or forgot it."""
        process = unique_part[:16]
        if process == self.process:
            return unique_part not in self.unfinished
        return not ledger.is_alive(process)


#: A part of a name that is used once.
unique = Unique()
os.register_at_fork(after_in_child=unique.renew)
