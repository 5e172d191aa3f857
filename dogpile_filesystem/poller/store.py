"""
Any store that fsspec knows, listed at each call.

What fsspec has cached of listings is dropped before each look. A look that is not complete counts for nothing: whatever
a store raises, the look raises :class:`.PollerUnavailable`. Only a directory that may not be listed is left out, and
what is known of it stays.

Concurrency. Files may be changed during a look. What is listed only partly, because it was made or removed during the
listing, is reported by the next look.

Limits. A look lists everything. Over HTTP it also asks for each file, unless ``contents=False``: a page that links to
files tells nothing of them. A server of pages that answers another page, instead of an error, tells that all files are
gone: pass ``max_deleted``.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dogpile_filesystem.poller.blobs import Damaged
from dogpile_filesystem.poller.event import PollerUnavailable
from dogpile_filesystem.poller.keys import Keys, to_key
from dogpile_filesystem.poller.known import Known
from dogpile_filesystem.poller.options import Options
from dogpile_filesystem.poller.poller import Poller
from dogpile_filesystem.poller.snapshot import UNIDENTIFIED, Content, record_of
from dogpile_filesystem.sources import Identity, identity_of_info, protocols_of, says_missing, url_of

#: They have keys and no directories, and list all keys below a prefix at once.
_HAVE_KEYS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}
_DENIED = {401, 403}
_PAGES = {"http", "https"}
#: How many files a server of pages is asked for at a time.
_AT_ONCE = 16
#: What a wrong program raises, or a state, and not a store that cannot be reached.
MISTAKES = (NotImplementedError, TypeError, AttributeError, NameError, sqlite3.Error, Damaged)


def unavailable(error: Exception, url: str) -> PollerUnavailable:
    """What tells of any error of a store."""
    number = getattr(error, "errno", None)
    text = (getattr(error, "strerror", None) or str(error)) if isinstance(error, OSError) else ""
    return PollerUnavailable(
        number if isinstance(number, int) else errno.EIO, text or f"{type(error).__name__}: {error}", url
    )


class StorePoller(Poller):
    """
    What changed in a store since the last call.

    A file is told from its other versions by what the store tells of it: its generation, its etag, or size and time of
    change. Where this time has whole seconds, a file is reported when it has not changed for two seconds.

    :param url: any URL that fsspec knows, such as ``s3://bucket/prefix`` or ``dogpile::sftp://host/directory``.
    :param fs: the filesystem of fsspec; None: the one that the URL means.
    :param storage_options: its options, as ``fsspec.open`` takes them.
    :param clock: seconds since the epoch.
    :param options: those of :class:`.Options`. ``follow_symlinks``, ``full_every`` and ``rebind`` mean nothing here.
    :raises TypeError: an option is unknown, or of a wrong type.
    :raises ValueError: a value is out of range, fsspec does not know the URL, or the state cannot be used.
    :raises ImportError: fsspec is missing, or what it needs for this URL.
    :raises OSError: the state cannot be opened, or the root cannot be made.
    """

    def __init__(
        self,
        url: str,
        *,
        fs: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        checked = Options.parse(options)
        if not isinstance(url, str):
            raise TypeError(f"{url!r} is no URL: pass one such as 's3://bucket/prefix'")
        self.fs, root = _opened(url, fs, storage_options)
        self._root = root.rstrip("/") or root
        self._protocols = protocols_of(self.fs)
        if checked.create:
            self.fs.makedirs(self._root, exist_ok=True)
        self._keys = Keys(checked, clock)
        super().__init__(_address(self.fs, self._root), checked, clock)

    def _child_of_fork(self) -> None:
        super()._child_of_fork()
        # Connections and event loops are the parent's.
        self.fs = type(self.fs)(*self.fs.storage_args, **self.fs.storage_options)

    def _subject(self, path: str) -> str:
        return f"{self.url}{'' if self.url.endswith('/') else '/'}{to_key(path)}"

    def _look(self, known: Known) -> Iterator[tuple[str, Content]]:
        self._keys.begin(known)
        look = self._look_at_keys if self._protocols & _HAVE_KEYS else self._look_at_directories
        try:
            self.fs.invalidate_cache()
            yield from look(known)
        except (PollerUnavailable, *MISTAKES):
            raise
        except Exception as error:
            raise unavailable(error, self.url) from error

    # Stores of keys

    def _look_at_keys(self, known: Known) -> Iterator[tuple[str, Content]]:
        rows = self._all_rows()
        prefix = f"{self._root}/"
        below = [row for row in rows if row["name"].startswith(prefix) and row["name"] != prefix]
        if not below:
            # A prefix without keys is no error: all have been deleted. A bucket that is gone is.
            self._see_that_it_exists(self._root.partition("/")[0])
        listing, marked = [], []
        for row in below:
            key = str(row["name"])[len(prefix) :]
            if row.get("type") == "directory" or (key.endswith("/") and not row.get("size")):
                marked.append(key.removesuffix("/"))
            else:
                listing.append((key, self._identity(row)))
        return self._keys.contents(listing, known, filter(None, marked))

    def _all_rows(self) -> list[Mapping[str, Any]]:
        try:
            if self._options.recurse:
                return list(self.fs.find(self._root, detail=True).values())
            return list(self.fs.ls(self._root, detail=True))
        except FileNotFoundError:
            return []

    def _see_that_it_exists(self, path: str) -> None:
        if not self.fs.exists(path):
            raise PollerUnavailable(errno.ENOENT, "it is missing, or may not be looked at", self.url)

    # Stores with directories

    def _look_at_directories(self, known: Known) -> Iterator[tuple[str, Content]]:
        todo = [("", self._root)]
        while todo:
            path, directory = todo.pop()
            try:
                rows = self._rows(path, directory)
            except PermissionError:
                if not path:
                    raise
                self._counts.skipped += 1
                continue
            prefix = f"{path}/" if path else ""
            content = self._content(prefix, rows)
            yield path, self._keys.without_young(path, content, known)
            if self._options.recurse:
                todo.extend((prefix + name, str(rows[name]["name"])) for name in content.subdirectories)

    def _rows(self, path: str, directory: str) -> dict[str, Mapping[str, Any]]:
        """What the store tells of each name in a directory."""
        # A server of pages gives the page of a directory for its name with a slash.
        listed = f"{directory.rstrip('/')}/" if self._protocols & _PAGES else directory
        try:
            rows = self.fs.ls(listed, detail=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not path or not (isinstance(error, NotADirectoryError) or says_missing(error)):
                raise
            return {}  # It has vanished since its parent was listed.
        found: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            name = _name_in(str(row["name"]), directory)
            if name == "" and row.get("type") != "directory":
                if not path:
                    raise NotADirectoryError(errno.ENOTDIR, "it is a file: pass the URL of a directory")
                return {}
            if name:
                found[name] = row
        return found

    def _content(self, prefix: str, rows: Mapping[str, Mapping[str, Any]]) -> Content:
        identities: dict[str, Identity] = {}
        content = Content(identities=identities)
        is_deep = self._options.recurse or self._options.directories
        files = {}
        for name, row in rows.items():
            if row.get("type") == "directory":
                if is_deep and not self._keys.is_pruned(prefix + name):
                    content.subdirectories[name] = 0
            elif self._keys.is_reported(prefix + name):
                files[name] = row
        for name, row in self._completed(files, content).items():
            identity = self._identity(row) if self._options.contents else None
            content.files[name] = record_of(identity)
            identities[name] = identity or UNIDENTIFIED
        return content

    def _completed(self, files: Mapping[str, Mapping[str, Any]], content: Content) -> Mapping[str, Mapping[str, Any]]:
        """What the store tells of files, if its listing does not."""
        if not (self._protocols & _PAGES and self._options.contents and files):
            return files
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = dict(zip(files, pool.map(self._asked, files.values()), strict=True))
        denied = {name for name, answer in answers.items() if isinstance(answer, Exception) and _is_denied(answer)}
        self._counts.skipped += len(denied)
        content.unreadable |= denied
        return {name: answer for name, answer in answers.items() if isinstance(answer, Mapping)}

    def _asked(self, row: Mapping[str, Any]) -> Mapping[str, Any] | Exception:
        try:
            answer: Mapping[str, Any] = self.fs.info(row["name"])
            return answer
        except Exception as error:
            if says_missing(error):
                return error
            raise

    def _identity(self, row: Mapping[str, Any]) -> Identity | None:
        return identity_of_info(row, self._protocols, clock=self._clock)


def _opened(url: str, fs: Any, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """The filesystem and the path that a URL means."""
    if fs is not None:
        if storage_options:
            raise TypeError("pass either fs or storage_options: a filesystem has its options already")
        return fs, str(fs._strip_protocol(url))  # noqa: SLF001 - what fsspec's own wrappers call
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImportError(f"needs fsspec: pip install 'dogpile_filesystem[fsspec]' ({error})") from error
    found, path = url_to_fs(url, **dict(storage_options or {}))
    return found, str(path)


def _address(fs: Any, root: str) -> str:
    """The URL of the root, without credentials."""
    url = url_of(fs, root)
    before, separator, path = url.partition(":///")
    host = getattr(fs, "host", None)
    # SFTP leaves it out, and then a state could not tell one server from another.
    return f"{before}://{host}/{path}" if separator and isinstance(host, str) and host else url


def _is_denied(error: Exception) -> bool:
    # What an HTTP server answered is the cause of an error that says that the file is missing.
    return isinstance(error, PermissionError) or getattr(error.__cause__, "status", None) in _DENIED


def _name_in(name: str, directory: str) -> str | None:
    """The name of a row in the directory that was listed; empty: this itself; None: it lies elsewhere, or deeper."""
    # Some filesystems leave out the first slash, or double it.
    inner, outer = name.strip("/"), directory.strip("/")
    if inner == outer:
        return ""
    if outer and not inner.startswith(f"{outer}/"):
        return None
    rest = inner[len(outer) + 1 :] if outer else inner
    # Pages of directories link to themselves, in another order.
    return None if "/" in rest or rest.startswith("?") else rest
