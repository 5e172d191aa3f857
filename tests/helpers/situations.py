"""
Helper: what can happen to files between two looks, and what a poller must report of it.

One table for all pollers. A situation says what happens through a :class:`Tree`, so that a store can be one, too.
Situations with what stores do not have, such as links and times that are set, are marked as local.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import platform
import re
import shutil
import socket
from collections.abc import Callable
from typing import Any

# From 6.13 on, Linux gives each change that somebody could have seen a time of its own.
_FINE_TIMES = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 13)


class Tree:
    """
    A local tree in which things happen.

    :ivar root: what is watched.
    :ivar outside: a directory beside it, on the same filesystem.
    """

    def __init__(self, directory: Any) -> None:
        self.root = f"{directory}/root"
        self.outside = f"{directory}/outside"
        os.mkdir(self.root)
        os.mkdir(self.outside)

    def path(self, name: str) -> str:
        """The path of a name below the root; ``@name`` lies outside."""
        return f"{self.outside}/{name[1:]}" if name.startswith("@") else f"{self.root}/{name}"

    def write(self, name: str, data: str = "data") -> None:
        """Write a whole file, with the directories above it."""
        self.wait_for_next_time()
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as file:
            file.write(data)

    def wait_for_next_time(self) -> None:
        """Until a change gets another time than the last one; at once, where each change has a time of its own."""
        probe = f"{self.outside}/.time"
        before = None
        while not _FINE_TIMES:
            with open(probe, "w"):
                now = os.stat(probe).st_ctime_ns
            if before not in (None, now):
                return
            before = now

    def delete(self, name: str) -> None:
        os.unlink(self.path(name))

    def rename(self, old: str, new: str) -> None:
        self.wait_for_next_time()
        os.rename(self.path(old), self.path(new))

    def delete_tree(self, name: str) -> None:
        shutil.rmtree(self.path(name))

    def make_directory(self, name: str) -> None:
        os.makedirs(self.path(name))

    def times(self, name: str, mtime_ns: int) -> None:
        """Set the time of change."""
        self.wait_for_next_time()
        os.utime(self.path(name), ns=(mtime_ns, mtime_ns))

    def mtime(self, name: str) -> int:
        return os.stat(self.path(name)).st_mtime_ns


Expected = dict[str, str]


@dataclasses.dataclass
class Step:
    """
    Something that happens, and what the next call reports.

    :ivar flat: by a poller without ``recurse``.
    :ivar deep: by one with it; None: the same.
    """

    act: Callable[[Any], object]
    flat: Expected
    deep: Expected | None = None

    def expected(self, recurse: bool) -> Expected:
        return self.flat if self.deep is None or not recurse else self.deep


@dataclasses.dataclass
class Situation:
    """
    :ivar start: the files that are there at the first look.
    :ivar is_local: whether no store has it.
    :ivar needs_full_look: whether no hint tells of it.
    """

    name: str
    start: list[str]
    steps: list[Step]
    is_local: bool = False
    needs_full_look: bool = False


def _several(*acts: Callable[[Any], object]) -> Callable[[Any], None]:
    def act(tree: Any) -> None:
        for each in acts:
            each(tree)

    return act


def _write(name: str, data: str = "data") -> Callable[[Any], object]:
    return lambda tree: tree.write(name, data)


def _delete(name: str) -> Callable[[Any], object]:
    return lambda tree: tree.delete(name)


def _rename(old: str, new: str) -> Callable[[Any], object]:
    return lambda tree: tree.rename(old, new)


def _delete_tree(name: str) -> Callable[[Any], object]:
    return lambda tree: tree.delete_tree(name)


def _make_directory(name: str) -> Callable[[Any], object]:
    return lambda tree: tree.make_directory(name)


def _times(name: str, mtime_ns: int) -> Callable[[Any], object]:
    return lambda tree: tree.times(name, mtime_ns)


def _restored_time(tree: Any) -> None:
    before = tree.mtime("a")
    tree.write("a", "atad")
    tree.times("a", before)


def _older_of_same_size_and_time(tree: Any) -> None:
    tree.write("@older", "atad")
    tree.times("@older", tree.mtime("a"))
    tree.rename("@older", "a")


def _link(target: str, name: str) -> Callable[[Any], object]:
    return lambda tree: os.symlink(target, tree.path(name))


def _hard_link(tree: Any) -> None:
    os.link(tree.path("a"), tree.path("@other"))


def _map(tree: Any) -> None:
    tree.wait_for_next_time()
    with open(tree.path("a"), "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:1] = b"X"
        view.flush()


def _socket(tree: Any) -> None:
    # Its path may have 107 bytes only.
    here = os.open(tree.root, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/socket")
    finally:
        os.close(here)


def _swap(tree: Any) -> None:
    tree.rename("d", "@d")
    tree.rename("e", "d")
    tree.rename("@d", "e")


_C, _M, _D = "created", "modified", "deleted"
#: A name that is not UTF-8, and one with everything that programs stumble over.
RAW_NAME, ODD_NAME = os.fsdecode(b"raw \xff\xfe"), "new\nline %20 ~ 'quote' \\ \u20ac"
_NONE: Expected = {}

SITUATIONS = [
    Situation("nothing", ["a", "d/b", "d/e/c"], [Step(lambda _: None, _NONE)]),
    Situation("created", ["a", "d/b"], [Step(_write("new"), {"new": _C})]),
    Situation("created below", ["a", "d/b"], [Step(_write("d/new"), _NONE, {"d/new": _C})]),
    Situation("empty file created", [], [Step(_write("new", ""), {"new": _C})]),
    Situation(
        "created and changed three times",
        [],
        [Step(_several(*(_write("new", "x" * size) for size in range(4))), {"new": _C})],
    ),
    Situation("created and deleted", [], [Step(_several(_write("new"), _delete("new")), _NONE)]),
    Situation("changed", ["a"], [Step(_write("a", "longer than before"), {"a": _M})]),
    Situation("changed below", ["d/a"], [Step(_write("d/a", "longer than before"), _NONE, {"d/a": _M})]),
    Situation("changed to the same size", ["a"], [Step(_write("a", "atad"), {"a": _M})]),
    Situation(
        "changed twice, with a look in between",
        ["a"],
        [Step(_write("a", "atad"), {"a": _M}), Step(_write("a", "adat"), {"a": _M})],
    ),
    Situation("touched", ["a"], [Step(lambda tree: os.utime(tree.path("a")), {"a": _M})], is_local=True),
    Situation("time set back", ["a"], [Step(_times("a", 10**18), {"a": _M})], is_local=True),
    Situation("time before the epoch", ["a"], [Step(_times("a", -(10**18)), {"a": _M})], is_local=True),
    Situation("changed, and its time restored", ["a"], [Step(_restored_time, {"a": _M})], is_local=True),
    Situation("mode changed", ["a"], [Step(lambda tree: os.chmod(tree.path("a"), 0o640), {"a": _M})], is_local=True),
    Situation("cut off", ["a"], [Step(lambda tree: os.truncate(tree.path("a"), 1), {"a": _M})], is_local=True),
    Situation("changed in memory", ["a"], [Step(_map, {"a": _M})], is_local=True),
    Situation("replaced by a rename", ["a"], [Step(_several(_write("tmp", "atad"), _rename("tmp", "a")), {"a": _M})]),
    Situation(
        "replaced by an older file of the same size and time",
        ["a"],
        [Step(_older_of_same_size_and_time, {"a": _M})],
        is_local=True,
    ),
    Situation("deleted", ["a", "b"], [Step(_delete("a"), {"a": _D})]),
    Situation("deleted below", ["d/a", "b"], [Step(_delete("d/a"), _NONE, {"d/a": _D})]),
    Situation("all deleted", ["a", "b"], [Step(_several(_delete("a"), _delete("b")), {"a": _D, "b": _D})]),
    Situation("deleted and made again", ["a"], [Step(_several(_delete("a"), _write("a", "atad")), {"a": _M})]),
    Situation("renamed", ["a"], [Step(_rename("a", "b"), {"a": _D, "b": _C})]),
    Situation("renamed into a directory", ["a", "d/b"], [Step(_rename("a", "d/a"), {"a": _D}, {"a": _D, "d/a": _C})]),
    Situation(
        "two swapped",
        ["a", "b"],
        [
            Step(_several(_rename("a", "@a"), _rename("b", "a"), _rename("@a", "b")), {"a": _M, "b": _M}),
        ],
    ),
    Situation("moved in", ["@a", "b"], [Step(_rename("@a", "a"), {"a": _C})]),
    Situation(
        "moved out, and changed there",
        ["a"],
        [Step(_several(_rename("a", "@a"), _write("@a", "longer")), {"a": _D}), Step(_write("@a", "x"), _NONE)],
    ),
    Situation(
        "odd names",
        [],
        [
            Step(_several(_write(RAW_NAME), _write(ODD_NAME)), {RAW_NAME: _C, ODD_NAME: _C}),
            Step(_delete(RAW_NAME), {RAW_NAME: _D}),
        ],
        is_local=True,
    ),
    Situation("hidden files", [".a"], [Step(_several(_write(".a", "x"), _write(".b")), {".a": _M, ".b": _C})]),
    Situation(
        "empty directories made and removed",
        ["a", "d/b"],
        [Step(_make_directory("e/f"), _NONE), Step(_delete_tree("e"), _NONE)],
        is_local=True,
    ),
    Situation(
        "tree made with content",
        [],
        [
            Step(_several(_write("d/e/f/a"), _write("d/b")), _NONE, {"d/e/f/a": _C, "d/b": _C}),
            Step(_several(_write("d/e/f/a", "longer"), _write("d/e/c")), _NONE, {"d/e/f/a": _M, "d/e/c": _C}),
        ],
    ),
    Situation(
        "tree moved in, and changed later",
        ["@d/a", "@d/e/b"],
        [
            Step(_rename("@d", "d"), _NONE, {"d/a": _C, "d/e/b": _C}),
            Step(_several(_write("d/e/b", "longer"), _write("d/e/c")), _NONE, {"d/e/b": _M, "d/e/c": _C}),
        ],
    ),
    Situation(
        "tree moved out, and changed there",
        ["d/a", "d/e/b", "c"],
        [
            Step(_rename("d", "@d"), _NONE, {"d/a": _D, "d/e/b": _D}),
            Step(_several(_write("@d/a", "longer"), _write("@d/e/c")), _NONE),
        ],
    ),
    Situation(
        "tree moved out and back",
        ["d/a", "d/e/b"],
        [
            Step(_rename("d", "@d"), _NONE, {"d/a": _D, "d/e/b": _D}),
            Step(_rename("@d", "d"), _NONE, {"d/a": _C, "d/e/b": _C}),
            Step(_write("d/e/b", "longer"), _NONE, {"d/e/b": _M}),
        ],
    ),
    Situation("tree removed", ["d/a", "d/e/b", "c"], [Step(_delete_tree("d"), _NONE, {"d/a": _D, "d/e/b": _D})]),
    Situation(
        "tree removed and made again",
        ["d/a", "d/e/b"],
        [
            Step(
                _several(_delete_tree("d"), _write("d/e/c"), _write("d/a")),
                _NONE,
                {
                    "d/a": _M,
                    "d/e/b": _D,
                    "d/e/c": _C,
                },
            ),
            Step(_write("d/e/c", "longer"), _NONE, {"d/e/c": _M}),
        ],
    ),
    Situation("tree made and removed", ["a"], [Step(_several(_write("d/e/b"), _delete_tree("d")), _NONE)]),
    Situation(
        "directory renamed, and changed later",
        ["d/a", "d/e/b"],
        [
            Step(_rename("d", "f"), _NONE, {"d/a": _D, "d/e/b": _D, "f/a": _C, "f/e/b": _C}),
            Step(_several(_write("f/e/b", "longer"), _write("f/e/c")), _NONE, {"f/e/b": _M, "f/e/c": _C}),
            Step(_write("d/e/b"), _NONE, {"d/e/b": _C}),
        ],
    ),
    Situation(
        "directory moved into another",
        ["d/a", "e/b"],
        [
            Step(_rename("d", "e/d"), _NONE, {"d/a": _D, "e/d/a": _C}),
            Step(_write("e/d/a", "longer"), _NONE, {"e/d/a": _M}),
            Step(_rename("e/d", "d"), _NONE, {"d/a": _C, "e/d/a": _D}),
            Step(_write("d/a", "long"), _NONE, {"d/a": _M}),
        ],
    ),
    Situation(
        "two directories swapped",
        ["d/a", "d/only", "e/a", "e/f/b"],
        [
            Step(_swap, _NONE, {"d/a": _M, "e/a": _M, "d/only": _D, "e/only": _C, "e/f/b": _D, "d/f/b": _C}),
            Step(_several(_write("d/f/b", "longer"), _write("e/a", "long")), _NONE, {"d/f/b": _M, "e/a": _M}),
        ],
    ),
    Situation(
        "directory replaced by a file",
        ["d/a", "d/e/b"],
        [
            Step(_several(_delete_tree("d"), _write("d")), {"d": _C}, {"d": _C, "d/a": _D, "d/e/b": _D}),
            Step(_several(_delete("d"), _write("d/a")), {"d": _D}, {"d": _D, "d/a": _C}),
        ],
    ),
    Situation(
        "file replaced by a directory",
        ["d"],
        [
            Step(_several(_delete("d"), _write("d/e/a")), {"d": _D}, {"d": _D, "d/e/a": _C}),
            Step(_write("d/e/a", "longer"), _NONE, {"d/e/a": _M}),
        ],
    ),
    Situation(
        "dangling link",
        ["a"],
        [
            Step(_link("nowhere", "link"), {"link": _C}),
            Step(_delete("link"), {"link": _D}),
        ],
        is_local=True,
    ),
    Situation(
        "links in a loop",
        ["d/a"],
        [
            Step(_several(_link(".", "here"), _link("self", "self")), {"here": _C, "self": _C}),
            Step(_write("d/a", "longer"), _NONE, {"d/a": _M}),
        ],
        is_local=True,
    ),
    Situation(
        "changed behind a link",
        ["@d/a"],
        [
            Step(_several(_link("../outside/d", "d"), _link("../outside/d/a", "a")), {"d": _C, "a": _C}),
            Step(_several(_write("@d/a", "longer"), _write("@d/b")), _NONE),
        ],
        is_local=True,
    ),
    Situation(
        "link turned elsewhere",
        ["a", "b"],
        [
            Step(_link("a", "link"), {"link": _C}),
            Step(_several(_link("b", "tmp"), _rename("tmp", "link")), {"link": _M}),
        ],
        is_local=True,
    ),
    Situation(
        "FIFO and socket",
        [],
        [
            Step(_several(lambda tree: os.mkfifo(tree.path("fifo")), _socket), {"fifo": _C, "socket": _C}),
            Step(_several(_delete("fifo"), _delete("socket")), {"fifo": _D, "socket": _D}),
        ],
        is_local=True,
    ),
    Situation(
        "changed through a name outside",
        ["a"],
        [
            Step(_hard_link, {"a": _M}),
            Step(_write("@other", "longer"), {"a": _M}),
        ],
        is_local=True,
        needs_full_look=True,
    ),
]
BY_NAME = {situation.name: situation for situation in SITUATIONS}
