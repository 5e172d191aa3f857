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
import os
import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import fsspec

from dogpile_filesystem.cli import formatting
from dogpile_filesystem.maintenance import Cache, UnsentEntry, unsent_entries
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


def load(base_dir: str) -> None:
    """Import what the sources of a cache's unsent files need, as far as that is known now. Never fails."""
    with contextlib.suppress(Exception):
        cache = Cache(os.path.abspath(os.path.expanduser(base_dir)))
        for protocol in {entry.source.get("protocol", "") for entry in unsent_entries(cache.shards)}:
            with contextlib.suppress(Exception):
                fsspec.get_filesystem_class(protocol)


def run(
    cache: Cache, entries: Sequence[UnsentEntry], options: Mapping[str, Any], arguments: Mapping[str, Any], jobs: int
) -> Report:
    """
    Send unsent files.

    :param options: of the sources, beside and instead of those that are known.
    :param arguments: of :class:`.CachedFileSystem`.
    :param jobs: how many files to send at a time.
    """
    errors: dict[bytes, Exception] = {}
    with formatting.transfer(len(entries), sum(entry.size for entry in entries)) as shown:
        _Flush(entries, Sources(options, arguments), errors, shown).run(jobs)
    # Whose record is damaged, or signed with another key, is not sent: there seems to be nothing to send.
    left = {(entry.key, entry.token) for entry in unsent_entries(cache.shards)}
    return _report(entries, errors, left)


def _report(
    entries: Sequence[UnsentEntry], errors: Mapping[bytes, Exception], left: Collection[tuple[bytes, str]]
) -> Report:
    report = Report()
    for entry in entries:
        error = errors.get(entry.key)
        if error is not None:
            said = str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"
        elif (entry.key, entry.token) in left:
            said = "its record cannot be read: if the applications sign, pass their signing key"
        else:
            report.sent += 1
            report.size += entry.size
            continue
        report.failed.append({"url": entry.url, "error": said})
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

    :param errors: why files were not sent, by their keys, to be filled.
    """

    def __init__(
        self,
        entries: Sequence[UnsentEntry],
        sources: Sources,
        errors: dict[bytes, Exception],
        shown: formatting.Transfer,
    ) -> None:
        self._left: queue.SimpleQueue[UnsentEntry] = queue.SimpleQueue()
        for entry in entries:
            self._left.put(entry)
        self._count = len(entries)
        self._sources = sources
        self._errors = errors
        self._shown = shown
        # Guards the sources, the errors, and what is shown.
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
                    if error is not None:
                        self._errors[entry.key] = error
                    self._shown.on_bytes(entry.size)
                    self._shown.on_file()

    def _send(self, entry: UnsentEntry) -> Exception | None:
        """Why a file was not sent; None: it was."""
        try:
            with self._guard:
                fs = self._sources.of(entry)
            return fs.uploader.flush([entry.key], None).get(entry.key)
        except Exception as error:
            return error
