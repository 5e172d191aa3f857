"""
Two damages in a row to the lock file, the tag and the tree of a cache: it stores again, whatever they were.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from cases import scratch
from forked import Child
from patience import PATIENCE

from dogpile_filesystem.layout import BLOCK, TAG, VALUE
from dogpile_filesystem.store import Store

#: How often a new process may try to store before the cache counts as stuck.
ATTEMPTS = 5
TEXT = b"the notes of somebody, who had no idea\n" * 10


class Damage(NamedTuple):
    """
    :ivar file: a path below the base_dir.
    :ivar do: harms it, given the path. Raises OSError where it cannot, as after some other damage.
    """

    what: str
    file: str
    do: Callable[[Path], None]


def cut(length: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, length)


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def do(path):
        if not path.is_file():  # To read a FIFO takes for ever.
            raise FileNotFoundError(path)
        path.write_bytes(change(path.read_bytes()))

    return do


def replace(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def do(path):
        path.unlink()
        make(path)

    return do


def full_directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(TEXT)


def damages() -> Iterator[Damage]:
    for file in ("lock", "CACHEDIR.TAG"):
        for length in (0, 5, 339):
            yield Damage(f"cut to {length}", file, cut(length))
        yield Damage(
            "first byte flipped", file, rewrite(lambda data: bytes([data[0] ^ 255]) + data[1:] if data else b"?")
        )
        yield Damage("extended", file, rewrite(lambda data: data + TEXT))
        yield Damage("overwritten with text", file, rewrite(lambda _: TEXT))
        yield Damage("zeroed", file, rewrite(lambda data: bytes(len(data))))
        yield Damage("deleted", file, Path.unlink)
        yield Damage("a directory", file, replace(Path.mkdir))
        yield Damage("a full directory", file, replace(full_directory))
        yield Damage("a FIFO", file, replace(os.mkfifo))
        yield Damage("a link to nowhere", file, replace(lambda path: path.symlink_to(path.parent / "nowhere")))
    yield Damage("version damaged", "lock", rewrite(lambda data: data[:8] + b"\7" + data[9:]))
    yield Damage("deleted", "values", shutil.rmtree)
    yield Damage("emptied", "values", lambda path: [shutil.rmtree(shard) for shard in path.iterdir()])


@contextmanager
def no_hanging() -> Iterator[None]:
    signal.alarm(PATIENCE)
    yield
    signal.alarm(30)


def fill(base_dir: str) -> None:
    store = Store(base_dir, cache_size=64 * BLOCK)
    for number in range(5):
        assert store.put(b"%d" % number, b"value")


def attempts(base_dir: str) -> int:
    """How often a process had to try to store a value until it could read it; more than ATTEMPTS: it is stuck."""
    with no_hanging():
        store = Store(base_dir, cache_size=64 * BLOCK)
        for attempt in range(1, ATTEMPTS + 1):
            if store.put(b"new", b"value") and store.get(b"new") == b"value":
                assert store.usage().counted == 257
                return attempt
        return ATTEMPTS + 1


def test_pairs():
    """After any two damages, the one on top of the other, a new process stores again."""
    stuck, tried = [], 0
    everything = list(damages())
    with scratch() as directory:
        Child(lambda: fill(f"{directory}/cache")).result()
        for first in everything:

            def try_all(first=first):
                found = []
                for number, second in enumerate(everything):
                    base_dir = Path(directory, str(number))
                    shutil.copytree(f"{directory}/cache", base_dir)
                    with contextlib.suppress(OSError):  # There is nothing left that could be damaged so.
                        for damage in (first, second):
                            damage.do(base_dir / damage.file)
                        # That of a process that has never seen the directory.
                        found.append((str(second[:2]), attempts(str(base_dir))))
                    shutil.rmtree(base_dir)
                return found

            for second, count in Child(try_all).result():
                tried += 1
                if count > ATTEMPTS:
                    stuck.append(f"{first[:2]}, then {second}")
    assert stuck == []
    assert tried > 500


def test_running_process(tmp_path):
    """A process that has the cache open when the lock file is damaged, again and again, stores again too."""
    base_dir = tmp_path / "cache"
    store = Store(str(base_dir), cache_size=64 * BLOCK)
    assert store.put(b"k", b"value")
    for damage in damages():
        if damage.file == "lock":
            damage.do(base_dir / "lock")
            store.directory.distrust()
            assert any(store.put(b"k", damage.what.encode()) for _ in range(ATTEMPTS)), damage
            assert store.get(b"k") == damage.what.encode()


@pytest.mark.parametrize("beside", ["nothing", "a foreign tag", "foreign values", "hidden files"])
def test_directory_of_somebody_else(tmp_path, beside):
    """In a directory that is no cache, a lock file of another program stays as it is, and so does all the rest."""
    (tmp_path / "lock").write_bytes(TEXT)
    if beside == "a foreign tag":
        (tmp_path / "CACHEDIR.TAG").write_bytes(TAG[:40])
    elif beside == "foreign values":
        (tmp_path / "values").mkdir()
        (tmp_path / "values" / "notes").write_bytes(TEXT)
    elif beside == "hidden files":
        (tmp_path / "values" / "00").mkdir(parents=True)
        (tmp_path / "values" / "00" / ".gitkeep").touch()
    store = Store(str(tmp_path))
    assert not store.put(b"k", b"value")
    assert store.failures.counts["EPROTO"] > 0
    assert (tmp_path / "lock").read_bytes() == TEXT
    for kind, make in (("directory", Path.mkdir), ("link", lambda path: path.symlink_to("nowhere"))):
        (tmp_path / "lock").rmdir() if kind == "link" else (tmp_path / "lock").unlink()
        make(tmp_path / "lock")
        assert not Store(str(tmp_path)).put(b"k", b"value")
        assert os.path.lexists(tmp_path / "lock")


@pytest.mark.parametrize("is_whole", [True, False])
def test_later_version(tmp_path, is_whole):
    """A lock file with the whole head of a later version stays as it is, also in a cache; with a damaged head, not."""
    base_dir = str(tmp_path / "cache")
    assert Store(base_dir).put(b"k", b"value")
    head = struct.pack("<8sI", b"dogpilfs", 3)
    head += struct.pack("<I", zlib.crc32(head) ^ (not is_whole))
    Path(base_dir, "lock").write_bytes(head)
    assert Child(lambda: Store(base_dir).put(b"new", b"value")).result() is not is_whole
    assert (Path(base_dir, "lock").read_bytes() == head) is is_whole


def test_no_value_is_lost(tmp_path):
    """Values that were stored before the lock file was damaged are read afterwards, and counted."""
    base_dir = str(tmp_path / "cache")
    fill(base_dir)
    Path(base_dir, "lock").write_bytes(TEXT)

    def use():
        store = Store(base_dir, cache_size=64 * BLOCK)
        assert store.put(b"new", b"value")
        return [store.get(b"%d" % number) for number in range(5)], store.usage().entries, store.get(b"new", VALUE)

    assert Child(use).result() == ([b"value"] * 5, 6, b"value")
