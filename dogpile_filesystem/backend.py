"""
The two backends of dogpile.cache, registered as ``paylogic.filesystem`` and ``paylogic.raw_filesystem``.
"""

from __future__ import annotations

import functools
import json
import logging
import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, cast

from dogpile.cache.api import (
    NO_VALUE,
    BackendFormatted,
    BackendSetType,
    BytesBackend,
    CacheBackend,
    CachedValue,
    CacheMutex,
    CantDeserializeException,
    KeyType,
    SerializedReturnType,
)

from dogpile_filesystem.arguments import Arguments
from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.lockfile import Stats
from dogpile_filesystem.maintenance import Report, check, remove_matching
from dogpile_filesystem.predecessor import report_predecessor
from dogpile_filesystem.store import Refused, Store

logger = logging.getLogger(__name__)

__all__ = ["GenericFSBackend", "RawFSBackend"]

#: The pickle protocol is fixed, so that all supported versions of Python can share a cache.
PICKLE_PROTOCOL = 5


def _key_bytes(key: object) -> bytes:
    if isinstance(key, str):
        return key.encode("utf-8", "surrogatepass")
    if isinstance(key, bytes):
        return key
    msg = f"the key {key!r} is a {type(key).__name__}: pass a string, or give the region a key_mangler that returns one"
    raise TypeError(msg)


def _unpickle(data: bytes) -> Any:
    try:
        return pickle.loads(data)  # noqa: S301 - from a directory that only the user can write to
    except Exception as error:  # A class that is gone can raise anything.
        raise CantDeserializeException from error


class _FSBackend(CacheBackend):
    """What both backends have in common: arguments, mutexes, removal."""

    _kind: int

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = Arguments.parse(arguments)
        self.store = Store(
            self.arguments.base_dir,
            cache_size=self.arguments.cache_size,
            max_entries=self.arguments.max_entries,
            min_free_space=self.arguments.min_free_space,
            expiration_time=self.arguments.expiration_time,
            access=self.arguments.access,
            kinds=[self._kind],
            signing_keys=self.arguments.signing_keys,
        )
        try:
            self.store.open()
        except Refused:
            raise
        except OSError as error:
            self.store.failures.report_error(error, "cannot open the directory, so nothing is kept")
        report_predecessor(self.arguments.base_dir)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.arguments}>"

    def get_mutex(self, key: KeyType) -> CacheMutex | None:
        """
        The mutex under which a key's value is created; None with ``distributed_lock=False``.
        """
        if not self.arguments.distributed_lock:
            return None
        mutex = self.store.mutex(self._kind, _key_bytes(key), self.arguments.lock_timeout)
        return cast("CacheMutex", mutex)

    def delete(self, key: KeyType) -> None:
        """Remove the value of a key, if there is one."""
        self.store.remove(_key_bytes(key), self._kind)

    def delete_multi(self, keys: Iterable[KeyType]) -> None:
        """Remove the values of several keys."""
        for key in keys:
            self.delete(key)

    def prune(self) -> None:
        """
        Remove what is expired, left over, and over the bound, now.

        Nobody has to call it: the bound always holds, and expired entries leave the disk by themselves. Looks at
        every entry, so that it takes time in proportion to their number.
        """
        self.store.prune()

    def remove_matching(self, prefix: KeyType) -> int:
        """
        Remove all values of this backend whose keys begin with a prefix: those of a function, say, or of a user.

        The keys of ``cache_on_arguments`` are ``module:function|argument argument``, or with a namespace
        ``module:function|namespace|argument argument``, unless the region has a ``function_key_generator`` of its own,
        or a ``key_mangler``, which acts first. A prefix that ends within an argument also matches longer ones: ``|4``
        is the beginning of ``|42``.

        Takes time in proportion to the number of all entries: some 10 us each, and 80 us for each that goes. A value
        whose creation began before may be stored afterwards. One that cannot be removed is not read by this process any
        more, as with :meth:`delete`.

        :return: how many were removed; where the filesystem makes trouble, at least so many.
        :raises TypeError: the prefix is no string.
        :raises ValueError: it is empty.
        """
        packed = _key_bytes(prefix)
        if not packed:
            msg = "an empty prefix matches everything: that is clear()"
            raise ValueError(msg)
        return remove_matching(self.store, packed, [self._kind])

    def clear(self) -> None:
        """
        Remove all entries of the directory: at once for readers, and then from the disk.

        What is being written meanwhile may be lost.
        """
        self.store.clear()

    def stats(self) -> Stats:
        """
        What was done with the cache, by this process and by all, and what is in it. Never fails.

        Takes some 100 us, however many entries there are.
        """
        return self.store.stats()

    def check(self, *, repair: bool = False) -> Report:
        """
        Read everything, and say what is wrong. Takes time in proportion to the entries, and disturbs nobody.

        :param repair: whether to mend it: damaged entries, and what killed processes left, go; the ledger is counted
         anew.
        :return: what was found, before it was mended.
        :raises OSError: the directory cannot be used.
        """
        return check(self.store, repair=repair)


class GenericFSBackend(_FSBackend, BytesBackend):
    """
    Keeps values as files: anything that can be pickled, or that the region's own serializer takes.

    ::

        from dogpile.cache import make_region

        region = make_region().configure(
            "paylogic.filesystem",
            expiration_time=3600,
            arguments={"base_dir": "/var/cache/myapp", "cache_size": "512MiB"},
        )

    Arguments, each also accepted as a string, as an INI file gives it:

    :param base_dir: the directory, for this cache alone. Made when it is missing, for its owner only. ``~`` is
     expanded. Required.
    :param cache_size: bytes that entries take on disk at most, each counted in whole blocks of 4096; or a string such
     as ``"512MiB"`` or ``"10GB"``. Default 1 GiB. None: unbounded.
    :param max_entries: the number of entries at most. Default None: unbounded.
    :param expiration_time: seconds, or a ``timedelta``, after which an entry is a miss and leaves the disk. Default
     None: never. It is independent of the region's ``expiration_time``, after which a region regenerates a value that
     it may still use; set it to the longest time for which an old value is of any use.
    :param distributed_lock: whether at most one thread of one *process* creates the value of a key. Default True.
     False: dogpile excludes the threads of each process by itself.
    :param min_free_space: bytes, or a string, that are to stay free on the filesystem: the cache evicts, and then does
     not store, rather than leave less, give or take what several processes write in one moment. Default None: anything.
    :param dir_mode: permission bits of directories, as a number or an octal string, whatever the umask. Default 0o700.
     With ``"2770"`` a group shares the cache.
    :param file_mode: permission bits of files. Default: those of directories without what is of no use to a file.
    :param signing_key: bytes or a string, or a list of them: the first signs entries, and none is read that was not
     signed with one of them. Default None: entries are not signed.
    :param allow_shared: whether to use a directory that everybody can write to, or that belongs to somebody else than
     this user or root, although whoever writes there can run code here. Default False.
    :param lock_timeout: seconds that a thread waits for another creator, before it creates the value too. Default
     None: for ever. A creator that dies does not keep anybody waiting.

    :raises TypeError: ``base_dir`` is missing, or an argument is of a wrong type.
    :raises ValueError: an argument is out of range.
    :raises PermissionError: others could plant entries in the directory.

    Concurrency. Any number of threads and processes, forked and spawned, may share a directory, also through symbolic
    links to it. Who reads gets a value as it was written, or a miss.

    Crash. Nothing has to be repaired by hand. A killed process loses at most the value it was writing. After a power
    cut, values that were not yet on the disk are misses.

    Limits. Trouble with the filesystem never raises: a read is a miss, and a value is returned though it could not be
    kept. It is logged once a minute per cause, and counted in ``backend.stats()``. Up to 1,000 entries eviction is
    exactly in the order of last use; beyond, it goes by a sample. A use in another process counts after 5 seconds.
    Directories and the lock file are not part of ``cache_size``.
    """

    _kind = VALUE

    serializer = staticmethod(functools.partial(pickle.dumps, protocol=PICKLE_PROTOCOL))
    deserializer = staticmethod(_unpickle)

    def get_serialized(self, key: KeyType) -> SerializedReturnType:
        """The serialized value of a key, or ``NO_VALUE``."""
        value = self.store.get(_key_bytes(key))
        return NO_VALUE if value is None else value

    def get_serialized_multi(self, keys: Iterable[KeyType]) -> Sequence[SerializedReturnType]:
        """The serialized values of several keys, in their order."""
        return [self.get_serialized(key) for key in keys]

    def set_serialized(self, key: KeyType, value: bytes) -> None:
        """
        Store a serialized value.

        :raises TypeError: the value is not bytes.
        """
        if not isinstance(value, bytes):
            msg = f"only bytes can be stored, not {type(value).__name__}: set values through a region"
            raise TypeError(msg)
        self.store.put(_key_bytes(key), value)

    def set_serialized_multi(self, mapping: Mapping[KeyType, bytes]) -> None:
        """Store several serialized values."""
        for key, value in mapping.items():
            self.set_serialized(key, value)

    def get(self, key: KeyType) -> BackendFormatted:
        """As :meth:`get_serialized`: this backend knows no other form of values."""
        return self.get_serialized(key)

    def get_multi(self, keys: Iterable[KeyType]) -> Sequence[BackendFormatted]:
        """As :meth:`get_serialized_multi`."""
        return self.get_serialized_multi(keys)

    def set(self, key: KeyType, value: BackendSetType) -> None:
        """As :meth:`set_serialized`."""
        self.set_serialized(key, cast("bytes", value))

    def set_multi(self, mapping: Mapping[KeyType, BackendSetType]) -> None:
        """As :meth:`set_serialized_multi`."""
        self.set_serialized_multi(cast("Mapping[KeyType, bytes]", mapping))


class RawFSBackend(_FSBackend):
    """
    Keeps binary files, whose content never passes through memory as a whole.

    ::

        region = make_region().configure(
            "paylogic.raw_filesystem",
            arguments={"base_dir": "/var/cache/myapp-files", "cache_size": "10GB", "file_movable": True},
        )

        @region.cache_on_arguments()
        def report(year):
            file = tempfile.NamedTemporaryFile(delete=False)
            write_report(year, file)
            file.seek(0)
            return file

    A value is any binary file that can be read and seeked. Its whole content is stored, whatever its position; the
    position is where reading starts after a hit. A hit is a file opened for its caller alone, with a descriptor and a
    name, to be closed by the caller. It stays readable if its entry is replaced or evicted meanwhile.

    Arguments as of :class:`GenericFSBackend`, and:

    :param file_movable: whether a file may be moved into the cache by renaming it, which costs the same for any size.
     The caller's open file goes on working, but must not be written to any more. A file that cannot be renamed is
     copied, and its name removed if the reason is that it lies on another filesystem. Only copied are files without
     a name of their own, and a ``NamedTemporaryFile`` with ``delete=True``. Default False: files are copied, in the
     kernel where it can.

    :raises TypeError: also by ``set``, for what is no binary file.
    :raises ValueError: also by ``set``, for a file that is closed, cannot seek or cannot be read.

    Limits. The content is checked for its length on each hit, and on ext4 for holes that a power cut makes; not for its
    bytes. A file on ext4 with parts that were allocated, but never written, may be taken for damaged, and made anew. A
    file that was moved in and cannot be kept gets its name back, unless the process is killed in that moment.
    """

    _kind = FILE

    def get(self, key: KeyType) -> BackendFormatted:
        """
        The file of a key in a ``CachedValue``, or ``NO_VALUE``. What was set without metadata comes without them.
        """
        hit = self.store.get_file(_key_bytes(key))
        if hit is None:
            return NO_VALUE
        if not hit.metadata:
            return cast("BackendFormatted", hit.file)
        try:
            return CachedValue(hit.file, dict(json.loads(hit.metadata)))
        except (ValueError, TypeError, RecursionError):  # Not written by dogpile.cache.
            hit.file.close()
            return NO_VALUE

    def get_multi(self, keys: Iterable[KeyType]) -> Sequence[BackendFormatted]:
        """The files of several keys, in their order."""
        return [self.get(key) for key in keys]

    def set(self, key: KeyType, value: BackendSetType | BinaryIO) -> None:
        """
        Store a file, or a ``CachedValue`` of one.

        :raises TypeError: it is no binary file.
        :raises ValueError: it is closed, cannot seek or cannot be read.
        """
        file, metadata = (value.payload, value.metadata) if isinstance(value, CachedValue) else (value, None)
        packed = b"" if metadata is None else json.dumps(metadata).encode()
        self.store.put_file(_key_bytes(key), cast("BinaryIO", file), packed, movable=self.arguments.file_movable)

    def set_multi(self, mapping: Mapping[KeyType, BackendSetType]) -> None:
        """Store several files."""
        for key, value in mapping.items():
            self.set(key, value)
