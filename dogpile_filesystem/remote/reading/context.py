"""
What readers and local copies use of the filesystem that they belong to. The filesystem imports them, so they name it by
this type.
"""

from __future__ import annotations

from typing import Any, Protocol

from dogpile_filesystem.remote.metadata.versions import Version, Versions
from dogpile_filesystem.remote.options import Options
from dogpile_filesystem.remote.reading.blocks import Blocks
from dogpile_filesystem.remote.source import Source
from dogpile_filesystem.store import Store


class Context(Protocol):
    """
    The cached filesystem.
    """

    store: Store
    source: Source
    versions: Versions
    blocks: Blocks
    options: Options

    def open_version(self, version: Version) -> Any:
        """Open a version."""

    def count_opening(self, *, has_hit: bool, has_missed: bool) -> None:
        """Count a file that is closed, by where its bytes came from."""

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a file."""
