"""
The two backends of dogpile.cache, registered as ``paylogic.filesystem`` and ``paylogic.raw_filesystem``.
"""

from __future__ import annotations

import json
import logging
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
    KeyType,
    SerializedReturnType,
)

from dogpile_filesystem.arguments import Arguments
from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.lockfile import Stats
from dogpile_filesystem.maintenance import Report, check, remove_matching
from dogpile_filesystem.pickling import pack, pickled, unpack, unpickled
from dogpile_filesystem.predecessor import report_predecessor
from dogpile_filesystem.store import Store

logger = logging.getLogger(__name__)

__all__ = ["GenericFSBackend", "RawFSBackend"]


def _key_bytes(key: object) -> bytes:
    if isinstance(key, str):
        return key.encode("utf-8", "surrogatepass")
    if isinstance(key, bytes):
        return key
    msg = f"the key {key!r} is a {type(key).__name__}: pass a string, or give the region a key_mangler that returns one"
    raise TypeError(msg)


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
            memory_size=self.arguments.memory_size if self._kind == VALUE else 0,
        )
        self.store.open_if_possible()
        report_predecessor(self.arguments.base_dir)
        if self.arguments.large_values:
            # dogpile then hands over the values themselves. The raw backend has no serializer anyway.
            self.serializer = self.deserializer = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.arguments}>"

    def get_mutex(self, key: KeyType) -> CacheMutex | None:
        """
        The mutex under which a key's value is created; None with ``distributed_lock=False``.
        """
        if not self.arguments.distributed_lock:
            return None
        given = self.arguments
        timeout = given.lock_timeout if given.has_lock_timeout else self.store.lock_timeout
        mutex = self.store.mutex(self._kind, _key_bytes(key), timeout)
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
        Remove expired entries, leftovers of killed processes, and everything over the bound, now.

        There is no need to call it: the bound always holds, and expired entries are removed in the course of use. It
        looks at every entry, so its time is in proportion to their number.
        """
        self.store.prune()

    def remove_matching(self, prefix: KeyType) -> int:
        """
        Remove all values of this backend whose keys begin with a prefix: those of a function, say, or of a user.

        The keys of ``cache_on_arguments`` are ``module:function|argument argument``, or with a namespace
        ``module:function|namespace|argument argument``, unless the region has a ``function_key_generator`` of its own,
        or a ``key_mangler``, which acts first. A prefix that ends within an argument also matches longer ones: ``|4``
        is the beginning of ``|42``.

        The time is in proportion to the number of all entries: about 10 us for each, and 80 us more for each that is
        removed. A value whose creation had already begun may be stored afterwards. If an entry cannot be removed, this
        process no longer reads it, as with :meth:`delete`.

        :return: how many were removed. If the filesystem fails, more may have been removed.
        :raises TypeError: the prefix is neither a string nor bytes.
        :raises ValueError: it is empty.
        """
        packed = _key_bytes(prefix)
        if not packed:
            msg = "an empty prefix matches everything: that is clear()"
            raise ValueError(msg)
        return remove_matching(self.store, packed, [self._kind])

    def clear(self) -> None:
        """
        Remove all entries of the directory: readers miss them at once, and then they are removed from the disk.

        A value that is being written at the same time may be lost.
        """
        self.store.clear()

    def stats(self) -> Stats:
        """
        Counts of hits, misses and the like, by this process and by all, and of what is in the cache. Never fails.

        It takes about 100 us, regardless of the number of entries.
        """
        return self.store.stats()

    def check(self, *, repair: bool = False) -> Report:
        """
        Read everything, and report what is wrong. The time is in proportion to the entries and the bytes of values;
        others can use the cache meanwhile.

        :param repair: whether to repair it: remove damaged entries and leftovers of killed processes, and count the
         ledger anew. Default False.
        :return: what was found, before any repair.
        :raises OSError: the directory cannot be used.
        """
        return check(self.store, repair=repair)


class GenericFSBackend(_FSBackend, BytesBackend):
    """
    Keeps each value as a file: any value that can be pickled, or that the region's own serializer takes.

    ::

        from dogpile.cache import make_region

        region = make_region().configure(
            "paylogic.filesystem",
            expiration_time=3600,
            arguments={"base_dir": "/var/cache/myapp", "cache_size": "512MiB"},
        )

    Each argument may also be a string, as an INI file gives it. ``none`` means None, and an empty string means the
    default.

    :param base_dir: the directory, for this cache alone. It is made if it is missing, for its owner only. ``~`` is
     expanded. Required, and never empty.
    :param cache_size: the most bytes that entries take on the disk, each file counted in whole blocks of 4096; or a
     string such as ``"512MiB"`` or ``"10GB"``. At least 4096. Default 1 GiB. None: unbounded.
    :param max_entries: the largest number of entries. Default None: unbounded.
    :param expiration_time: seconds, or a ``timedelta``, after which an entry is a miss and is removed from the disk.
     Default None: never. It does not depend on the region's ``expiration_time``, after which a region regenerates a
     value but may still use the old one. Set it to the longest time for which an old value is of any use.
    :param distributed_lock: whether at most one thread in all *processes* creates the value of a key at a time.
     Default True. False: dogpile excludes the threads of one process only.
    :param min_free_space: bytes, or a string such as ``"1GiB"``, to leave free on the filesystem. The cache evicts
     entries to keep this space free; if that is not enough, it does not store the value. Several processes that write
     at the same moment may go below it for that moment. Default None: nothing is left free.
    :param dir_mode: permission bits of directories, as a number or an octal string, regardless of the umask. Default
     0o700. With ``"2770"`` a group shares the cache.
    :param file_mode: permission bits of files, given likewise. Default: the bits of ``dir_mode`` that apply to files.
    :param signing_key: bytes, a string, or a list of them. The first one signs entries. An entry that is not signed
     with one of them is not read. Default None: entries are not signed.
    :param allow_shared: whether to use a directory that everybody can write to, or that belongs to a user other than
     this one and root. Anybody who can write there can run code in this program. Default False.
    :param lock_timeout: seconds that a thread waits while another one creates the value, before it creates the value
     itself. None: no limit. A creator that dies does not keep others waiting; but where several machines use the
     directory, one that dies as a whole may, on MooseFS for a day. Default: None; on a filesystem that several machines
     may use, 60.
    :param memory_size: the most bytes of values used last that this backend keeps in the memory of each process, with
     what Python needs for them; or a string such as ``"64MiB"``. A hit on one of them opens no file, and is as right as
     any other: the next read sees what another process has changed. What somebody deletes by hand is missed within a
     second. A value that takes more than an eighth is not kept. None and 0: nothing is kept. Default 0, since each
     region in each process takes that much. It has no effect on a network filesystem, and on one of an unknown type;
     the log says so.
    :param large_values: whether this backend pickles values itself. If not, dogpile does, and copies each serialized
     value once more on its way in and out. Use it for values of 1 MiB and more. The entries on the disk are the same.
     dogpile then calls ``get`` and ``set`` of a ``ProxyBackend``, and never ``get_serialized`` and ``set_serialized``:
     a proxy that encrypts values in these two would be passed by. An array in a value must not be changed while the
     value is set, or it is a miss. In a region with its own serializer and deserializer, this has no effect. Default
     False.

    :raises TypeError: ``base_dir`` is missing, or an argument has a wrong type.
    :raises ValueError: an argument is out of range.
    :raises PermissionError: others could plant entries in the directory. The message says what to do.

    Concurrency. Any number of threads and processes, forked or spawned, may share a directory, also through symbolic
    links to it. A reader gets a value exactly as it was written, or a miss.

    Crash. Nothing needs to be repaired by hand. A killed process loses at most the value that it was writing. After a
    power cut, a value that had not yet reached the disk is a miss.

    Limits. A filesystem that fails never raises: a read is a miss, and a created value is returned even if it cannot
    be kept. Each cause is logged once a minute, and counted in ``backend.stats()``. With up to 1,000 entries, eviction
    follows the order of last use exactly; with more, it uses a sample. Other processes see a use after 5 seconds.
    Directories and the lock file do not count towards ``cache_size``. A set and a hit need memory for up to two
    serialized copies of the value, besides the value itself: dogpile joins and splits it from its metadata. With
    ``large_values``, they need memory for at most one.
    """

    _kind = VALUE

    serializer = staticmethod(pickled)
    deserializer = staticmethod(unpickled)

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
        """With ``large_values``, a ``CachedValue`` or ``NO_VALUE``; otherwise as :meth:`get_serialized`."""
        if not self.arguments.large_values:
            return self.get_serialized(key)
        data = self.store.get(_key_bytes(key))
        value = None if data is None else unpack(data)
        return NO_VALUE if value is None else value

    def get_multi(self, keys: Iterable[KeyType]) -> Sequence[BackendFormatted]:
        """As :meth:`get`, of several keys, in their order."""
        return [self.get(key) for key in keys]

    def set(self, key: KeyType, value: BackendSetType) -> None:
        """
        With ``large_values``, pickle and store a ``CachedValue``; otherwise as :meth:`set_serialized`.

        :raises TypeError: the value is not what this setting takes.
        """
        if not self.arguments.large_values:
            self.set_serialized(key, cast("bytes", value))
        elif isinstance(value, CachedValue):
            self.store.put(_key_bytes(key), pack(value))
        else:
            msg = (
                f"with large_values, only a CachedValue can be stored, not {type(value).__name__}: "
                "set values through a region, and serialized ones with set_serialized"
            )
            raise TypeError(msg)

    def set_multi(self, mapping: Mapping[KeyType, BackendSetType]) -> None:
        """As :meth:`set`, for several keys."""
        for key, value in mapping.items():
            self.set(key, value)


class RawFSBackend(_FSBackend):
    """
    Keeps binary files, without ever holding the whole content of one in memory.

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

    A value is any binary file that can be read and seeked. The whole content is stored, regardless of the file's
    position; after a hit, reading starts at that position. Each hit opens the file anew for its caller, with a
    descriptor and a name, and the caller closes it. It stays readable if the entry is replaced or evicted meanwhile.

    The arguments and guarantees are those of :class:`GenericFSBackend`, and:

    :param file_movable: whether the cache may move a file in by renaming it, which takes the same time for any size.
     The caller's open file keeps working, but must not be written to any more. A file that cannot be renamed is copied;
     if that is because it lies on another filesystem, its name is removed afterwards. A file without a name of its own,
     and a ``NamedTemporaryFile`` with ``delete=True``, is always copied. Default False: files are copied, by the kernel
     where it can.

    :raises TypeError: also by ``set``: the value is not a binary file.
    :raises ValueError: also by ``set``: the file is closed, cannot seek or cannot be read.

    Limits. Each hit checks the length of the content, and on ext4 that a power cut left no holes in it; it does not
    check the bytes. On ext4, a file with parts that were allocated but never written may be treated as damaged, and
    created again. A file that was moved in but cannot be kept gets its name back, unless the process is killed at that
    moment.
    """

    _kind = FILE

    def get(self, key: KeyType) -> BackendFormatted:
        """
        The file of a key in a ``CachedValue``, or ``NO_VALUE``. A file set without metadata comes without any.
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
