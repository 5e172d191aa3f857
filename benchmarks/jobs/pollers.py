"""
Pollers: a call when nothing has changed, beside looking at all files without anything else; and states of many paths.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator

import measure

from dogpile_filesystem.poller import Content, FilePoller, INotifyPoller, Known, Options, Poller


def unchanged(directory: str, files: int, directories: int, repeats: int = 9) -> dict[str, float]:
    """
    Calls when nothing has changed.

    :param directories: over which the files are spread.
    :returns: ``bare``: the median of the seconds to list all directories and ``stat`` all files; ``scan``, ``hints``:
     that of a call of each local poller; ``ratio``: the median of the ratios of ``scan`` to ``bare``, one after the
     other; ``one``: the seconds of a call with hints after one file was made.
    """
    root = f"{directory}/root"
    for number in range(directories):
        os.makedirs(f"{root}/{number}")
        for name in range(files // directories):
            os.close(os.open(f"{root}/{number}/file-{name:07}", os.O_CREAT | os.O_WRONLY))
    with FilePoller(root, recurse=True) as scan, INotifyPoller(root, recurse=True, full_every=86400) as hints:
        for poller in (scan, hints):
            poller.get_new_events()
        bare, scanned, hinted = [], [], []
        for _ in range(repeats):
            bare.append(measure.seconds_of(lambda: _look(root)))
            scanned.append(measure.seconds_of(scan.get_new_events))
            hinted.append(measure.seconds_of(hints.get_new_events))
        os.close(os.open(f"{root}/0/new", os.O_CREAT | os.O_WRONLY))
        one = measure.seconds_of(hints.get_new_events)
    return {
        "bare": statistics.median(bare),
        "scan": statistics.median(scanned),
        "hints": statistics.median(hinted),
        "ratio": statistics.median(mine / its for mine, its in zip(scanned, bare, strict=True)),
        "one": one,
    }


def _look(root: str) -> None:
    for name in os.listdir(root):
        with os.scandir(f"{root}/{name}") as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)


class _Made(Poller):
    """A poller of files that do not exist: ``changed`` of the directories are looked at, each with a changed file."""

    changed: range

    def __init__(self, state: str, per_directory: int) -> None:
        self._per_directory = per_directory
        self._version = 0
        super().__init__("made://", Options.parse({"recurse": True, "state": state}))

    def _subject(self, path: str) -> str:
        return path

    def _look(self, known: Known) -> Iterator[tuple[str, Content]]:
        self._version += 1
        if known.is_new:
            yield "", Content(subdirectories={f"{number}": number for number in self.changed})
        for number in self.changed:
            files = {
                f"file-{name:07}.dat": (name, 1_795_000_000_000_000_000 + name, 1_795_000_000_000_000_000 + name, name)
                for name in range(self._per_directory)
            }
            files["file-0000000.dat"] = (0, self._version, self._version, 0)
            yield f"{number}", Content(files=files)


def state(directory: str, paths: int, per_directory: int = 1000, repeats: int = 9) -> dict[str, float]:
    """
    A state with many paths.

    :returns: ``save``: the seconds of the first call; ``open``: the median of those to open it again; ``change``: that
     of a call that finds one changed file; ``bytes``: its size.
    """
    path = f"{directory}/state"
    poller = _Made(path, per_directory)
    poller.changed = range(paths // per_directory)
    save = measure.seconds_of(poller.get_new_events)
    poller.close()
    opened, changed = [], []
    for _ in range(repeats):
        measure.settle()
        opened.append(measure.seconds_of(lambda: _Made(path, per_directory).close()))
    with _Made(path, per_directory) as poller:
        poller._version = 10  # noqa: SLF001 - another one than that of the first call
        for number in range(repeats):
            poller.changed = range(number, number + 1)
            changed.append(measure.seconds_of(poller.get_new_events))
    return {
        "save": save,
        "open": statistics.median(opened),
        "change": statistics.median(changed),
        "bytes": os.path.getsize(path),
    }
