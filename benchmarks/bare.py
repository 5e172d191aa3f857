"""
The calls of the system that this project makes for a small value, and nothing else: what they alone cost.

The calls, their order and their arguments are those of version 1.0.0 on a local filesystem, as ``strace`` shows them.
What is read is thrown away: there is no entry to check, no ledger to add up, no recency, and no object for anything. So
this is the least that the project can take with these calls, and what it takes beyond is Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Mapping
from typing import Any

from dogpile.cache import register_backend
from dogpile.cache.api import NO_VALUE, BytesBackend, KeyType, SerializedReturnType

_READ_SIZE = 1 << 16
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_OVERWRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
#: Where the records are in the lock file, and how long they are; how long is one of them, or a generation.
_RECORDS_AT, _RECORDS_LENGTH, _LENGTH = 4096, 2313, 8
_GENERATIONS_AT = 1 << 16
#: As long as the header of an entry.
_HEADER = bytes(36)


class BareBackend(BytesBackend):
    """Keeps values of up to 4,000 bytes, one file each, in 256 directories made at the start."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        base_dir = arguments["base_dir"]
        for shard in range(256):
            os.makedirs(f"{base_dir}/values/{shard:02x}", exist_ok=True)
        self._dir_fd = os.open(base_dir, os.O_RDONLY | os.O_DIRECTORY)
        self._lock_fd = os.open(f"{base_dir}/lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(self._lock_fd, bytes(_GENERATIONS_AT), 0)

    def get_serialized(self, key: KeyType) -> SerializedReturnType:
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        try:
            fd = os.open(f"values/{digest[:2]}/{digest}", _READ, dir_fd=self._dir_fd)
        except FileNotFoundError:
            return NO_VALUE
        data = os.read(fd, _READ_SIZE)
        os.close(fd)
        return data[len(_HEADER) :]

    def set_serialized(self, key: KeyType, value: bytes) -> None:
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        shard = int(digest[:2], 16)
        path, lock_fd, dir_fd = f"values/{digest[:2]}/{digest}", self._lock_fd, self._dir_fd
        record_at = _RECORDS_AT + _LENGTH * shard
        stamp = time.time_ns()
        fcntl.lockf(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _LENGTH, record_at)
        try:
            fd = os.open(path, _OVERWRITE, dir_fd=dir_fd)
        except FileNotFoundError:
            record = os.pread(lock_fd, _LENGTH, record_at)
            os.pwrite(lock_fd, record, record_at)
            os.pread(lock_fd, _RECORDS_LENGTH, _RECORDS_AT)
            fd = os.open(path, _CREATE, 0o600, dir_fd=dir_fd)
            os.writev(fd, (_HEADER, value))
            os.pread(lock_fd, _LENGTH, _GENERATIONS_AT)
        else:
            os.fstat(fd)
            os.pread(lock_fd, _LENGTH, _GENERATIONS_AT)
            os.pwrite(fd, _HEADER + value, 0)
        os.utime(fd, ns=(stamp, stamp))
        os.close(fd)
        fcntl.lockf(lock_fd, fcntl.LOCK_UN, _LENGTH, record_at)


register_backend("bare", __name__, "BareBackend")
