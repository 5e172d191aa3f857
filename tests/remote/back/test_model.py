"""
A filesystem that writes back, by one process, beside a dictionary: after each step both have the same names and
contents; and the source has, once all is flushed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")

from dogpile_filesystem.remote import UploadError  # noqa: E402 - it needs fsspec

PATHS = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/c"])
DIRECTORIES = st.sampled_from(["d", "d/e", "x"])
CONTENTS = st.binary(max_size=20)
TROUBLE = st.sampled_from(["fail", "break_off", "lose", "truncate"])


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


class WritingBack(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.source = backed.Flaky(self.directory)
        self.fs = self.make()
        self.model: dict[str, bytes] = {}

    def make(self):
        return self.source.make(str(self.directory / "cache"), self.clock)

    @rule(path=PATHS, content=CONTENTS)
    def write(self, path, content):
        self.fs.pipe_file(path, content)
        self.model[path] = content

    @rule(path=PATHS, content=CONTENTS)
    def append(self, path, content):
        with self.fs.open(path, "ab") as file:
            file.write(content)
        self.model[path] = self.model.get(path, b"") + content

    @rule(path=PATHS)
    def remove(self, path):
        if path in self.model:
            self.fs.rm(path)
            del self.model[path]
        else:
            with pytest.raises(FileNotFoundError):
                self.fs.rm(path)

    @rule(path=PATHS, other=PATHS)
    def rename(self, path, other):
        if path in self.model and path != other:
            self.fs.makedirs(other.rpartition("/")[0], exist_ok=True)
            self.fs.mv(path, other)
            self.model[other] = self.model.pop(path)

    @rule(path=PATHS, other=PATHS)
    def copy(self, path, other):
        if path in self.model and path != other:
            self.fs.makedirs(other.rpartition("/")[0], exist_ok=True)
            self.fs.cp_file(path, other)
            self.model[other] = self.model[path]

    @rule(directory=DIRECTORIES)
    def remove_directory(self, directory):
        inside = [path for path in self.model if path.startswith(f"{directory}/")]
        if inside:
            self.fs.rm(directory, recursive=True)
            for path in inside:
                del self.model[path]

    @rule()
    def rename_directory(self):
        inside = [path for path in self.model if path.startswith("d/")]
        if inside and not self.fs.exists("x"):
            self.fs.mv("d", "x", recursive=True)
            for path in inside:
                self.model[f"x/{path[2:]}"] = self.model.pop(path)

    @rule(seconds=st.sampled_from([1, 6, 400]))
    def send(self, seconds):
        self.clock.move(seconds)
        self.make().uploader.run()

    @rule(trouble=TROUBLE)
    def send_in_trouble(self, trouble):
        self.source.control.set_weather(**{trouble: 1})
        try:
            self.fs.flush()
        except UploadError:
            pass
        finally:
            self.source.control.set_weather()

    @rule()
    def flush(self):
        self.fs.flush()
        assert self.source.files() == self.model
        assert self.fs.unsent() == []

    @invariant()
    def is_equal(self):
        for fs in (self.fs, self.make()):
            assert sorted(fs.find("")) == sorted(self.model)
            for path, content in self.model.items():
                assert fs.cat_file(path) == content
                assert fs.info(path)["size"] == len(content)

    def teardown(self):
        self.flush()
        shutil.rmtree(self.directory)


TestWritingBack = WritingBack.TestCase
TestWritingBack.settings = settings(max_examples=15, stateful_step_count=20)
