"""
The fixtures that the tests of ranges and of mutexes share.
"""

from __future__ import annotations

import functools

import pytest
from holding import HOLDER, OFFSET, mutex_of


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lock")


@pytest.fixture
def make_mutex(path):
    return functools.partial(mutex_of, path)


@pytest.fixture
def hold(spawn, path):
    """
    Starts a process that holds a mutex until it is told to go on.
    """

    def start(offset=OFFSET, through=path):
        process = spawn(HOLDER, through, offset)
        assert process.stdout.readline() == "held\n"
        return process

    return start
