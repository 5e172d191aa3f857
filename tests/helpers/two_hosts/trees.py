"""
What the files of a cache are charged, summed up where the server keeps them.
"""

from __future__ import annotations

import os
from pathlib import Path

_BLOCK = 4096


def charged(base_dir: Path) -> int:
    """
    Bytes that the entries and temporary files of a cache surely had at one instant, each in whole blocks.

    Files come and go while a tree is walked through. What both of two walks find was there between the two.
    """
    first, second = _walk(base_dir), _walk(base_dir)
    return sum(min(size, first[inode]) for inode, size in second.items() if inode in first)


def _walk(base_dir: Path) -> dict[int, int]:
    """The bytes charged to each file below ``values``, by its inode."""
    found = {}
    directories = [f"{base_dir}/values"]
    while directories:
        try:
            with os.scandir(directories.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
                        continue
                    try:
                        seen = os.lstat(entry.path)
                    except FileNotFoundError:
                        continue
                    found[seen.st_ino] = -(-seen.st_size // _BLOCK) * _BLOCK
        except FileNotFoundError:
            continue
    return found
