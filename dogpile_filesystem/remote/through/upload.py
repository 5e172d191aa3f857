"""
Uploads: a local file is put to the source, and what was put is kept as blocks of the version that the source has then.

Concurrency. Uploads of one path exclude each other, over all processes: each holds the file's mutex. Readers never meet
a part of a file, on sources that can rename (see beside.py). Who has the version before open goes on with it, as far as
that is in the cache.

Crash. What a killed upload left beside the file is overwritten by the next one. While a file is put, there is no record
of its version, unless a reader looks meanwhile: with ``check="never"``, a kill just then has the old version served on.

Limits. A change of the same length, made by somebody else between our put and our look, is noticed where the source
tells an MD5 of the content, and for local files. Other sources show no difference.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from dogpile_filesystem.remote.beside import (
    is_temporary,
    refuse_existing,
    replace,
    replace_local,
    temporary_path,
    token_of,
    unique_token,
)
from dogpile_filesystem.remote.metadata.listings import Listings
from dogpile_filesystem.remote.metadata.versions import Version, Versions
from dogpile_filesystem.remote.source import Source, SourceChanged
from dogpile_filesystem.remote.through.durable import sync_changed
from dogpile_filesystem.sources import is_local, is_rewritten_in_place, protocols_of, says_missing
from dogpile_filesystem.store import Store

__all__ = ["Uploads", "is_temporary"]

#: Their etag of 32 hexadecimal digits is the MD5 of the content, unless it is encrypted.
_MD5_ETAGS = {"s3", "s3a", "swift", "oss"}
#: Bytes that are read at a time.
_PIECE = 1 << 20


class Uploads:
    """
    What puts files to a source.

    :param lock_timeout: seconds after which an upload no longer waits for another one of the same path; None: it always
     waits.
    :param cache_size: the bound of the store in bytes; None: it has none.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        versions: Versions,
        listings: Listings,
        *,
        lock_timeout: float | None,
        cache_size: int | None,
    ) -> None:
        self._store = store
        self._source = source
        self._versions = versions
        self._listings = listings
        self._lock_timeout = lock_timeout
        self._cache_size = cache_size

    @contextlib.contextmanager
    def holding(self, path: str) -> Iterator[bool]:
        """
        Hold the mutex of a file: nobody else who uses the cache puts it meanwhile. It is not reentrant.

        :return: whether it was obtained, before ``lock_timeout`` was over. The caller goes on all the same.
        """
        mutex = self._store.unsent.mutex(self._versions.key(path), self._lock_timeout)
        try:
            yield mutex.acquire()
        finally:
            mutex.release()

    def put(
        self,
        local_path: str,
        path: str,
        *,
        mode: str = "overwrite",
        base: Version | None = None,
        callback: Callback = DEFAULT_CALLBACK,
        **options: Any,
    ) -> Version:
        """
        Put a local file to the source, and keep its content.

        :param path: as the source's filesystem takes it.
        :param mode: ``"create"``: it is an error if the source has the file.
        :param base: the version that the content was made of; None: of none.
        :param options: for the source's ``put_file``.
        :return: the version that the source has now.
        :raises FileExistsError: the file is there.
        :raises SourceChanged: the source no longer has ``base``.
        :raises TimeoutError: an older content is being sent for longer than ``lock_timeout``.
        :raises OSError: EIO: the source accepted the file, and does not have all of it. Or the record of an older
         content, which is unsent, cannot be read.
        :raises Exception: whatever the source raises.
        """
        with self.holding(path) as is_held:
            arguments = {"mode": mode, "base": base, "callback": callback, **options}
            older = self._versions.find_unsent(path)
            if older is not None and not is_held:
                msg = f"{path!r} is being sent for longer than lock_timeout: try again later"
                raise TimeoutError(msg)
            version = self.put_held(local_path, path, is_held=is_held, is_durable=False, **arguments)
            if older is not None:  # Nobody is to send it over what was put.
                with self._store.failures.reporting("cannot remove an unsent file that was replaced at the source"):
                    self._store.unsent.remove(older.key, older.token)
            return version

    def put_held(
        self,
        local_path: str,
        path: str,
        *,
        is_held: bool = True,
        is_durable: bool = True,
        mode: str = "overwrite",
        base: Version | None = None,
        callback: Callback = DEFAULT_CALLBACK,
        **options: Any,
    ) -> Version:
        """
        As :meth:`put`, by a caller that is in :meth:`holding`, which told ``is_held``.

        :param is_durable: whether the file survives a power cut then, if the source lies on this machine. Default True:
         whoever has its only copy goes on to remove that.
        """
        if base is not None and not self._versions.is_current(base):
            raise SourceChanged(path)
        before = os.stat(local_path)
        replaced = None if self._tells_content() else self._source.token(path)
        arguments = {"callback": callback, **options}
        record = self._versions.writing(path)
        try:
            token = self._token(path, is_held=is_held)
            made = self._replace(
                local_path, path, token, mode, self._source.fs.put_file, arguments, is_durable=is_durable
            )
            if is_durable:
                sync_changed(self._source.fs, [path])
            version = self._versions.written(path, record)
            _refuse_other_size(version, before.st_size)
            is_another = replaced is None or replaced != version.identity
            if not is_another:
                self._compare(version, local_path)
        except BaseException:
            # It may have been changed all the same.
            self._versions.not_written(path, record)
            self._listings.forget(path)
            raise
        self._listings.added(path, version.info)
        # What is kept of the same version may be another content that got the same time.
        if is_another and _is_unchanged(local_path, before):
            self._keep(version, local_path, made)
            if not _is_unchanged(local_path, before):  # So nobody knows what was kept.
                self._versions.forget(path)
        return version

    def _tells_content(self) -> bool:
        """Whether a put that was lost is noticed without a look at what was there before."""
        return is_local(self._source.fs) or bool(protocols_of(self._source.fs) & _MD5_ETAGS)

    def _compare(self, version: Version, local_path: str) -> None:
        """
        Compare a file with what the source has: it says that this is the version before, or is one like that.

        :raises OSError: EIO: it is another content.
        """
        with self._source.open(version.path) as file, open(local_path, "rb") as sent:
            while data := sent.read(_PIECE):
                if self._source.read_on(file, len(data)) != data:
                    msg = "the source accepted what was sent, and has what it had before: write the file again"
                    raise OSError(errno.EIO, msg, version.path)

    def refuse_existing(self, path: str) -> None:
        """
        Make sure that the source does not have a file.

        :raises FileExistsError: it has.
        :raises Exception: whatever the source raises.
        """
        with self._source.request():
            refuse_existing(self._source.fs, path)

    def remove_part(self, path: str) -> None:
        """
        Remove what a killed upload of a path has left beside it, if anything. For a caller that is in :meth:`holding`.

        :raises Exception: whatever the source raises.
        """
        fs = self._source.fs
        if not is_rewritten_in_place(fs):
            return
        try:
            with self._source.request():
                fs.rm_file(temporary_path(path, self._token(path, is_held=True)))
        except Exception as error:
            if not says_missing(error):  # Not all raise FileNotFoundError.
                raise

    def copy(self, path1: str, path2: str, **options: Any) -> None:
        """
        Have the source copy a file, or make a directory like another one.

        :raises Exception: whatever the source raises.
        """
        fs = self._source.fs
        if fs.isdir(path1):
            fs.cp_file(path1, path2, **options)
            return
        with self.holding(path2) as is_held:
            self._replace(path1, path2, self._token(path2, is_held=is_held), "overwrite", fs.cp_file, options)

    def _token(self, path: str, *, is_held: bool) -> str:
        return token_of(self._store.directory.base_dir, path) if is_held else unique_token()

    def _replace(
        self,
        content: str,
        path: str,
        token: str,
        mode: str,
        put: Callable[..., None],
        options: dict[str, Any],
        *,
        is_durable: bool = False,
    ) -> os.stat_result | None:
        fs, is_new = self._source.fs, mode == "create"
        with self._source.request():
            if is_local(fs):
                if getattr(fs, "auto_mkdir", False):
                    fs.makedirs(fs._parent(path), exist_ok=True)  # noqa: SLF001 - each filesystem has its own idea of it
                return replace_local(content, path, token, is_new=is_new, is_durable=is_durable)
            replace(fs, path, functools.partial(put, content, **options), token, is_new=is_new)
            return None

    def _keep(self, version: Version, local_path: str, made: os.stat_result | None) -> None:
        """Keep the content of a file as blocks, unless the source has something else by now."""
        if not version.is_kept or not version.identity or version.size < 0:
            return
        if self._cache_size is not None and version.size >= self._cache_size:
            return
        with contextlib.suppress(OSError), open(local_path, "rb") as file:  # Not to keep it harms nobody.
            if not _is_of(file, version, self._source, made):
                return
            file.seek(0)
            for number in range(version.blocks):
                data = file.read(version.block_size)
                length = min(version.block_size, version.size - number * version.block_size)
                # The file was cut off; or there is no room for this block, nor for the others.
                if len(data) != length or not self._store.put_part(version.key(number), data):
                    break


def _refuse_other_size(version: Version, size: int) -> None:
    if 0 <= version.size != size:
        msg = f"the source has {version.size} of the {size} bytes that were sent: write the file again"
        raise OSError(errno.EIO, msg, version.path)


def _is_unchanged(local_path: str, before: os.stat_result) -> bool:
    """Whether a local file is what it was before it was put."""
    try:
        after = os.stat(local_path)
    except OSError:
        return False
    return (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)


def _is_of(file: Any, version: Version, source: Source, made: os.stat_result | None) -> bool:
    """Whether a version has the content of a file, as far as the source tells."""
    if made is not None:
        told = (version.info.get("ino"), version.info.get("mtime"))
        return told == (made.st_ino, made.st_mtime)
    md5 = _told_md5(version.info, protocols_of(source.fs))
    return md5 is None or md5 == _md5(file)


def _told_md5(info: Mapping[str, Any], protocols: set[str]) -> str | None:
    """The MD5 of the content, in hexadecimal digits, as a source tells it; None: it does not."""
    etag = str(info.get("etag") or info.get("ETag") or info.get("hash") or "").strip('"')
    if protocols & _MD5_ETAGS and re.fullmatch("[0-9a-f]{32}", etag):
        return etag
    told = info.get("md5Hash")
    with contextlib.suppress(ValueError):
        return base64.b64decode(told).hex() if isinstance(told, str) else None
    return None


def _md5(file: Any) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while data := file.read(_PIECE):
        digest.update(data)
    return digest.hexdigest()
