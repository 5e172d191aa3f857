"""
Everything that can happen to files between two looks: each local poller, with and without ``recurse``, reports what the
table says, whether it was running or not.
"""

from __future__ import annotations

import pytest
from polling import reported
from situations import BY_NAME

from dogpile_filesystem.poller import INotifyPoller


@pytest.mark.parametrize("recurse", [False, True], ids=["flat", "deep"])
@pytest.mark.parametrize("name", BY_NAME)
def test_while_running(tree, watch, local_poller, name, recurse):
    """A poller that is called between the steps reports each of them, and nothing the next time."""
    situation = BY_NAME[name]
    # Where no hint tells of a change, only a look at everything finds it.
    full_every = 0 if situation.needs_full_look else 3600
    for start in situation.start:
        tree.write(start)
    poller = watch(local_poller, tree.root, recurse=recurse, full_every=full_every)
    assert reported(poller, tree.root) == {}
    for step in situation.steps:
        step.act(tree)
        assert reported(poller, tree.root) == step.expected(recurse)
    assert reported(poller, tree.root) == {}


@pytest.mark.time_intensive
@pytest.mark.parametrize("recurse", [False, True], ids=["flat", "deep"])
@pytest.mark.parametrize("name", BY_NAME)
def test_while_down(tree, local_poller, state, name, recurse):
    """A poller with a state that was not running during a step reports it when it is made again."""
    situation = BY_NAME[name]
    for start in situation.start:
        tree.write(start)
    with local_poller(tree.root, recurse=recurse, state=state) as poller:
        assert reported(poller, tree.root) == {}
    for step in situation.steps:
        step.act(tree)
        with local_poller(tree.root, recurse=recurse, state=state) as poller:
            assert reported(poller, tree.root) == step.expected(recurse)
            assert reported(poller, tree.root) == {}


@pytest.mark.parametrize("name", BY_NAME)
def test_names_alone(tree, watch, local_poller, name):
    """With ``contents=False``, a poller reports what is created and deleted, and nothing that did not happen."""
    situation = BY_NAME[name]
    for start in situation.start:
        tree.write(start)
    poller = watch(local_poller, tree.root, recurse=True, contents=False)
    assert reported(poller, tree.root) == {}
    for step in situation.steps:
        step.act(tree)
        found, expected = reported(poller, tree.root), step.expected(recurse=True)
        assert {path: event for path, event in expected.items() if event != "modified"}.items() <= found.items()
        assert found.items() <= expected.items()


@pytest.mark.parametrize("name", BY_NAME)
def test_only_what_has_a_hint_is_looked_at(tree, watch, name):
    """A poller with hints lists nothing when nothing has happened."""
    pytest.importorskip("inotify_simple")
    for start in BY_NAME[name].start:
        tree.write(start)
    poller = watch(INotifyPoller, tree.root, recurse=True, full_every=3600)
    assert reported(poller, tree.root) == {}
    for step in BY_NAME[name].steps:
        step.act(tree)
        poller.get_new_events()
    # What has changed a moment ago is looked at again until no other change can have the same time.
    while poller._again:
        poller.get_new_events()
    listed = poller.stats().directories
    assert reported(poller, tree.root) == {}
    assert poller.stats().directories == listed
