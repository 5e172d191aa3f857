"""
The fixtures of the pollers' tests: trees, and pollers that are closed at the end.
"""

from __future__ import annotations

import os

import pytest
from situations import Tree

from dogpile_filesystem.poller import FilePoller, INotifyPoller


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.fixture
def watch():
    """Makes pollers, which are closed at the end."""
    made = []

    def make(kind, url, **options):
        poller = kind(url, **options)
        made.append(poller)
        return poller

    yield make
    for poller in made:
        poller.close()


@pytest.fixture(params=[FilePoller, INotifyPoller], ids=["scan", "hints"])
def local_poller(request):
    """Each of the local pollers."""
    if request.param is INotifyPoller:
        pytest.importorskip("inotify_simple")
    return request.param


@pytest.fixture
def state(tmp_path):
    """The path of a state beside the tree."""
    os.mkdir(tmp_path / "states")
    return str(tmp_path / "states" / "state")
