"""
Helper: filesystems that write back to a flaky source, in this process and in others.

To import this module registers the protocols ``flaky`` and ``dogpile``.
"""

from __future__ import annotations

from pathlib import Path

import cached
from flaky_source import FlakyControl, FlakySource

from dogpile_filesystem.remote import CachedFileSystem

#: The beginning of programs that write back, given as JSON.
PROGRAM = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import backed
    fs = backed.CachedFileSystem.from_json(sys.argv[2])
"""
HELPERS = cached.HELPERS

__all__ = ["HELPERS", "PROGRAM", "CachedFileSystem", "Flaky"]


class Flaky:
    """
    The files of a flaky source.

    :ivar fs: the source itself.
    :ivar control: tells it what to do.
    """

    def __init__(self, directory: Path, **options: object) -> None:
        self.root = directory / "root"
        self.root.mkdir(exist_ok=True)
        self.options = {"root": str(self.root), "control": str(directory / "control"), **options}
        self.fs = FlakySource(**self.options, skip_instance_cache=True)
        self.control: FlakyControl = self.fs.control

    def files(self) -> dict[str, bytes]:
        """What is on the source, whatever it says."""
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def make(self, base_dir: str, clock: object = None, **arguments: object) -> CachedFileSystem:
        """A filesystem that writes back. With a clock, only what the test calls sends."""
        arguments = {"block_size": cached.BLOCK_SIZE, "write": "back", "lock_timeout": 0.2, **arguments}
        if clock is not None:
            arguments.setdefault("max_uploads", 0)
        fs = CachedFileSystem(
            target_protocol="flaky",
            target_options=self.options,
            base_dir=base_dir,
            **arguments,
            skip_instance_cache=True,
        )
        if clock is not None:
            fs.versions._clock = fs.versions._monotonic = fs.source._clock = clock
            fs.listings._clock = fs.listings._kept._judge.clock = clock
            fs.sender.clock = fs.acceptance.clock = clock
            fs.source._sleep = clock.move
        return fs
