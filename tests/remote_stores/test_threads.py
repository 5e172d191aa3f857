"""
Real storage servers whose client serves one thread at a time, used by many threads, by forked processes, and beyond the
end of a connection.
"""

from __future__ import annotations

import gc
import random
import socket
import threading

import pytest
from forked import Child
from patience import PATIENCE

fsspec = pytest.importorskip("fsspec")

#: The socket of a filesystem's connection.
_sockets = {"sftp": lambda fs: fs.client.get_transport().sock, "ftp": lambda fs: fs.ftp.sock}
STORES = tuple(_sockets)
KIB = 1 << 10


def noise(seed, size=300 * KIB):
    return random.Random(seed).randbytes(size)


@pytest.fixture(params=STORES)
def storage(request):
    return request.getfixturevalue(request.param)


def put(storage, contents):
    """Put files to a store without the cache; their paths."""
    fs = fsspec.filesystem(storage.protocol, **storage.options, skip_instance_cache=True)
    for name, content in contents.items():
        fs.pipe_file(f"{storage.root}/{name}", content)
    return fs


def in_threads(*works):
    """Run functions at once, each in a thread of its own; what each returned."""
    start, answers = threading.Barrier(len(works)), {}

    def run(number):
        start.wait(PATIENCE)
        answers[number] = works[number]()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return [answers[number] for number in range(len(works))]


def test_uploads_beside_readers(storage, cached):
    """Several uploads at once, and readers and listings beside them, all get through, and mix nothing up."""
    old = {f"old{number}": noise(number) for number in range(8)}
    new = {f"new{number}": noise(100 + number) for number in range(12)}
    source = put(storage, old)
    fs = cached(storage, write="back", max_uploads=4, write_after=0, block_size=64 * KIB)

    def read(number):
        return [fs.cat_file(f"{storage.root}/old{(number + step) % len(old)}") for step in range(len(old))]

    def write(names):
        for name in names:
            fs.pipe_file(f"{storage.root}/{name}", new[name])

    def names():
        return [{path.rpartition("/")[2] for path in fs.ls(storage.root, detail=False)} for _ in range(5)]

    names_of_new = list(new)
    found = in_threads(
        *(lambda number=number: read(number) for number in range(3)),
        names,
        lambda: write(names_of_new[::2]),
        lambda: write(names_of_new[1::2]),
    )
    fs.flush(timeout=PATIENCE)
    for number in range(3):
        assert found[number] == [old[f"old{(number + step) % len(old)}"] for step in range(len(old))]
    assert all(set(old) <= names <= {*old, *new} for names in found[3])
    assert fs.unsent() == []
    source.invalidate_cache()
    assert {path.rpartition("/")[2]: source.cat_file(path) for path in source.find(storage.root)} == {**old, **new}


def test_fork_beside_a_connection(storage, cached):
    """A forked child reads by connections of its own, and does not disturb those of its parent's threads."""
    contents = {f"a{number}": noise(number) for number in range(4)}
    put(storage, contents)
    fs, path = cached(storage, check="always"), f"{storage.root}/a"
    assert fs.cat_file(f"{path}0") == contents["a0"]
    go, asked = threading.Barrier(2), []

    def work():
        asked.append(fs.cat_file(f"{path}1"))
        go.wait(PATIENCE)  # The child is forked,
        go.wait(PATIENCE)  # and has ended.
        asked.append(fs.cat_file(f"{path}2"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    go.wait(PATIENCE)

    def child():
        found = fs.cat_file(f"{path}3")
        gc.collect()
        return found

    assert Child(child).result() == contents["a3"]
    go.wait(PATIENCE)
    thread.join(PATIENCE)
    assert asked == [contents["a1"], contents["a2"]]
    assert fs.cat_file(f"{path}2") == contents["a2"]


def test_broken_connection(storage, cached):
    """After a connection broke, a request fails, and the next one is made by a new connection."""
    content = noise(0)
    put(storage, {"a": content, "b": content})
    fs = cached(storage)
    assert fs.cat_file(f"{storage.root}/a") == content
    _sockets[storage.protocol](fs.fs).shutdown(socket.SHUT_RDWR)
    with pytest.raises(Exception, match=r"(?i)socket|clos|broken|eof|dropped|^$"):
        fs.cat_file(f"{storage.root}/b")
    assert fs.cat_file(f"{storage.root}/b") == content


def test_upload_after_a_broken_connection(storage, cached):
    """What could not be sent because a connection broke is sent with the next try."""
    source, fs = put(storage, {}), cached(storage, write="back", max_uploads=1, write_after=0)
    fs.pipe_file(f"{storage.root}/a", b"first")
    fs.flush(timeout=PATIENCE)
    _sockets[storage.protocol](fs.fs).shutdown(socket.SHUT_RDWR)
    fs.pipe_file(f"{storage.root}/a", b"second")
    fs.close()
    assert source.cat_file(f"{storage.root}/a") == b"second"
