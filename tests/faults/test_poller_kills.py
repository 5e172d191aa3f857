"""
A poller killed at each statement that it executes on its state: nothing is lost, and what was acknowledged stays so.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal

import pytest
from forked import in_child
from polling import reported
from situations import Tree

from dogpile_filesystem.poller import FilePoller


def prepare(directory):
    tree = Tree(directory)
    state = f"{directory}/state"
    for name in ("old", "d/gone", "d/changed"):
        tree.write(name)
    with FilePoller(tree.root, recurse=True, state=state) as poller:
        poller.get_new_events()
    tree.write("new")
    tree.write("d/changed", "longer")
    tree.delete("d/gone")
    return tree, state


@pytest.mark.parametrize("acknowledge", [False, True], ids=["not acknowledged", "acknowledged"])
def test_killed_at_each_statement(tmp_path, acknowledge):
    """Wherever a call is killed, the next process gets all events; once they are acknowledged, none."""
    expected = {"new": "created", "d/changed": "modified", "d/gone": "deleted"}
    for at in itertools.count():
        directory = tmp_path / f"{at}"
        os.mkdir(directory)
        tree, state = prepare(directory)
        done_at = f"{directory}/acknowledged"

        def call(tree=tree, state=state, at=at, done_at=done_at):
            poller = FilePoller(tree.root, recurse=True, state=state)
            statements = itertools.count()

            def trace(_):
                if next(statements) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            poller._database.connection.set_trace_callback(trace)
            found = reported(poller, tree.root)
            if acknowledge:
                poller.ack()
                os.mkdir(done_at)
            return found

        found = in_child(call)
        assert found in (None, expected)
        with FilePoller(tree.root, recurse=True, state=state) as poller:
            again = reported(poller, tree.root)
            assert reported(poller, tree.root) == {}
        if os.path.isdir(done_at):
            assert again == {}
        else:
            # Killed in the end of the acknowledgement, it may be written already.
            assert again == expected or (acknowledge and again == {})
        shutil.rmtree(directory)
        if found is not None:
            assert at > 10
            return
