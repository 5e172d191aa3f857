"""
The work of the command ``fetch``: several threads read files of sources through the cache.

Only the command imports this, because it needs the packages of the extra ``fsspec``.

Crash. What was fetched stays, whatever ends the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import click

from dogpile_filesystem.cli import formatting
from dogpile_filesystem.cli.fetch_sources import Filesystems, Misuse, Unusable, Wanted
from dogpile_filesystem.remote import CachedFile

#: Bytes that are read at a time.
_PIECE = 1 << 20
#: Seconds for which an interruption waits for requests on their way.
_PATIENCE = 1.0
_UNIDENTIFIED = "its source does not tell one version from the next, so it is not kept without --check"
_UNSETTLED = "it was changed just now, so it is not kept: fetch it again in a while"


class NotKept(Exception):
    """A file that the cache would not keep."""


@dataclasses.dataclass(slots=True)
class Problem:
    """
    What went wrong.

    :ivar url: of a file; empty: it concerns all of them.
    """

    url: str
    text: str

    @property
    def line(self) -> str:
        """In a line that is safe to show."""
        return formatting.printable(f"{self.url}: {self.text}" if self.url else self.text)


@dataclasses.dataclass(slots=True)
class Report:
    """
    What was done.

    :ivar files: how many were fetched, or were there already.
    :ivar size: bytes that were read of them, from the source or from the cache.
    :ivar source_bytes: those that came from the source.
    :ivar evictions: entries that were removed to make room.
    """

    files: int = 0
    size: int = 0
    source_bytes: int = 0
    evictions: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)


def run(filesystems: Filesystems, urls: Sequence[str], jobs: int) -> Report:
    """
    Fetch all files of some URLs. Problems are printed as they come.

    :param jobs: how many files to read at a time.
    :raises Misuse: the arguments of the cache are not accepted.
    :raises Unusable: its directory cannot be used.
    """
    report = Report()
    wanted = _find(filesystems, urls, report)
    sizes = [each.size for each in wanted]
    size = None if None in sizes else sum(each or 0 for each in sizes)
    with formatting.transfer(len(wanted), size) as shown:
        _Fetch(wanted, report, shown).run(jobs)
    for fs in filesystems.all():
        process = fs.stats().process
        report.source_bytes += process.source.source_bytes
        report.evictions += process.evictions
        if process.refused:
            blocks = formatting.count(process.refused, "block", "blocks")
            _note(report, Problem("", f"{blocks} could not be kept: the cache has no room for them"), _to_stderr)
        for cause, number in process.failures.items():
            times = formatting.count(number, "time", "times")
            _note(report, Problem("", f"the cache failed {times}: {cause}"), _to_stderr)
    return report


def _find(filesystems: Filesystems, urls: Sequence[str], report: Report) -> list[Wanted]:
    found: dict[tuple[int, str], Wanted] = {}
    problems = []  # Printed afterwards: not into the line of the progress.
    with formatting.progress("Looking up", None):
        for url in urls:
            try:
                found |= {(id(each.fs), each.path): each for each in filesystems.find(url)}
            except (Misuse, Unusable):
                raise
            except Exception as error:
                problems.append(Problem(url, _said(error)))
    for problem in problems:
        _note(report, problem, _to_stderr)
    return list(found.values())


def _note(report: Report, problem: Problem, say: Callable[[str], object]) -> None:
    report.problems.append(problem)
    say(problem.line)


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, NotKept) else f"{type(error).__name__}: {error}"


class _Fetch:
    """
    Files that are being fetched.
    """

    def __init__(self, wanted: Sequence[Wanted], report: Report, shown: formatting.Transfer) -> None:
        self._left: queue.SimpleQueue[Wanted] = queue.SimpleQueue()
        for each in wanted:
            self._left.put(each)
        self._report = report
        self._shown = shown
        self._is_stopped = threading.Event()
        # Guards the report, and what is shown of it.
        self._guard = threading.Lock()

    def run(self, jobs: int) -> None:
        """Fetch all files. An interruption ends it."""
        # Daemons: a source that hangs must not keep the command from ending.
        threads = [threading.Thread(target=self._run, daemon=True) for _ in range(min(jobs, self._left.qsize()))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._is_stopped.set()
            for thread in threads:
                thread.join(_PATIENCE / len(threads))
            raise

    def _run(self) -> None:
        buffer = bytearray(_PIECE)
        with contextlib.suppress(queue.Empty):
            while not self._is_stopped.is_set():
                self._fetch(self._left.get_nowait(), buffer)

    def _fetch(self, wanted: Wanted, buffer: bytearray) -> None:
        try:
            for done in self._read(wanted, buffer):
                with self._guard:
                    self._report.size += done
                    self._shown.on_bytes(done)
        except Exception as error:
            with self._guard:
                _note(self._report, Problem(wanted.url, _said(error)), self._shown.say)
                self._shown.on_file()
            return
        with self._guard:
            self._report.files += 1
            self._shown.on_file()

    def _read(self, wanted: Wanted, buffer: bytearray) -> Iterator[int]:
        with wanted.fs.open(wanted.path, "rb") as file:
            if not isinstance(file, CachedFile):
                raise NotKept(_UNIDENTIFIED)
            if not file.is_kept:
                raise NotKept(_UNSETTLED)
            while not self._is_stopped.is_set():
                done = file.readinto(buffer)
                if not done:
                    break
                yield done
