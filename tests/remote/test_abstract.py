"""
fsspec's own suites for filesystems, with this one over local files and over memory, with and without listings
that are kept.
"""

from __future__ import annotations

from typing import ClassVar

import pytest

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("cached")

from fsspec.tests import abstract  # noqa: E402 - after those that may be missing


@pytest.mark.time_intensive
class OverLocal(abstract.AbstractFixtures):
    """Each file that is put waits until no later change of it can have the same time."""

    arguments: ClassVar[dict[str, object]] = {}

    @pytest.fixture(params=[0, 60], ids=["", "listings"])
    def fs(self, base_dir, request):
        fs = fsspec.filesystem(
            "dogpile",
            target_protocol="file",
            target_options={"auto_mkdir": True},
            base_dir=base_dir,
            listings_expiry_time=request.param,
            skip_instance_cache=True,
            **self.arguments,
        )
        yield fs
        fs.release()

    @pytest.fixture
    def fs_path(self, tmp_path):
        (tmp_path / "files").mkdir()
        return str(tmp_path / "files")


class OverMemory(abstract.AbstractFixtures):
    arguments: ClassVar[dict[str, object]] = {}

    @pytest.fixture(params=[0, 60], ids=["", "listings"])
    def fs(self, base_dir, request):
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pseudo_dirs.clear()
        memory.pseudo_dirs.append("")
        yield fsspec.filesystem(
            "dogpile",
            target_protocol="memory",
            base_dir=base_dir,
            listings_expiry_time=request.param,
            skip_instance_cache=True,
            **self.arguments,
        )
        memory.store.clear()
        memory.pseudo_dirs.clear()
        memory.pseudo_dirs.append("")

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self):
        return ""


class TestCopyOverLocal(abstract.AbstractCopyTests, OverLocal):
    """
    Copies over local files.
    """


class TestGetOverLocal(abstract.AbstractGetTests, OverLocal):
    """
    Copies from local files.
    """


class TestOpenOverLocal(abstract.AbstractOpenTests, OverLocal):
    """
    Local files, opened.
    """


class TestPipeOverLocal(abstract.AbstractPipeTests, OverLocal):
    """
    Bytes, written to local files.
    """


class TestPutOverLocal(abstract.AbstractPutTests, OverLocal):
    """
    Copies to local files.
    """


class TestCopyOverMemory(abstract.AbstractCopyTests, OverMemory):
    """
    Copies in memory.
    """


class TestGetOverMemory(abstract.AbstractGetTests, OverMemory):
    """
    Copies from memory.
    """


class TestOpenOverMemory(abstract.AbstractOpenTests, OverMemory):
    """
    Files in memory, opened.
    """


class TestPipeOverMemory(abstract.AbstractPipeTests, OverMemory):
    """
    Bytes, written to memory.
    """


class TestPutOverMemory(abstract.AbstractPutTests, OverMemory):
    """
    Copies to memory.
    """


class BackOverLocal(OverLocal):
    """Nothing is sent: what is read is what is unsent."""

    arguments: ClassVar[dict[str, object]] = {"write": "back", "max_uploads": 0}


class TestCopyBackOverLocal(abstract.AbstractCopyTests, BackOverLocal):
    """
    Copy, written back over local files.
    """


class TestGetBackOverLocal(abstract.AbstractGetTests, BackOverLocal):
    """
    Get, written back over local files.
    """


class TestOpenBackOverLocal(abstract.AbstractOpenTests, BackOverLocal):
    """
    Open, written back over local files.
    """


class TestPipeBackOverLocal(abstract.AbstractPipeTests, BackOverLocal):
    """
    Pipe, written back over local files.
    """


class TestPutBackOverLocal(abstract.AbstractPutTests, BackOverLocal):
    """
    Put, written back over local files.
    """


class BackOverMemory(OverMemory):
    """Nothing is sent: what is read is what is unsent."""

    arguments: ClassVar[dict[str, object]] = {"write": "back", "max_uploads": 0}


class TestCopyBackOverMemory(abstract.AbstractCopyTests, BackOverMemory):
    """
    Copy, written back over memory.
    """


class TestGetBackOverMemory(abstract.AbstractGetTests, BackOverMemory):
    """
    Get, written back over memory.
    """


class TestOpenBackOverMemory(abstract.AbstractOpenTests, BackOverMemory):
    """
    Open, written back over memory.
    """


class TestPipeBackOverMemory(abstract.AbstractPipeTests, BackOverMemory):
    """
    Pipe, written back over memory.
    """


class TestPutBackOverMemory(abstract.AbstractPutTests, BackOverMemory):
    """
    Put, written back over memory.
    """
