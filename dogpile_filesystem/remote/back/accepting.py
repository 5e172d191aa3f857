"""
Accepting what is written and removed: it takes the place of what is unsent of a path, and of nothing else.

Concurrency. Who sends, writes or removes the path in this moment changes what its record has to say of the source. So
the record is made anew when what it was made of is no longer there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.back.back_file import Patience
from dogpile_filesystem.remote.beside import exists
from dogpile_filesystem.remote.metadata.versions import Versions
from dogpile_filesystem.remote.source import SourceChanged
from dogpile_filesystem.remote.unsent import Record
from dogpile_filesystem.store import Draft, Store, UnsentFile

_Accept = Callable[[bytes, Callable[[], bool]], str]


class Basis(NamedTuple):
    """
    What the cache knew of a path when a file was opened that goes on with what is there, or must be new.

    :ivar token: of what was unsent; empty: nothing was.
    :ivar known: the identity that the source's file was known to have; None: nothing was known.

    Limits. What was unsent may have been sent, and another file after it: that is not told from the first.
    """

    token: str
    known: str | None

    def holds(self, file: UnsentFile | None, known: str | None) -> bool:
        """
        Whether nobody who uses the cache has written or removed the file since.

        :param file: what is unsent now.
        :param known: as :attr:`known`, now.
        """
        if file is not None:
            return file.token == self.token
        return bool(self.token) or known in (None, self.known)


class Acceptance:
    """
    Accepts unsent files of a source.

    :param namespace: of the source.
    :param origin: how the source is made again: as :func:`.origin.describe` has it.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        versions: Versions,
        patience: Patience,
        *,
        namespace: str,
        origin: dict[str, Any],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._versions = versions
        self._patience = patience
        self._namespace = namespace
        self._origin = origin
        self.clock = clock

    def basis(self, path: str) -> Basis:
        """What is known of a path now."""
        file = self._store.unsent.find(self._versions.key(path))
        return Basis("" if file is None else file.token, self._versions.known_identity(path))

    def take(self, path: str, draft: Draft, wait: float, *, mode: str, basis: Basis | None) -> None:
        """
        Accept a file.

        :param wait: seconds until it is sent.
        :param mode: with which it was opened.
        :param basis: what was there then; None: the file replaces whatever is there.
        :raises FileExistsError: with ``"xb"``: somebody else has made the file since.
        :raises SourceChanged: with ``"ab"``: somebody else has written or removed it since.
        :raises OSError: it is not accepted; ENOSPC: there is no room.
        """

        def refuse(before: UnsentFile | None) -> None:
            if basis is not None and not basis.holds(before, self._versions.known_identity(path)):
                raise SourceChanged(path) if mode == "ab" else exists(path)

        self._accept(path, draft.accept, refuse, wait, removed=False)

    def remove(self, path: str, expected: UnsentFile | None = None) -> None:
        """
        Have a path removed, for all readers of the cache now, and at the source when it can be.

        :param expected: what is to be removed; None: whatever is there.
        :raises SourceChanged: something else is there by now, and stays.
        :raises OSError: it is not accepted; ENOSPC: there is no room.
        """
        key = self._versions.key(path)

        def refuse(before: UnsentFile | None) -> None:
            if expected is not None and (before is None or before.token != expected.token):
                raise SourceChanged(path)

        def accept(metadata: bytes, only_if: Callable[[], bool]) -> str:
            return self._store.unsent.accept(key, metadata, only_if)

        self._accept(path, accept, refuse, 0.0, removed=True)

    def _accept(
        self, path: str, accept: _Accept, refuse: Callable[[UnsentFile | None], None], wait: float, *, removed: bool
    ) -> None:
        find, key = self._store.unsent.find, self._versions.key(path)
        is_accepted = False
        while not is_accepted:
            before = find(key)
            refuse(before)
            metadata = self._record(path, before, wait, removed=removed).pack()

            def accept_once(before: UnsentFile | None = before, metadata: bytes = metadata) -> None:
                nonlocal is_accepted
                is_accepted = bool(accept(metadata, lambda: find(key) == before))

            self._patience.wait_for_room(self._store, path, accept_once)
        self._versions.look_again(path)

    def _record(self, path: str, before: UnsentFile | None, wait: float, *, removed: bool) -> Record:
        """The record of what is accepted now, in place of what is unsent before."""
        now, known = self.clock(), self._versions.known_identity(path)
        record = Record(path, self._namespace, now, now + wait, removed=removed, base=known, source=self._origin)
        record_before = None if before is None else unsent.unpack(before.metadata)
        return record if record_before is None else record_before.replaced(record)
