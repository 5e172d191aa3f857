"""
Two processes that share a cache and a source, writing through and back, with listings that are kept or not, beside a
dictionary: after each step all their filesystems show the same names and contents; and the source has them, once all is
flushed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytest.importorskip("fsspec")
peers = pytest.importorskip("peers")

from backed import Flaky  # noqa: E402 - it needs fsspec

PATHS = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a", "x/a", "x/e/a"])
DIRECTORIES = st.sampled_from(["d", "d/e", "x", "x/e"])
CONTENTS = st.binary(max_size=20)
NUMBERS = st.integers(0, 1)
KINDS = st.sampled_from(list(peers.KINDS))
#: Whom a step is done by: the number of the process, the kind of its filesystem, and whether the other one sends.
WHO = st.tuples(NUMBERS, KINDS, st.booleans())


def above(path: str) -> set[str]:
    """The directories in which a path lies."""
    return {str(each) for each in PurePosixPath(path).parents} - {"."}


def moved(path: str, source: str, target: str) -> str:
    return target + path.removeprefix(source)


class TwoProcesses(RuleBasedStateMachine):
    """
    :ivar files: what must be there.
    :ivar made: directories that must be there, besides those in which files are.
    :ivar perhaps: directories that may be there: a file was in them, and only the source has them now, if it was sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.source = Flaky(self.directory)
        self.now = time.time()
        self.peers = [peers.Peer(self.directory, self.now) for _ in range(2)]
        self.files: dict[str, bytes] = {}
        self.made: set[str] = set()
        self.perhaps: set[str] = set()
        self.touched: set[str] = set()

    # What is there

    def directories(self) -> set[str]:
        return self.made.union(*map(above, self.files), *map(above, self.made))

    def below(self, directory: str) -> list[str]:
        return [path for path in (*self.files, *self.directories(), *self.perhaps) if path.startswith(f"{directory}/")]

    def add(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.perhaps |= above(path)

    def drop(self, path: str) -> None:
        self.made = {each for each in self.made if not PurePosixPath(each).is_relative_to(path)}
        self.perhaps = {each for each in self.perhaps if not PurePosixPath(each).is_relative_to(path)}
        self.files = {each: data for each, data in self.files.items() if not PurePosixPath(each).is_relative_to(path)}

    def do(self, who, what: str, *arguments: object, touched: tuple[str, ...] = ()) -> None:
        """Have a process do something, while the other one sends what is due, perhaps."""
        # What the source said a moment ago is good for a tenth of a second: see Versions.
        self.now += 0.2
        number, kind, is_sending = who
        self.touched |= set(touched)
        if is_sending:
            self.peers[1 - number].begin(self.now, kind, "send")
        try:
            self.peers[number].do(self.now, kind, what, *arguments)
        finally:
            if is_sending:
                self.peers[1 - number].end()

    # What is done

    @rule(who=WHO, path=PATHS, content=CONTENTS)
    def write(self, who, path, content):
        self.do(who, "write", path, content, touched=(path,))
        self.add(path, content)

    @rule(who=WHO, path=PATHS, content=CONTENTS)
    def create(self, who, path, content):
        if path in self.files:
            with pytest.raises(FileExistsError):
                self.do(who, "create", path, content)
        else:
            self.do(who, "create", path, content, touched=(path,))
            self.add(path, content)

    @rule(who=WHO, path=PATHS, content=CONTENTS)
    def append(self, who, path, content):
        self.do(who, "append", path, content, touched=(path,))
        self.add(path, self.files.get(path, b"") + content)

    @rule(who=WHO, path=PATHS)
    def remove_missing(self, who, path):
        if path not in self.files:
            with pytest.raises(FileNotFoundError):
                self.do(who, "remove", path, touched=(path,))

    @precondition(lambda self: self.files)
    @rule(who=WHO, data=st.data())
    def remove(self, who, data):
        path = self.draw_file(data)
        self.do(who, "remove", path, touched=(path,))
        del self.files[path]

    @precondition(lambda self: self.files)
    @rule(who=WHO, data=st.data(), other=PATHS)
    def rename(self, who, data, other):
        path = self.draw_file(data)
        if path != other:
            self.do(who, "rename", path, other, touched=(path, other))
            self.add(other, self.files.pop(path))

    @precondition(lambda self: self.files)
    @rule(who=WHO, data=st.data(), other=PATHS)
    def copy(self, who, data, other):
        path = self.draw_file(data)
        if path != other:
            self.do(who, "copy", path, other, touched=(path, other))
            self.add(other, self.files[path])

    def draw_file(self, data) -> str:
        return data.draw(st.sampled_from(sorted(self.files)))

    @rule(who=WHO, directory=DIRECTORIES)
    def make_directory(self, who, directory):
        self.do(who, "make_directory", directory)
        self.made.add(directory)

    @rule(who=WHO, directory=DIRECTORIES)
    def remove_empty_directory(self, who, directory):
        if directory in self.made and not self.below(directory):
            self.do(who, "remove_empty_directory", directory)
            self.perhaps |= above(directory)
            self.drop(directory)

    @rule(who=WHO, directory=DIRECTORIES)
    def remove_directory(self, who, directory):
        if directory in self.directories():
            self.do(who, "remove_directory", directory, touched=tuple(self.below(directory)))
            self.perhaps |= above(directory)
            self.drop(directory)

    @precondition(lambda self: self.may_move())
    @rule(who=WHO)
    def rename_directory(self, who):
        self.to_another(who, "rename_directory")
        self.drop("d")

    @precondition(lambda self: self.may_move())
    @rule(who=WHO)
    def copy_directory(self, who):
        self.to_another(who, "copy_directory")

    def may_move(self) -> bool:
        return "d" in self.directories() and "x" not in self.directories() | self.perhaps

    def to_another(self, who, what: str) -> None:
        inside = self.below("d")
        self.do(who, what, "d", "x", touched=(*inside, *(moved(path, "d", "x") for path in inside)))
        for path, content in list(self.files.items()):
            if path.startswith("d/"):
                self.add(moved(path, "d", "x"), content)
        for directories in (self.made, self.perhaps):
            within = {each for each in directories if PurePosixPath(each).is_relative_to("d")}
            directories |= {moved(each, "d", "x") for each in within}

    @rule(who=WHO, seconds=st.sampled_from([1, 6, 61]))
    def send(self, who, seconds):
        self.now += seconds
        self.do(who, "send")

    @rule(who=WHO)
    def flush(self, who):
        self.do(who, "flush")
        self.is_at_source()

    def is_at_source(self) -> None:
        assert self.source.files() == self.files

    @invariant()
    def is_equal(self):
        # Neither a file nor a directory may be asked for as if it were the other.
        wanted = sorted(self.touched - self.directories() - self.perhaps)
        for kind in peers.KINDS:
            for peer in self.peers:
                peer.begin(self.now, kind, "look", wanted)
            for seen in [peer.end() for peer in self.peers]:
                assert seen.files == {path: len(content) for path, content in self.files.items()}
                assert seen.contents == {path: self.files.get(path) for path in wanted}
                assert self.directories() <= seen.directories <= self.directories() | self.perhaps
        self.touched.clear()

    def teardown(self):
        try:
            self.do((0, "back", False), "flush")
            self.is_at_source()
            self.touched = set(self.files)
            self.is_equal()
        finally:
            for peer in self.peers:
                peer.kill()
            shutil.rmtree(self.directory)


TestTwoProcesses = pytest.mark.time_intensive(TwoProcesses.TestCase)
TestTwoProcesses.settings = settings(max_examples=8, stateful_step_count=20)
