"""
The work of the command ``flush``: several threads send unsent files to their sources, which are made again from what
the files' records say.

Only the command imports this, because it needs the packages of the extra ``fsspec``.

Crash. What is not sent stays unsent, whatever ends the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from dogpile_filesystem.cli import formatting
from dogpile_filesystem.maintenance import UnsentEntry
from dogpile_filesystem.remote import CachedFileSystem


class Missing(Exception):
    """Options of a source are missing."""


@dataclasses.dataclass(slots=True)
class Report:
    """
    What was done.

    :ivar sent: how many files the source has by now, or has removed.
    :ivar size: their bytes.
    :ivar failed: the others, each with its ``url`` and ``error``.
    """

    sent: int = 0
    size: int = 0
    failed: list[dict[str, str]] = dataclasses.field(default_factory=list)


def run(entries: Sequence[UnsentEntry], options: Mapping[str, Any], arguments: Mapping[str, Any], jobs: int) -> Report:
    """
    Send unsent files.

    :param options: of the sources, beside and instead of those that are known.
    :param arguments: of :class:`.CachedFileSystem`.
    :param jobs: how many files to send at a time.
    """
    report = Report()
    with formatting.transfer(len(entries), sum(entry.size for entry in entries)) as shown:
        _Flush(entries, Sources(options, arguments), report, shown).run(jobs)
    report.failed.sort(key=lambda failed: failed["url"])
    return report


class Sources:
    """
    The sources of unsent files, each with the cache in front of it.

    :param options: as those of :func:`run`.
    """

    def __init__(self, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self._options = options
        self._arguments = arguments
        self._known: dict[str, CachedFileSystem] = {}

    def of(self, entry: UnsentEntry) -> CachedFileSystem:
        """
        The filesystem that sends a file.

        :raises Missing: an option may be needed that is not known.
        :raises Exception: the source cannot be made.
        """
        said = json.dumps([entry.namespace, entry.source], sort_keys=True)
        if said not in self._known:
            self._known[said] = self._make(entry)
        return self._known[said]

    def _make(self, entry: UnsentEntry) -> CachedFileSystem:
        if not entry.source:
            raise Missing(entry.error)
        missing = [name for name in entry.source["left_out"] if name not in self._options]
        if missing:
            what = " ".join(f"--option {name}=VALUE" for name in missing)
            raise Missing(f"an option that may be a secret is not kept: pass {what}")
        source = fsspec.filesystem(entry.source["protocol"], **{**entry.source["options"], **self._options})
        fs = self._cached(source)
        # The application has named the namespace, or its source had other options.
        return fs if fs.versions.key(entry.path) == entry.key else self._cached(source, namespace=entry.namespace)

    def _cached(self, source: fsspec.AbstractFileSystem, **more: Any) -> CachedFileSystem:
        # Without uploads of its own: only what is asked for is sent.
        return CachedFileSystem(fs=source, max_uploads=0, skip_instance_cache=True, **self._arguments, **more)


class _Flush:
    """
    Files that are being sent.
    """

    def __init__(
        self, entries: Sequence[UnsentEntry], sources: Sources, report: Report, shown: formatting.Transfer
    ) -> None:
        self._left: queue.SimpleQueue[UnsentEntry] = queue.SimpleQueue()
        for entry in entries:
            self._left.put(entry)
        self._count = len(entries)
        self._sources = sources
        self._report = report
        self._shown = shown
        # Guards the sources, the report, and what is shown of it.
        self._guard = threading.Lock()

    def run(self, jobs: int) -> None:
        """Send all files."""
        # Daemons: a source that hangs must not keep the command from ending.
        threads = [threading.Thread(target=self._run, daemon=True) for _ in range(min(jobs, self._count))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                entry = self._left.get_nowait()
                error = self._send(entry)
                with self._guard:
                    self._note(entry, error)

    def _send(self, entry: UnsentEntry) -> Exception | None:
        """Why a file was not sent; None: it was."""
        try:
            with self._guard:
                fs = self._sources.of(entry)
            return fs.uploader.flush([entry.key], None).get(entry.key)
        except Exception as error:
            return error

    def _note(self, entry: UnsentEntry, error: Exception | None) -> None:
        if error is None:
            self._report.sent += 1
            self._report.size += entry.size
            self._shown.on_bytes(entry.size)
        else:
            said = str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"
            self._report.failed.append({"url": entry.url, "error": said})
        self._shown.on_file()
