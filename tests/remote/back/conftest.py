"""
The fixtures of the tests of writing back: a flaky source, and filesystems that write back to it by a clock that stands.
"""

from __future__ import annotations

import time

import pytest

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")


@pytest.fixture
def source(tmp_path):
    """
    A flaky source.
    """
    return backed.Flaky(tmp_path)


@pytest.fixture
def make(base_dir, source, clock):
    """
    Makes filesystems that write back, on one directory, by a clock that stands. Only what the test calls sends.
    """
    clock.now = time.time()
    return lambda **arguments: source.make(base_dir, clock, **arguments)


@pytest.fixture
def fs(make):
    return make()
