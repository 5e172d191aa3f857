"""
A descriptor that keeps its number when it is turned to another file.
"""

from __future__ import annotations

import contextlib
import os
from typing import ClassVar

#: Device and inode of a file.
Identity = tuple[int, int]


def identity_of(found: os.stat_result) -> Identity:
    """Device and inode."""
    return found.st_dev, found.st_ino


class Descriptor:
    """
    A descriptor of a file that may be replaced by another one. It keeps its number then, so that no thread ever uses a
    number that is closed, or leads to something else than one of the two files.

    A program that becomes a daemon closes all descriptors, and the system gives their numbers out again. Such a
    number is never used, closed, or turned here.

    :ivar fd: the number; -1: none.
    :ivar identity: of the file; None: there is none.
    """

    # The Descriptor that a number belongs to now, by a token of it.
    _owners: ClassVar[dict[int, object]] = {}

    def __init__(self) -> None:
        self.fd = -1
        self.identity: Identity | None = None
        self._token = object()

    def is_open(self) -> bool:
        """Whether the number still leads to the file."""
        if self._owners.get(self.fd) is not self._token:
            return False
        try:
            return identity_of(os.fstat(self.fd)) == self.identity
        except OSError:
            return False

    def leads_to(self, found: os.stat_result) -> bool:
        """Whether the number leads to the file with this status."""
        return self.identity == identity_of(found) and self.is_open()

    def turn_to(self, fd: int, identity: Identity) -> None:
        """
        Lead to another file: the one that was put in the place of this one, or this one opened again.

        :param fd: a descriptor of it, which is taken over.
        """
        if fd != self.fd and self.is_open():
            os.dup2(fd, self.fd, inheritable=False)
            os.close(fd)
        else:
            # Two threads may come here at once. Then one descriptor stays open, unused.
            self.fd = fd
            self._owners[fd] = self._token
        self.identity = identity

    def close(self) -> None:
        """Close it, if the number is still its own."""
        if self.is_open():
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self._owners.pop(self.fd, None)
            self.identity = None
