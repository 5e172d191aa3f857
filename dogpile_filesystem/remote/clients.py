"""
The source's filesystem, for each process and each thread the one that it can use.

Concurrency. Most filesystems serve any number of threads. One whose connection answers one request after the other
serves the thread that passed it, and is made anew for each other one: threads that share a connection get each other's
answers, and with paramiko wait for ever. When a thread ends, the next one takes over what was made for it. So there are
as many connections as there were threads at once.

A forked child makes its own of all filesystems, because connections and event loops are the parent's.

Limits. An open file of such a filesystem is for the thread that opened it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from typing import Any

from fsspec import AbstractFileSystem

from dogpile_filesystem.sources import serves_threads


class Clients:
    """
    Gives each thread the filesystem that it can use.

    :param fs: the filesystem, for the thread that passes it.
    """

    def __init__(self, fs: AbstractFileSystem) -> None:
        self._is_shared = serves_threads(fs)
        self._begin(fs)

    def _begin(self, fs: AbstractFileSystem) -> None:
        self._fs = fs
        # What was made for threads that have ended.
        self._idle: deque[AbstractFileSystem] = deque()
        weakref.finalize(self, _close_all, self._idle)
        # What each thread has.
        self._own = threading.local()
        self._own.lease = _Lease(fs)
        # The last: until then, another thread of a forked child must not take what is the parent's.
        self._pid = os.getpid()

    def get(self) -> AbstractFileSystem:
        """
        The filesystem for this thread.

        :raises Exception: whatever the source raises when it is connected to.
        """
        if self._pid != os.getpid():
            self._begin(_anew(self._fs))
        if self._is_shared:
            return self._fs
        lease: _Lease | None = getattr(self._own, "lease", None)
        if lease is None:
            lease = self._own.lease = self._lease()
        return lease.fs

    def _lease(self) -> _Lease:
        try:
            fs = self._idle.pop()
        except IndexError:
            fs = _anew(self._fs, skip_instance_cache=True)
            # One for all: what a thread changes is not listed to another one as it was.
            fs.dircache = self._fs.dircache
        lease = _Lease(fs)
        lease.giving_back = weakref.finalize(lease, _give_back, weakref.ref(self), self._idle, fs)
        lease.giving_back.atexit = False
        return lease

    def discard(self) -> None:
        """Have this thread connect anew with its next request: its connection may be broken, and so may idle ones."""
        if self._is_shared:
            return
        lease: _Lease | None = self._own.__dict__.pop("lease", None)
        if lease is not None and lease.giving_back is not None:
            lease.giving_back.detach()
            _close(lease.fs)
        _close_all(self._idle)


class _Lease:
    """
    What a thread has, until it ends.

    :ivar giving_back: what is done then; None: nothing, since the filesystem is the caller's.
    """

    def __init__(self, fs: AbstractFileSystem) -> None:
        self.fs = fs
        self.giving_back: weakref.finalize[..., _Lease] | None = None


def _give_back(clients: weakref.ref[Clients], idle: deque[AbstractFileSystem], fs: AbstractFileSystem) -> None:
    if clients() is None:
        _close(fs)
    else:
        idle.append(fs)


def _anew(fs: AbstractFileSystem, **options: Any) -> AbstractFileSystem:
    """A filesystem like another one, and like those that it hands on to, with connections of its own."""
    arguments = [_anew(each) if isinstance(each, AbstractFileSystem) else each for each in fs.storage_args]
    named = {
        name: _anew(each) if isinstance(each, AbstractFileSystem) else each for name, each in fs.storage_options.items()
    }
    return type(fs)(*arguments, **{**named, **options})


def _close_all(idle: deque[AbstractFileSystem]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            _close(idle.pop())


def _close(fs: AbstractFileSystem) -> None:
    """Close a connection. paramiko's has a thread, which would keep it for ever; others close themselves."""
    with contextlib.suppress(Exception):
        getattr(fs, "fs", fs).client.close()
