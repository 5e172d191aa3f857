"""
Whatever happens to the files of a store between two looks, a poller reports how what is there differs from what it saw.
"""

from __future__ import annotations

import contextlib
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

fsspec = pytest.importorskip("fsspec")

from dogpile_filesystem.poller import PollerUnavailable, StorePoller  # noqa: E402 - after what may be missing

#: Files and directories of one name cannot both be there, but in a store of keys.
APART = ["a", "b", "d/a", "d/b", "d/e/a", "f/a"]
TOGETHER = ["a", "a/", "a//b", "/a", "a/b", "d/e", "d/e/f", "d"]


class Model(fsspec.AbstractFileSystem):
    """
    A store of what is in a dictionary.

    :ivar files: the version of each, by its path below the root.
    :ivar is_broken: whether the next listing of a directory, but for the first, breaks off.
    """

    cachable = False
    files: dict[str, int]
    is_broken = False

    def __init__(self, protocol):
        super().__init__()
        self.protocol = protocol
        self.files = {}

    def row(self, name):
        return {"name": f"root/{name}", "size": 1, "type": "file", "ETag": str(self.files[name])}

    def exists(self, path, **options):
        return True

    def find(self, path, **options):
        if self.is_broken:
            raise TimeoutError
        return {f"root/{name}": self.row(name) for name in self.files}

    def ls(self, path, detail=True, **options):
        if self.is_broken and (path != "root" or self.protocol == "s3"):
            raise TimeoutError
        below = path.removeprefix("root").lstrip("/")
        below += "/" if below else ""
        rows = {}
        for name in self.files:
            if name.startswith(below):
                first, slash, _ = name.removeprefix(below).partition("/")
                inner = f"root/{below}{first}"
                rows[first + slash] = {"name": inner, "type": "directory"} if slash else self.row(name)
        return list(rows.values())


def steps(names):
    change = st.tuples(st.sampled_from(names), st.integers(0, 2))
    look = st.tuples(st.just("look"), st.sampled_from(["runs", "anew", "broken"]))
    return st.lists(st.one_of(change, change, look), max_size=30)


def difference(before, after):
    found = {name: "deleted" for name in before if name not in after}
    return found | {
        name: "modified" if name in before else "created"
        for name, version in after.items()
        if before.get(name) != version
    }


def check(protocol, recurse, happens):
    store, before = Model(protocol), {}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:

        def made():
            poller = StorePoller("root", fs=store, recurse=recurse, state=f"{directory}/state")
            stack.callback(poller.close)
            return poller

        poller = made()
        assert poller.get_new_events() == []
        for name, what in [*happens, ("look", "anew")]:
            if name != "look":
                store.files.pop(name, None)
                store.files |= {name: what} if what else {}
                continue
            if what == "anew":
                poller.close()
                poller = made()
            store.is_broken = what == "broken"
            try:
                found = poller.get_new_events()
            except PollerUnavailable:
                continue
            finally:
                store.is_broken = False
            after = {name: version for name, version in store.files.items() if recurse or "/" not in name}
            assert {subject.removeprefix(f"{poller.url}/"): event for subject, event in found} == difference(
                before, after
            )
            before = after


@pytest.mark.time_intensive
@pytest.mark.parametrize("recurse", [False, True], ids=["flat", "deep"])
@given(happens=steps(APART))
def test_directories(recurse, happens):
    """A store with directories."""
    check("told", recurse, happens)


@pytest.mark.time_intensive
@pytest.mark.parametrize("recurse", [False, True], ids=["flat", "deep"])
@given(happens=steps(TOGETHER))
def test_keys(recurse, happens):
    """A store of keys, of which one may be the beginning of another."""
    check("s3", recurse, happens)
