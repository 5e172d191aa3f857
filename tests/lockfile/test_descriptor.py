"""
Descriptors that keep their number.
"""

from __future__ import annotations

import os

from dogpile_filesystem.lockfile.descriptor import Descriptor, identity_of


class Raced(Descriptor):
    """
    A descriptor that a second thread opens in the moment in which the first one does.
    """

    second = -1

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "fd" and self.second >= 0:
            second, self.second = self.second, -1
            self.turn_to(second, identity_of(os.fstat(second)))


def test_opened_by_two_threads_at_once(tmp_path, open_descriptors):
    """A directory that two threads open at once is closed with both its numbers."""
    before = open_descriptors()
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    descriptor = Raced()
    descriptor.second = second
    descriptor.turn_to(first, identity_of(os.fstat(first)))
    assert descriptor.is_open()
    descriptor.close()
    assert open_descriptors() == before
