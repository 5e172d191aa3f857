"""
The filesystems that two hosts have mounted, each for all tests.
"""

from __future__ import annotations

import pytest
from two_hosts.filesystems import opened
from two_hosts.programs import Unavailable


@pytest.fixture(scope="session", params=["moosefs", "nfs"])
def kind(request):
    """The name of the filesystem."""
    return request.param


@pytest.fixture(scope="session")
def filesystem(kind):
    """A filesystem with two hosts."""
    try:
        context = opened(kind)
        found = context.__enter__()
    except Unavailable as missing:
        pytest.skip(str(missing))
    try:
        yield found
    finally:
        context.__exit__(None, None, None)
