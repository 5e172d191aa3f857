"""
A descriptor that keeps its number when it is turned to another file; and how many there may be.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os

#: Device and inode of a file.
Identity = tuple[int, int]

#: Descriptors that may be open before garbage is looked for that keeps some of them open.
_LIMIT = 10
# The Descriptor that a number belongs to now, by a token of it.
_owners: dict[int, object] = {}
_limit = _LIMIT


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

    def __init__(self) -> None:
        self.fd = -1
        self.identity: Identity | None = None
        # All numbers, and the file that each leads to. More than one if two threads opened the file at once.
        self._numbers: dict[int, Identity] = {}
        self._token = object()

    def is_open(self) -> bool:
        """Whether the number still leads to the file."""
        return self._is_mine(self.fd, self.identity)

    def _is_mine(self, fd: int, identity: Identity | None, *, otherwise: bool = False) -> bool:
        """
        Whether a number still leads to a file.

        :param otherwise: the answer where the filesystem does not tell.
        """
        if _owners.get(fd) is not self._token:
            return False
        try:
            return identity_of(os.fstat(fd)) == identity
        except OSError as error:
            return otherwise and error.errno != errno.EBADF

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
            _owners[fd] = self._token
            self._numbers[fd] = identity  # First: another thread may set its own number at any moment.
            self.fd = fd
        self._numbers[self.fd] = identity
        self.identity = identity

    def close(self) -> None:
        """Close what is still its own. No thread may be using the number; one that comes later finds -1."""
        numbers, self.fd = dict(self._numbers), -1
        for fd, identity in numbers.items():
            # Yes, where the filesystem does not tell: else each such trouble would cost a descriptor.
            if self._is_mine(fd, identity, otherwise=True):
                # First forgotten: once it is closed, another thread may get the number.
                del _owners[fd]
                with contextlib.suppress(OSError):
                    os.close(fd)
            elif _owners.get(fd) is self._token:
                del _owners[fd]
        self._numbers.clear()
        self.identity = None


def collect_garbage() -> None:
    """
    Have garbage collected that may keep descriptors open, if there are many of them. Call it with no lock held.

    A region of dogpile is a cycle of objects, and Python may take thousands of further regions to notice that one is
    not used any more.
    """
    global _limit  # noqa: PLW0603 - as many as are really in use, and some more
    if len(_owners) < _limit:
        return
    for generation in range(3):  # The young first, which takes microseconds.
        before = gc.get_stats()[generation]["collections"]
        gc.collect(generation)
        if len(_owners) <= _limit - _LIMIT // 2:
            return
    # Nothing is collected while another thread collects garbage.
    if gc.get_stats()[generation]["collections"] != before:
        _limit = len(_owners) + max(_LIMIT, len(_owners) // 2)
