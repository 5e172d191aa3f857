"""
Changes of a source that lies on this machine, synced, so that they survive a power cut. Of any other source this does
nothing: what that has accepted is its own to keep.

Limits. Of a directory that is renamed to another filesystem, which copies it, the files are not synced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any

from dogpile_filesystem.sources import local_path
from dogpile_filesystem.store import sync_directory, sync_file


def sync_changed(fs: Any, written: Iterable[str], others: Iterable[str] = ()) -> None:
    """
    Sync what was changed at a source.

    :param fs: the source's filesystem.
    :param written: files and directories that were made or replaced.
    :param others: what was removed or renamed.
    :raises OSError: it cannot be synced now.
    """
    above = {}
    for path in written:
        local = local_path(fs, path)
        if local is None:
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # Somebody has removed it.
            sync_file(local)
        above[os.path.dirname(local.rstrip("/"))] = True
    for path in others:
        local = local_path(fs, path)
        if local is None:
            return
        above[os.path.dirname(local.rstrip("/"))] = True
    for directory in above:
        _sync_nearest(directory or "/")


def _sync_nearest(directory: str) -> None:
    """Sync a directory, or the one above it that is there."""
    while True:
        try:
            return sync_directory(directory)
        except (FileNotFoundError, NotADirectoryError):
            if directory == os.path.dirname(directory):
                raise
            directory = os.path.dirname(directory)
