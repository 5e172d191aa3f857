"""
The local pollers side by side, against a model: whatever is done to a tree, all report the net difference between two
calls, whether they use hints, a state, or a limit.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from polling import reported
from situations import Tree

from dogpile_filesystem.poller import FilePoller, INotifyPoller

pytest.importorskip("inotify_simple")

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


class LocalPollers(RuleBasedStateMachine):
    """
    Changes of a tree, and calls of the pollers.

    The model is a dictionary: the path of each file, and a number that is another one whenever the file is another one
    or was changed. What a call must report is the difference between two such dictionaries.
    """

    @initialize(recurse=st.booleans(), directories=st.booleans())
    def begin(self, recurse, directories):
        self.directory = tempfile.mkdtemp()
        self.tree = Tree(self.directory)
        self.files = {}
        self.folders = {}
        self.number = 0
        self.recurse, self.directories = recurse, directories
        self.options = {"recurse": recurse, "directories": directories, "full_every": 10**9}
        self.pollers = {
            "scan": FilePoller(self.tree.root, **self.options),
            "hints": INotifyPoller(self.tree.root, **self.options),
            "limit": INotifyPoller(self.tree.root, **self.options),
            "state": INotifyPoller(self.tree.root, **self.options, state=self.state),
        }
        for poller in self.pollers.values():
            assert poller.get_new_events() == []
        self.before, self.was_folder = self.visible(), set()

    @property
    def state(self):
        return f"{self.directory}/state"

    def teardown(self):
        if hasattr(self, "pollers"):
            for poller in self.pollers.values():
                poller.close()
            shutil.rmtree(self.directory)

    def visible(self):
        """What the pollers must know."""
        subjects = {**self.files, **(self.folders if self.directories else {})}
        return {path: number for path, number in subjects.items() if self.recurse or "/" not in path}

    def next(self):
        self.number += 1
        return self.number

    def is_free(self, path):
        """Whether a file or a directory can be made at a path: its parents are directories, or missing."""
        above = path.split("/")[:-1]
        return not any("/".join(above[: count + 1]) in self.files for count in range(len(above)))

    def make_above(self, path):
        above = path.split("/")[:-1]
        for count in range(len(above)):
            folder = "/".join(above[: count + 1])
            if folder not in self.folders:
                os.mkdir(self.tree.path(folder))
                self.folders[folder] = self.next()

    def below(self, path):
        return [each for each in (*self.files, *self.folders) if each == path or each.startswith(f"{path}/")]

    @rule(path=PATHS, data=st.sampled_from(["", "x", "y"]))
    def write(self, path, data):
        if self.is_free(path) and path not in self.folders:
            self.make_above(path)
            self.tree.write(path, data)
            self.files[path] = self.next()

    @rule(path=PATHS)
    def make_directory(self, path):
        if self.is_free(f"{path}/x"):
            self.make_above(f"{path}/x")

    @rule(path=PATHS)
    def replace(self, path):
        if self.is_free(path) and path not in self.folders:
            self.make_above(path)
            self.tree.write("@new")
            self.tree.rename("@new", path)
            self.files[path] = self.next()

    @rule(path=PATHS)
    def delete(self, path):
        if path in self.files:
            self.tree.delete(path)
            del self.files[path]
        elif path in self.folders:
            self.tree.delete_tree(path)
            for each in self.below(path):
                self.files.pop(each, None)
                self.folders.pop(each, None)

    @rule(path=PATHS)
    def change_mode(self, path):
        if path in self.files:
            self.tree.wait_for_next_time()
            os.chmod(self.tree.path(path), 0o600 + self.next() % 64)
            self.files[path] = self.next()

    @rule(old=PATHS, new=PATHS)
    def rename(self, old, new):
        if f"{new}/".startswith(f"{old}/") or not self.is_free(new) or new in self.folders:
            return
        if old in self.files:
            if f"{new}/".startswith(f"{old}/"):
                return
            self.make_above(new)
            self.tree.rename(old, new)
            del self.files[old]
            self.files[new] = self.next()
        elif old in self.folders and new not in self.files:
            self.make_above(new)
            self.tree.rename(old, new)
            # The files keep their identity, and the directories theirs.
            for each in self.below(old):
                for known in (self.files, self.folders):
                    if each in known:
                        known[new + each.removeprefix(old)] = known.pop(each)

    @rule()
    def call(self):
        now = self.visible()
        expected = dict.fromkeys(now.keys() - self.before.keys(), "created")
        expected |= dict.fromkeys(self.before.keys() - now.keys(), "deleted")
        changed = {path: "modified" for path in now if self.before.get(path, now[path]) != now[path]}
        # A directory that was made again may get the number of the one before, and then counts as the same.
        possible = dict.fromkeys(changed.keys() & self.folders.keys() & self.was_folder, "modified")
        expected |= {path: event for path, event in changed.items() if path not in possible}
        for name in ("scan", "hints", "state"):
            found = reported(self.pollers[name], self.tree.root)
            assert expected.items() <= found.items() <= (expected | possible).items(), name
        in_parts = {}
        while part := reported(self.pollers["limit"], self.tree.root, 2):
            assert not part.keys() & in_parts.keys()
            in_parts |= part
        assert expected.items() <= in_parts.items() <= (expected | possible).items()
        self.before, self.was_folder = now, set(self.folders)

    @precondition(lambda self: self.number % 3 == 0)
    @rule()
    def restart(self):
        self.pollers["state"].close()
        self.pollers["state"] = INotifyPoller(self.tree.root, **self.options, state=self.state)


LocalPollers.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLocalPollers = pytest.mark.time_intensive(LocalPollers.TestCase)
