"""
A file that is written back: it grows in the cache, and is accepted when it is closed or committed. The source gets it
later.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dogpile_filesystem.failures import NO_ROOM
from dogpile_filesystem.remote.through.local_writer import LocalWriter, RawLocalFile
from dogpile_filesystem.store import Draft, NoRoom, Store

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Seconds until a file that waits for room looks once more. What is sent meanwhile makes some.
_LOOK = 0.05
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Patience:
    """
    How long a file waits for room.

    :param lock_timeout: seconds; None: always.
    :param monotonic: seconds that run forward.
    :param sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        lock_timeout: float | None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lock_timeout = lock_timeout
        self._monotonic = monotonic
        self._sleep = sleep

    def wait_for_room(self, store: Store, path: str, function: Callable[[], object]) -> None:
        """
        Call a function until it finds room.

        :raises OSError: ENOSPC: it does not, in all this time. Or another one of the function's.
        """
        began = self._monotonic()
        while True:
            try:
                function()
            except NoRoom:
                error = OSError(errno.ENOSPC, "no room in the cache beside files that are not sent yet", path)
            except OSError as raised:
                if raised.errno not in _FULL:
                    raise
                error = raised
            else:
                return
            if self._lock_timeout is not None and self._monotonic() - began >= self._lock_timeout:
                store.failures.report(NO_ROOM, "a written file finds no room: raise cache_size, or look at unsent()")
                raise error
            self._sleep(_LOOK)


class RawBackFile(RawLocalFile):
    """
    The draft, for which room is reserved before it grows.

    :raises OSError: it cannot be made; ENOSPC: there is no room.
    """

    def __init__(self, store: Store, key: bytes, name: str, patience: Patience) -> None:
        self._store, self._patience = store, patience

        def begin() -> None:
            self.draft: Draft = store.unsent.draft(key)

        patience.wait_for_room(store, name, begin)
        try:
            super().__init__(self.draft.path, name)
        except BaseException:
            self.release()
            raise

    def write(self, data: ReadableBuffer) -> int:
        self.refuse_child()
        view = memoryview(data).cast("B")
        stop = self.tell() + len(view)
        written = 0

        def write() -> None:
            nonlocal written
            self.draft.reserve(stop)
            written = super(RawBackFile, self).write(view)

        self._patience.wait_for_room(self._store, self.name, write)
        return written

    def truncate(self, size: int | None = None) -> int:
        self.refuse_child()
        size = self.tell() if size is None else size
        self._patience.wait_for_room(self._store, self.name, lambda: self.draft.reserve(size))
        return super().truncate(size)

    def release(self) -> None:
        """Remove the local file, unless it was accepted. Never fails."""
        self.draft.discard()


class BackFile(LocalWriter):
    """
    A file of a slow source, opened for writing. It is safe on the local disk when :meth:`close` returns, and all
    readers of the cache see it; or that raises, and everything is as before.

    Concurrency. Threads may share one. A forked child cannot write to it, and its end accepts nothing. It cannot be
    pickled. Of files of one path that are written at once, the one closed last stays; with ``"xb"`` and ``"ab"``,
    closing it raises instead.

    Crash. What a killed process was writing is lost. What was closed is not.

    :param accept: takes the draft as the unsent file of the path.
    """

    raw: RawBackFile

    def __init__(self, raw: RawBackFile, accept: Callable[[Draft], None], *, mode: str, autocommit: bool) -> None:
        super().__init__(raw, mode, autocommit=autocommit)
        self._accept = accept

    def _commit(self) -> None:
        """
        Accept the file.

        :raises FileExistsError: with ``"xb"``: somebody else has made the file since it was opened.
        :raises SourceChanged: with ``"ab"``: somebody else has written or removed it since.
        :raises OSError: it is not accepted; ENOSPC: there is no room.
        """
        self._accept(self.raw.draft)
