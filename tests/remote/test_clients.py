"""
Which filesystem of the source each thread and process gets.
"""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
from forked import Child
from patience import PATIENCE

pytest.importorskip("fsspec")

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from dogpile_filesystem.remote.clients import Clients

closed = []


class OneConnection(MemoryFileSystem):
    """
    A filesystem with a connection for one thread, which has to be closed.
    """

    protocol = "ftp"

    def __init__(self, **options):
        super().__init__(**options)
        self.client = SimpleNamespace(close=functools.partial(closed.append, id(self)))


@pytest.fixture
def fs():
    closed.clear()
    return OneConnection(skip_instance_cache=True)


class Running:
    """
    A thread that has its filesystem until it is told to end.
    """

    def __init__(self, clients):
        self._has, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(weakref.ref(clients),), daemon=True)
        self._thread.start()
        assert self._has.wait(PATIENCE)

    def _run(self, clients):
        self.fs = clients().get()
        self._has.set()
        self._end.wait(PATIENCE)

    def end(self):
        self._end.set()
        self._thread.join(PATIENCE)
        return self.fs


def test_shared():
    """A filesystem that serves threads is the same one in all of them."""
    clients = Clients(MemoryFileSystem())
    assert Running(clients).end() is clients.get()


def test_each_thread(fs):
    """Threads at once have a connection each, and one listings cache; the thread that passed one keeps that."""
    clients = Clients(fs)
    threads = [Running(clients), Running(clients)]
    made = [thread.end() for thread in threads]
    assert clients.get() is fs
    assert len({id(each) for each in (fs, *made)}) == 3
    assert all(each.dircache is fs.dircache for each in made)


def test_taken_over(fs):
    """Threads one after the other use one connection."""
    clients = Clients(fs)
    first = Running(clients).end()
    assert Running(clients).end() is first
    assert closed == []


def test_discarded(fs):
    """A connection that may be broken is closed, with the idle ones, and the thread gets another; not the caller's."""
    clients = Clients(fs)
    idle = Running(clients).end()
    clients.discard()
    own = clients.get()
    assert len({id(fs), id(idle), id(own)}) == 3
    assert closed == [id(idle)]
    clients.discard()
    assert closed == [id(idle), id(own)]
    assert id(clients.get()) not in {id(fs), id(own)}


def test_closed(fs):
    """What was made for threads is closed when the source is no longer used, also where a thread goes on."""
    clients = Clients(fs)
    idle, going_on = Running(clients), Running(clients)
    idle.end()
    del clients
    gc.collect()
    assert sorted(closed) == sorted([id(idle.fs), id(going_on.fs)])
    going_on.end()


def test_wrapped(fs):
    """Of a directory of another filesystem, that one is made anew, too."""
    clients = Clients(DirFileSystem("/a", fs))
    made = Running(clients).end()
    assert (type(made), made.path, type(made.fs)) == (DirFileSystem, "/a", OneConnection)
    assert made.fs is not fs


def test_fork(fs):
    """A forked child uses nothing of its parent: neither what was passed, nor what threads of the parent have left."""
    clients = Clients(fs)
    parents = {id(each) for each in (fs, Running(clients).end())}
    thread = Running(clients)
    parents.add(id(thread.fs))
    assert not Child(lambda: parents & {id(clients.get()), id(Running(clients).fs)}).result()
    thread.end()
