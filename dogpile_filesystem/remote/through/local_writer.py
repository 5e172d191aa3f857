"""
What a file that is written through has in common with one that is written back: it grows in a local file, and is
committed or discarded when that is closed.

States: *open*, until :meth:`LocalWriter.close`; *closed*, with its content in the local file, if it is not committed
yet; *done*: committed or discarded, and the local file is gone. With ``autocommit``, closing commits.
"""

from __future__ import annotations

import errno
import io
import os
from typing import NoReturn

#: Bytes that are collected before they are written.
_BUFFER = 256 << 10


class RawLocalFile(io.FileIO):
    """
    The local file. Room for it is reserved before it grows.

    :param local_path: where the content grows.
    :param name: the path of the source's file.
    """

    def __init__(self, local_path: str, name: str, *, appends: bool = False) -> None:
        self._pid = os.getpid()
        super().__init__(local_path, "ab" if appends else "wb")
        self.name = name

    def refuse_child(self) -> None:
        """
        Make sure that this is the process that opened the file.

        :raises OSError: EPERM: it is a forked child of that.
        """
        if self._pid != os.getpid():
            msg = "a forked child cannot write to the file of its parent: open it in the child"
            raise OSError(errno.EPERM, msg, self.name)

    def fileno(self) -> int:
        """
        Nobody gets the descriptor, since what is written to it directly is not reserved.

        :raises io.UnsupportedOperation: always.
        """
        msg = "fileno: write with the methods of the file"
        raise io.UnsupportedOperation(msg)

    def release(self) -> None:
        """Remove the local file. Never fails."""
        raise NotImplementedError


class LocalWriter(io.BufferedWriter):
    """
    A file of a slow source, opened for writing.

    :param mode: ``"wb"``, ``"ab"`` or ``"xb"``.
    :param autocommit: whether closing commits it.
    :ivar path: as the source's filesystem takes it.
    """

    raw: RawLocalFile

    def __init__(self, raw: RawLocalFile, mode: str, *, autocommit: bool) -> None:
        super().__init__(raw, _BUFFER)
        self.path = str(raw.name)
        self.autocommit = autocommit
        self._mode = mode
        self._is_done = False

    @property
    def mode(self) -> str:
        """As it was opened."""
        return self._mode

    @property
    def is_done(self) -> bool:
        """Whether it was committed, or thrown away."""
        return self._is_done

    def close(self) -> None:
        """
        Close the file, and commit it, unless that is left to the caller.

        :raises OSError: the local disk cannot take what is left to write.
        :raises Exception: as :meth:`commit`.
        """
        if self.closed:
            return
        self._close_local()
        if self.autocommit:
            self.commit()

    def _close_local(self) -> None:
        try:
            super().close()
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """
        Commit the file. Once it was committed or discarded, there is nothing left to do.

        :raises OSError: EPERM: it is the parent's.
        :raises Exception: it is not committed.
        """
        if self._is_done:
            return
        if not self.closed:
            self._close_local()
        self.raw.refuse_child()
        self._is_done = True
        try:
            self._commit()
        finally:
            self.raw.release()

    def _commit(self) -> None:
        """Have the content taken, once."""
        raise NotImplementedError

    def discard(self) -> None:
        """Throw the file away. Does nothing when it was committed."""
        self._is_done = True
        try:
            super().close()
        except OSError:
            pass  # It has no room for what is thrown away.
        finally:
            self.raw.release()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        msg = f"cannot pickle {self.path!r}, open for writing: close it, and open it where it is to be written on"
        raise TypeError(msg)
