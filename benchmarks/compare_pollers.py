"""
What the pollers of this project, watchdog and watchfiles report in the situations of the tests:
``python benchmarks/compare_pollers.py [SITUATION ...]``. Needs watchdog, watchfiles and inotify_simple.

What a library reports is collapsed to the net effect per file, and directories are left out, in its favour. It is right
if this is what the table of the tests says. Prints a table in Markdown.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import watchfiles
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from situations import SITUATIONS, Situation, Tree  # noqa: E402 - found by the path above

from dogpile_filesystem.poller import FilePoller, INotifyPoller  # noqa: E402 - as above

#: Seconds after which a library has reported what it will report.
_QUIET = 0.8
_GONE, _THERE = "gone", "there"


class _Pushing:
    """
    A library that calls back. What it reports is noted as whether a file is gone or there.

    :ivar notes: path → the last that was reported of it.
    """

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.error: BaseException | None = None

    def take(self) -> dict[str, str]:
        """What was reported since the last call."""
        time.sleep(_QUIET)
        if self.error is not None:
            raise self.error
        notes, self.notes = self.notes, {}
        return notes


class _Watchdog(_Pushing, FileSystemEventHandler):
    def __init__(self, root: str, observer: Callable[..., Any]) -> None:
        super().__init__()
        self._observer = observer(timeout=0.1)
        self._observer.schedule(self, root, recursive=True)
        self._observer.start()
        time.sleep(_QUIET)

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.is_directory or event.event_type in {"opened", "closed_no_write", "closed"}:
            return
        source, target = os.fsdecode(event.src_path), os.fsdecode(event.dest_path or "")
        if event.event_type in {"deleted", "moved"}:
            self.notes[source] = _GONE
        if event.event_type in {"created", "modified"}:
            self.notes[source] = _THERE
        if target:
            self.notes[target] = _THERE

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()


class _Watchfiles(_Pushing):
    def __init__(self, root: str, *, polling: bool) -> None:
        super().__init__()
        self._stop = threading.Event()
        options = {"watch_filter": None, "force_polling": polling, "poll_delay_ms": 100, "stop_event": self._stop}
        self._thread = threading.Thread(target=self._run, args=(root, options))
        self._thread.start()
        time.sleep(_QUIET)

    def _run(self, root: str, options: dict[str, Any]) -> None:
        try:
            for changes in watchfiles.watch(
                root, debounce=100, step=20, rust_timeout=100, yield_on_timeout=True, **options
            ):
                self._note(changes)
        except BaseException as error:
            self.error = error

    def _note(self, changes: Iterable[tuple[watchfiles.Change, str]]) -> None:
        # A set, without an order: of a path that is in it twice, what is there now is taken to be the last.
        for change, path in changes:
            twice = len({other for other, where in changes if where == path}) > 1
            is_gone = not os.path.lexists(path) if twice else change == watchfiles.Change.deleted
            self.notes[path] = _GONE if is_gone else _THERE

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _judged(library: _Pushing, tree: Tree, known: set[str]) -> dict[str, str]:
    """The net effect of what a library reported, by the path below the root. ``known`` was there before."""
    found = {}
    for path, note in library.take().items():
        name = os.path.relpath(path, tree.root)
        is_folder = os.path.isdir(path) and not os.path.islink(path)
        if name in known and (note == _GONE or is_folder):
            found[name] = "deleted"
        elif note == _THERE and not is_folder and not name.startswith(".."):
            found[name] = "modified" if name in known else "created"
    return found


def _files(tree: Tree) -> set[str]:
    """The files below the root."""
    found = set()
    for above, directories, names in os.walk(tree.root):
        for name in (*directories, *names):
            path = os.path.join(above, name)
            if os.path.islink(path) or not os.path.isdir(path):
                found.add(os.path.relpath(path, tree.root))
    return found


def _of_library(make: Callable[[str], Any], situation: Situation) -> str:
    directory = tempfile.mkdtemp()
    tree = Tree(directory)
    for name in situation.start:
        tree.write(name)
    library = make(tree.root)
    verdict = "ok"
    try:
        for step in situation.steps:
            known = _files(tree)
            step.act(tree)
            found, expected = _judged(library, tree, known), step.expected(recurse=True)
            if found != expected:
                verdict = _described(found, expected)
                break
    except Exception as error:
        verdict = f"**{type(error).__name__}**"
    finally:
        library.close()
        shutil.rmtree(directory)
    return verdict


def _described(found: dict[str, str], expected: dict[str, str]) -> str:
    """What is wrong, in a word."""
    if not found:
        return "**nothing**"
    if found.keys() < expected.keys():
        return "**some missing**"
    return "**too much**" if found.keys() > expected.keys() else "**wrong**"


def _of_poller(kind: Callable[..., FilePoller], situation: Situation) -> str:
    directory = tempfile.mkdtemp()
    tree = Tree(directory)
    for name in situation.start:
        tree.write(name)
    try:
        with kind(tree.root, recurse=True, full_every=0 if situation.needs_full_look else 60) as poller:
            poller.get_new_events()
            for step in situation.steps:
                step.act(tree)
                found = {os.path.relpath(subject, tree.root): event for subject, event in poller.get_new_events()}
                if found != step.expected(recurse=True):
                    return _described(found, step.expected(recurse=True))
    finally:
        shutil.rmtree(directory)
    return "ok"


def main() -> None:
    """Try all situations, and print the table."""
    columns: dict[str, Callable[[Situation], str]] = {
        "FilePoller": lambda situation: _of_poller(FilePoller, situation),
        "INotifyPoller": lambda situation: _of_poller(INotifyPoller, situation),
        "watchdog": lambda situation: _of_library(lambda root: _Watchdog(root, Observer), situation),
        "watchdog, polling": lambda situation: _of_library(lambda root: _Watchdog(root, PollingObserver), situation),
        "watchfiles": lambda situation: _of_library(lambda root: _Watchfiles(root, polling=False), situation),
        "watchfiles, polling": lambda situation: _of_library(lambda root: _Watchfiles(root, polling=True), situation),
    }
    right = dict.fromkeys(columns, 0)
    print("| situation |", " | ".join(columns), "|")
    print("|---" * (1 + len(columns)) + "|")
    chosen = [situation for situation in SITUATIONS if situation.name in sys.argv[1:] or not sys.argv[1:]]
    for situation in chosen:
        with ThreadPoolExecutor() as threads:  # Each has a tree of its own, and mostly waits.
            judge = {name: threads.submit(column, situation) for name, column in columns.items()}
            verdicts = {name: each.result() for name, each in judge.items()}
        for name, verdict in verdicts.items():
            right[name] += verdict == "ok"
        print("|", situation.name, "|", " | ".join(verdicts.values()), "|", flush=True)
    print(f"| **right of {len(chosen)}** |", " | ".join(f"**{count}**" for count in right.values()), "|")


if __name__ == "__main__":
    main()
