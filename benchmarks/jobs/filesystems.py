"""
The faults of filesystems: the disk is full, it is read-only, or the cache's directory is deleted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from jobs.application import Application
from jobs.caches import LARGE_SIZE, fill, forked, useless, values_of


class SkippedError(Exception):
    """The fault cannot be caused on this machine."""


@contextlib.contextmanager
def _tmpfs(path: str, size: str) -> Iterator[None]:
    """A tmpfs of its own."""
    if os.geteuid():
        raise SkippedError("only root can mount a tmpfs")
    os.makedirs(path)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},huge=never", "tmpfs", path], check=False, stderr=subprocess.PIPE
    )
    if done.returncode:
        raise SkippedError(done.stderr.decode().strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def _remount(path: str, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


def fill_disk(directory: str, system: str) -> Counter[str]:
    """Set three times as much as fits on the disk, new keys and old keys; then make room again."""
    path = f"{directory}/disk"
    with _tmpfs(path, "3m"):
        return forked(lambda: _use_full(system, path), 0)


def _use_full(system: str, path: str) -> Counter[str]:
    application = Application(system, f"{path}/cache", {})
    os.mkdir(f"{path}/cache")
    application.open()
    # Fewer keys than Django keeps by default; about half of them fill the disk.
    keys = [f"k{number}" for number in range(250)]
    sizes = itertools.cycle((10_000, LARGE_SIZE))

    def kept(some: Iterable[str]) -> int:
        number = 0
        for key in some:
            application.set([key], next(sizes))
            number += application.get(key) == "right"
        return number

    kept(keys[:150])
    there = application.present(keys)
    counts = Counter({"entries when full": len(there), "new when full": 100, "old when full": len(there)})
    counts["new kept"] = kept(keys[150:])
    counts["entries after"] = len(application.present(keys))
    counts["old kept"] = kept(there)
    application.delete(keys[::2])
    _remount(path, "size=64m")
    application.works(keys)
    return application.counts + counts + Counter(cases=1)


def read_only(directory: str, system: str) -> Counter[str]:
    """Open, read, overwrite, add and delete on a read-only filesystem; then make it writable again."""
    path = f"{directory}/disk"
    values = values_of(20, 4)
    with _tmpfs(path, "64m"):
        fill(system, f"{path}/cache", values)
        _remount(path, "ro")
        return forked(lambda: _use_read_only(system, path, values), len(values))


def _use_read_only(system: str, path: str, values: Mapping[str, bytes]) -> Counter[str]:
    application = Application(system, f"{path}/cache", values)
    keys = list(values)
    if application.open():
        application.lose(len(application.missing(keys)))
        overwritten, deleted, new = keys[::3], keys[1::3], [f"new{number}" for number in range(8)]
        application.set([*overwritten, *new])
        application.delete(deleted)
        application.missing([*overwritten, *new, *deleted])
        _remount(path, "rw")
    else:
        application.lose(len(keys))
        _remount(path, "rw")
        if not application.open():
            return application.counts + Counter(cases=1, broken=1)
    application.works(keys)
    application.counts["cases"] = 1
    return application.counts


def delete_directory(directory: str, system: str) -> Counter[str]:
    """
    Delete the directory while it is in use. The cache works then if a second process reads what the first one sets
    after that.
    """
    path = f"{directory}/cache"
    values = values_of(20, 4)
    fill(system, path, values)

    def use() -> Counter[str]:
        application = Application(system, path, values)
        application.open()
        application.missing(values)
        shutil.rmtree(path)
        application.missing(values)
        application.works(values)
        return application.counts + forked(lambda: read_elsewhere(application), len(values))

    def read_elsewhere(application: Application) -> Counter[str]:
        application.counts.clear()
        if not application.open():
            return application.counts + useless(len(values))
        missing = application.missing(values)
        return application.counts + Counter(lost=len(missing), broken=bool(missing))

    counts = forked(use, len(values)) + Counter(cases=1)
    counts["broken"] = min(1, counts["broken"])
    return counts
