"""
A container of OpenStack Swift, listed at each call.

Servers of containers learn of objects a little later than the servers of objects do, and much later after an outage:
then the listing lags behind. So an object is deleted when the listing does not have it, and the object's own servers
say that it is missing. A new or changed object is reported when the listing has it.

Limits. A look lists all objects, 10,000 in a request, and asks for each that is missing from the listing. While the
servers of the container are down, Swift answers 503, and the look raises :class:`.PollerUnavailable`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from dogpile_filesystem.poller.event import PollerUnavailable
from dogpile_filesystem.poller.keys import Keys, to_key
from dogpile_filesystem.poller.known import Known
from dogpile_filesystem.poller.options import Options
from dogpile_filesystem.poller.poller import Poller
from dogpile_filesystem.poller.snapshot import Content
from dogpile_filesystem.poller.store import MISTAKES, unavailable
from dogpile_filesystem.poller.swift_account import Account, Place
from dogpile_filesystem.sources import Identity, identity_of_info

#: What the marker of a directory is stored as, by programs that need one.
_DIRECTORY = "application/directory"
#: How many objects are asked for at a time.
_AT_ONCE = 8
_ERRNOS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT}
_MISSING = 404


class SwiftPoller(Poller):
    """
    What changed in a container of Swift since the last call.

    An object is told from its other versions by hash, size and time of change. Names are taken as they are; what lies
    before each slash of a name counts as a directory. An empty object whose name ends with a slash, or whose type is
    ``application/directory``, marks a directory, and is no file.

    :param url: ``swift://container`` or ``swift://container/prefix``; see :meth:`.Place.parse`.
    :param connection: a connection of python-swiftclient, instead of all credentials. Nobody else may use it.
    :param clock: seconds since the epoch.
    :param options: those of :class:`.Account` and of :class:`.Options`. ``follow_symlinks`` and ``full_every`` mean
     nothing here. ``rebind`` accepts the container of another account.
    :raises TypeError: an option is unknown, or of a wrong type.
    :raises ValueError: a value is out of range, credentials are missing, or the state cannot be used.
    :raises ImportError: a package is missing.
    :raises OSError: the state cannot be opened, or the container cannot be made.
    """

    def __init__(
        self, url: str, *, connection: Any = None, clock: Callable[[], float] = time.time, **options: Any
    ) -> None:
        if not isinstance(url, str):
            raise TypeError(f"{url!r} is no URL: pass one such as 'swift://container/prefix'")
        self._place = Place.parse(url)
        account = Account.of(self._place, options) if connection is None else None
        checked = Options.parse(options)
        self._connection = account.connect() if account is not None else connection
        self._keys = Keys(checked, clock)
        if checked.create:
            with _explained(self._place.url):
                self._connection.put_container(self._place.container)
        super().__init__(self._place.url, checked, clock)

    def _child_of_fork(self) -> None:
        super()._child_of_fork()
        self._connection.http_conn = None  # It is the parent's.

    def _subject(self, path: str) -> str:
        return f"{self.url}/{to_key(path)}"

    def _root_found(self) -> str | None:
        return self._account()

    def _account(self) -> str:
        """What tells the account from others, whichever server it is reached by."""
        return urlsplit(self._connection.url or "").path

    def _look(self, known: Known) -> Iterator[tuple[str, Content]]:
        self._keys.begin(known)
        with _explained(self.url):
            rows = list(self._rows())
            self._accept(known)
            listing, marked = self._read(rows)
            missing = self._missing(known, {key for key, _ in listing})
            self._refuse_mass_deletion(len(missing))
            there = self._that_are_there(missing)
        self._counts.skipped += len(there)
        yield from self._keys.contents(listing, known, marked, there)

    def _accept(self, known: Known) -> None:
        if known.root not in ("", self._account()) and known.count and not self._options.rebind:
            what = "it belongs to another account than the one known"
            raise PollerUnavailable(errno.ENODEV, f"{what}: log in there, or pass rebind=True", self.url)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """The complete listing, page by page: Swift cuts each off, and does not say so."""
        marker = ""
        while True:
            _, page = self._connection.get_container(
                self._place.container,
                marker=marker or None,
                prefix=self._place.prefix or None,
                delimiter=None if self._options.recurse else "/",
            )
            if not page:
                return
            yield from page
            last = page[-1].get("name") or page[-1].get("subdir") or ""
            if last <= marker:
                raise OSError(errno.EIO, "the listing does not get on")
            marker = last

    def _read(self, rows: Iterable[Mapping[str, Any]]) -> tuple[list[tuple[str, Identity | None]], list[str]]:
        """The files of a listing, and the directories that it marks; both below the prefix."""
        listing: list[tuple[str, Identity | None]] = []
        marked = []
        for row in rows:
            key = (row.get("name") or row["subdir"]).removeprefix(self._place.prefix)
            if not key:
                continue
            is_marker = row.get("content_type") == _DIRECTORY and not row.get("bytes")
            if "subdir" in row or is_marker or (key.endswith("/") and not row.get("bytes")):
                marked.append(key.removesuffix("/"))
            else:
                listing.append((key, _identity(row, self._clock)))
        return listing, [directory for directory in marked if directory]

    def _missing(self, known: Known, listed: set[str]) -> list[str]:
        """The keys that are known, and not listed."""
        missing = []
        for directory, _, files in known.below():
            prefix = f"{directory}/" if directory else ""
            missing += [key for name in files if (key := to_key(prefix + name)) not in listed]
        return missing

    def _that_are_there(self, keys: list[str]) -> list[str]:
        """Those objects of which the listing lags behind: they are there."""
        parts = [part for number in range(_AT_ONCE) if (part := keys[number::_AT_ONCE])]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [key for found in pool.map(self._ask_for, parts) for key in found]

    def _ask_for(self, keys: list[str]) -> list[str]:
        client = importlib.import_module("swiftclient")
        # A connection of its own: the other one is not for threads.
        connection = self._connection.http_connection()
        found = []
        for key in keys:
            name = self._place.prefix + key
            try:
                client.head_object(
                    self._connection.url, self._connection.token, self._place.container, name, http_conn=connection
                )
            except client.ClientException as error:
                if error.http_status != _MISSING:
                    raise
            else:
                found.append(key)
        return found


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """A context in which whatever the clients of Swift and Keystone raise becomes :class:`.PollerUnavailable`."""
    try:
        yield
    except (PollerUnavailable, *MISTAKES):
        raise
    except Exception as error:
        status = getattr(error, "http_status", None)
        if status is None:
            raise unavailable(error, url) from error
        # The message of Swift's client has the answer of the server, of any length.
        what = f"{status} {getattr(error, 'http_reason', '') or error}"
        raise PollerUnavailable(_ERRNOS.get(status, errno.EIO), f"the answer is {what}", url) from error


def _identity(row: Mapping[str, Any], clock: Callable[[], float]) -> Identity | None:
    found = identity_of_info(row, "swift", clock=clock)
    # The same bytes may be stored again.
    return None if found is None else found._replace(token=f"{found.token}:{row.get('last_modified', '')}")
