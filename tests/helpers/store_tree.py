"""
Helper: a tree in a store, in which the situations of the pollers happen by way of a filesystem of fsspec.
"""

from __future__ import annotations

import itertools
from typing import Any


class StoreTree:
    """
    A tree in a store.

    Each file that is written has a content of its own, so that stores that tell versions apart by content see each.

    :param fs: by which it is changed: somebody else's, as far as the poller knows.
    :param directory: an empty place there.
    :ivar root: what is watched: a path of the filesystem.
    """

    def __init__(self, fs: Any, directory: str) -> None:
        self.fs = fs
        self.root = f"{directory}/root"
        self._outside = f"{directory}/outside"
        self._numbers = itertools.count(10**6)
        for path in (self.root, self._outside):
            fs.makedirs(path, exist_ok=True)

    def path(self, name: str) -> str:
        return f"{self._outside}/{name[1:]}" if name.startswith("@") else f"{self.root}/{name}"

    def write(self, name: str, data: str = "data") -> None:
        self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
        self.fs.pipe_file(self.path(name), f"{data} {next(self._numbers)}".encode())

    def delete(self, name: str) -> None:
        self.fs.rm_file(self.path(name))

    def rename(self, old: str, new: str) -> None:
        if self.fs.isfile(self.path(old)):
            self.fs.mv(self.path(old), self.path(new))
            return
        for path in self.fs.find(self.path(old)):
            target = self.path(new) + path.removeprefix(self.path(old))
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.fs.mv(path, target)
        self.delete_tree(old)

    def delete_tree(self, name: str) -> None:
        if self.fs.exists(self.path(name)):
            self.fs.rm(self.path(name), recursive=True)
