"""
Damage to every byte of every file of a cache, files cut off or replaced, and replaced directories.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from cases import scratch
from forked import in_child
from kinds import in_one_shard, read, write
from patience import PATIENCE

from dogpile_filesystem import layout
from dogpile_filesystem.layout import BLOCK, FILE, PART, VALUE, VERSION
from dogpile_filesystem.store.store import Store

NOW = 1_700_000_000.0
LIFETIME = 1000
CACHE_SIZE = 64 * BLOCK


EXPECTED = {
    in_one_shard(VALUE, b"empty"): b"",
    in_one_shard(VALUE, b"one"): b"value of one",
    in_one_shard(VALUE, b"two"): b"value of two",
    in_one_shard(FILE, b"report"): b"content of the report",
    in_one_shard(FILE, b"picture"): b"content of the image.",
    in_one_shard(PART, b"block"): b"bytes of the block",
    in_one_shard(VERSION, b"version"): b"{}",
}
CONTENTS = 2
EXPIRED = in_one_shard(VALUE, b"expired")
NEW = [in_one_shard(VALUE, b"new"), in_one_shard(FILE, b"new")]
NAMES = {layout.entry_name(*owner): owner for owner in EXPECTED}
# One process examines this many directories, since forking takes as long as examining one.
BATCH = 50


class Hangs(BaseException):
    """A hang. It is not an OSError, which the engine would treat as trouble with the filesystem."""


class Damage(NamedTuple):
    """
    :ivar what: describes it.
    :ivar file: the damaged file, as a path relative to the base_dir.
    :ivar do: does it, to the path of the file.
    """

    what: str
    file: str
    do: Callable[[str], None]


def open_store(base_dir, now=NOW):
    return Store(base_dir, cache_size=CACHE_SIZE, expiration_time=LIFETIME, clock=lambda: now)


def fill(base_dir):
    assert write(open_store(base_dir, NOW - 2 * LIFETIME), *EXPIRED, b"expired value")
    store = open_store(base_dir)
    for owner, value in EXPECTED.items():
        assert write(store, *owner, value)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[bytes, int]]:
    """
    The bytes and the time of each file of a small cache, by its path relative to the base_dir.
    """
    base_dir = tmp_path_factory.mktemp("fuzz") / "cache"
    in_child(lambda: fill(str(base_dir)))
    paths = sorted(path for path in base_dir.rglob("*") if path.is_file())
    found = {str(path.relative_to(base_dir)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
    # The tag, the lock file, an entry of each key and of the expired one, and the contents of files.
    assert len(found) == 2 + len(EXPECTED) + 1 + CONTENTS
    return found


def copy(files, base_dir):
    for name, (data, mtime_ns) in files.items():
        path = f"{base_dir}/{name}"
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
        os.utime(path, ns=(mtime_ns, mtime_ns))


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[str], None]:
    def do(path):
        data = Path(path).read_bytes()
        # The file is written in place, since a lock file keeps its inode.
        with open(path, "r+b") as file:
            file.write(change(data))
            file.truncate()

    return do


def flip(at: int, mask: int) -> Callable[[str], None]:
    return rewrite(lambda data: data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])


def flips(name, positions, masks) -> Iterator[Damage]:
    for at in positions:
        for mask in masks(at):
            yield Damage(f"byte {at} ^ {mask}", name, flip(at, mask))


def one_bit(at: int) -> list[int]:
    return [1 << at % 8]


def all_bits(at: int) -> list[int]:
    return [255]


def both(at: int) -> list[int]:
    return one_bit(at) + all_bits(at)


def lengths(size: int) -> list[int]:
    """Returns every length up to 256, and of the longer ones some within and between records of the ledger."""
    return [length for length in range(size) if length <= 256 or length % 64 in (0, 1, 7)]


def cuts(files, name) -> Iterator[Damage]:
    for length in lengths(len(files[name][0])):
        yield Damage(f"cut to {length}", name, rewrite(lambda data, length=length: data[:length]))


def replace(make: Callable[[str], None]) -> Callable[[str], None]:
    def do(path):
        os.unlink(path)
        make(path)

    return do


def make_full_directory(path):
    os.mkdir(path)
    Path(path, "file").write_bytes(b"someone's")


def replacements(files, name) -> Iterator[Damage]:
    size = len(files[name][0])
    other = next(path for path in files if path.startswith("values/") and path != name)
    yield Damage("zeroed", name, rewrite(lambda data: bytes(size)))
    yield Damage("extended", name, rewrite(lambda data: data + b"garbage"))
    yield Damage("extended by itself", name, rewrite(lambda data: data + data))
    yield Damage("emptied", name, rewrite(lambda data: b""))
    yield Damage("deleted", name, os.unlink)
    yield Damage("a directory", name, replace(os.mkdir))
    yield Damage("a full directory", name, replace(make_full_directory))
    yield Damage("a FIFO", name, replace(os.mkfifo))
    yield Damage("a link to another entry", name, replace(lambda path: os.symlink(path[: -len(name)] + other, path)))
    yield Damage("a link to nowhere", name, replace(lambda path: os.symlink(f"{path}-nowhere", path)))


def owner_of(name: str) -> tuple[int, bytes] | None:
    return NAMES.get(os.path.basename(name).partition(".")[0])


def is_regular(path: str) -> bool:
    return os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode)


def least_and_most(base_dir) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the least and the most that may be counted: regular files only, or everything with a name in a shard."""
    regular, everything = [0, 0], [0, 0]
    for shard in os.scandir(f"{base_dir}/values"):
        for file in os.scandir(shard):
            for usage in (regular, everything) if file.is_file(follow_symlinks=False) else (everything,):
                usage[0] += -(-file.stat(follow_symlinks=False).st_size // BLOCK) * BLOCK
                usage[1] += "." not in file.name
    return tuple(regular), tuple(everything)


def examine(base_dir: str, name: str) -> None:
    """Fails unless the damage affects only the file's own key, and everything still works."""
    store = open_store(base_dir)
    damaged = owner_of(name)
    # The documented limit: only the length of a content is checked.
    changed = os.path.basename(name).count(".") and damaged and is_regular(f"{base_dir}/{name}")
    content = Path(base_dir, name).read_bytes() if changed else None
    for owner, value in [*EXPECTED.items(), *EXPECTED.items()]:
        found = read(store, *owner)
        assert found == value or (owner == damaged and (found is None or found == content)), (owner, found)
    assert read(store, *EXPIRED) is None
    for owner in [*([damaged] if damaged else []), *NEW]:
        kept = write(store, *owner, b"anew")
        assert kept or owner == damaged
        assert read(store, *owner) == (b"anew" if kept else None)
    store.prune()
    regular, everything = least_and_most(base_dir)
    size, entries, counted = store.usage()
    assert regular[0] <= size <= everything[0]
    assert regular[1] <= entries <= everything[1]
    assert (size <= CACHE_SIZE, counted) == (True, 257)
    assert [read(store, *owner) for owner in NEW] == [b"anew"] * 2


@contextmanager
def no_hanging():
    """What takes longer than a test waits is taken to hang."""

    def on_alarm(*_):
        raise Hangs

    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)


def examine_batch(files, directory, damages: list[Damage]) -> list[str]:
    violations = []
    for number, damage in enumerate(damages):
        base_dir = f"{directory}/{number}"
        copy(files, base_dir)
        damage.do(f"{base_dir}/{damage.file}")
        try:
            with no_hanging():
                examine(base_dir, damage.file)
        except BaseException as error:
            violations.append(f"{damage.file}, {damage.what}: {error!r}")
        shutil.rmtree(base_dir)
    return violations


def violations(files, damages: Iterable[Damage]) -> list[str]:
    found, damages = [], list(damages)
    assert damages
    with scratch() as directory:
        for start in range(0, len(damages), BATCH):
            batch = damages[start : start + BATCH]
            found += in_child(lambda batch=batch: examine_batch(files, directory, batch))
    return found


def without_lock(files) -> list[str]:
    return [name for name in files if name != "lock"]


def test_undamaged(files):
    """The checks of the other tests pass on an undamaged cache."""
    assert violations(files, [Damage("nothing", "lock", lambda path: None)]) == []


def test_flipped(files):
    """A flipped bit or byte anywhere in a file costs at most the value of that file."""
    damages = [damage for name in without_lock(files) for damage in flips(name, range(len(files[name][0])), both)]
    assert violations(files, damages) == []


def test_cut(files):
    """A file cut off at any length costs at most its own value."""
    assert violations(files, [cut for name in without_lock(files) for cut in cuts(files, name)]) == []


def test_replaced(files):
    """A file that is zeroed, extended, deleted or no longer a regular file costs at most its own value."""
    damages = [damage for name in files for damage in replacements(files, name)]
    assert violations(files, damages) == []


def test_lock_file_flipped(files):
    """A flipped bit or byte in the ledger loses no value, and the next visits correct it."""
    data = files["lock"][0]
    positions = [at for at in range(len(data)) if at <= 128 or at >= 4096 or data[at]]
    assert len(positions) > 2048
    assert violations(files, flips("lock", positions, lambda at: one_bit(at) if at % 2 else all_bits(at))) == []


def test_lock_file_cut(files):
    """A lock file cut off at any length is made again, and no value is lost."""
    assert violations(files, cuts(files, "lock")) == []


def randomly(rng: random.Random) -> Callable[[str], None]:
    """A change of some bytes, or of the length, that is chosen now and done later."""
    kind, at, data = rng.choice(["flip", "cut", "overwrite", "insert"]), rng.random(), rng.randbytes(rng.randint(1, 64))

    def change(old: bytes) -> bytes:
        place = int(at * (len(old) + 1))
        new = {
            "flip": old[:place] + bytes(byte ^ data[0] for byte in old[place : place + 1]) + old[place + 1 :],
            "cut": old[:place],
            "overwrite": old[:place] + data[: len(old) - place] + old[place + len(data) :],
            "insert": old[:place] + data + old[place:],
        }
        return new[kind]

    return rewrite(change)


def random_damages(files, rng: random.Random, count: int) -> Iterator[Damage]:
    """One to three changes of one file, one after the other."""
    names = list(files)
    for number in range(count):
        changes = [randomly(rng) for _ in range(rng.randint(1, 3))]

        def do(path, changes=changes):
            for change in changes:
                change(path)

        yield Damage(f"random damage {number}", rng.choice(names), do)


def test_random_damage(files, rng):
    """Several random changes of a file, one after the other, cost at most the value of this file."""
    assert violations(files, random_damages(files, rng, 500)) == []


def shard_replaced(base_dir, make) -> None:
    """Fails unless reads and writes still work although a directory of the cache was replaced."""
    make()
    store = open_store(base_dir)
    for owner, value in EXPECTED.items():
        assert read(store, *owner) in (value, None)
        assert write(store, *owner, b"anew") == (read(store, *owner) == b"anew")
        store.remove(owner[1], owner[0])
        assert read(store, *owner) is None
    store.prune()
    store.clear()


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("directory", ["values", "shard"])
def test_directory_replaced(files, tmp_path, directory, kind):
    """A cache directory that was replaced by a file or a link causes misses, and nothing outside is touched."""
    base_dir = tmp_path / "cache"
    copy(files, base_dir)
    target = base_dir / "values"
    if directory == "shard":
        target /= "00"
    outside = tmp_path / "outside"
    shutil.copytree(target, outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}

    def make():
        shutil.rmtree(target)
        target.symlink_to(outside) if kind == "link" else target.write_bytes(b"a file")

    def guarded():
        with no_hanging():
            shard_replaced(str(base_dir), make)
        return "done"

    assert in_child(guarded) == "done"
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


def test_directory_renamed(make_store, base_dir):
    """A reader that only ever hits notices that another directory has taken the place of its own."""
    reader, writer = make_store(), make_store()
    assert writer.put(b"key", b"old")
    assert reader.get(b"key") == b"old"
    os.rename(base_dir, f"{base_dir}.old")
    assert writer.put(b"key", b"new")
    give_up_at = time.monotonic() + PATIENCE
    while reader.get(b"key") != b"new" and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert reader.get(b"key") == b"new"
