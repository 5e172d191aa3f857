"""
Every byte of every file of a cache damaged, every file cut off, swapped or replaced; and forged entries.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import shutil
import signal
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from faults import in_child, scratch

from dogpile_filesystem import entry
from dogpile_filesystem.entry import FILE, VALUE
from dogpile_filesystem.ledger import BLOCK
from dogpile_filesystem.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

NOW = 1_700_000_000.0
LIFETIME = 1000
CACHE_SIZE = 64 * BLOCK


def in_one_shard(kind: int, name: bytes) -> tuple[int, bytes]:
    """Kind and key of an entry in shard 0: damage then meets its neighbours, and few directories have to be made."""
    keys = (b"%s %d" % (name, number) for number in itertools.count())
    return kind, next(key for key in keys if entry.digest(kind, key).startswith("00"))


EXPECTED = {
    in_one_shard(VALUE, b"empty"): b"",
    in_one_shard(VALUE, b"one"): b"value of one",
    in_one_shard(VALUE, b"two"): b"value of two",
    in_one_shard(FILE, b"report"): b"content of the report",
    in_one_shard(FILE, b"picture"): b"content of the image.",
}
CONTENTS = 2
EXPIRED = in_one_shard(VALUE, b"expired")
NEW = [in_one_shard(VALUE, b"new"), in_one_shard(FILE, b"new")]
NAMES = {entry.digest(*owner): owner for owner in EXPECTED}
# So many directories are examined by one process: forking takes as long as examining one.
BATCH = 50


class Hangs(BaseException):
    """Not an OSError, which the engine would take for trouble with the filesystem."""


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


def read(store, kind, key):
    if kind == VALUE:
        return store.get(key)
    hit = store.get_file(key)
    if hit is None:
        return None
    with hit.file as file:
        return file.read()


def write(store, kind, key, value):
    return store.put(key, value) if kind == VALUE else store.put_file(key, io.BytesIO(value), b"metadata")


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
        # In place: a lock file keeps its inode.
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
    """Every length up to 256; of those beyond some, in and between records of the ledger."""
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


def usage_on_disk(base_dir) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes and entries: of regular files, and of whatever has a name in a shard."""
    regular, everything = [0, 0], [0, 0]
    for shard in os.scandir(f"{base_dir}/values"):
        for file in os.scandir(shard):
            for usage in (regular, everything) if file.is_file(follow_symlinks=False) else (everything,):
                usage[0] += -(-file.stat(follow_symlinks=False).st_size // BLOCK) * BLOCK
                usage[1] += "." not in file.name
    return tuple(regular), tuple(everything)


def examine(base_dir: str, name: str) -> None:
    """Fails unless only the damaged file's key is affected, and everything still works."""
    store = open_store(base_dir)
    damaged = owner_of(name)
    # The limit that is documented: of a content, only the length is checked.
    changed = os.path.basename(name).count(".") and damaged and is_regular(f"{base_dir}/{name}")
    content = Path(base_dir, name).read_bytes() if changed else None
    for owner, value in [*EXPECTED.items(), *EXPECTED.items()]:
        found = read(store, *owner)
        assert found == value or (owner == damaged and (found is None or found == content)), (owner, found)
    assert read(store, *EXPIRED) is None
    can_store = name != "lock" or is_regular(f"{base_dir}/lock")
    for owner in [*([damaged] if damaged else []), *NEW]:
        kept = write(store, *owner, b"anew")
        assert kept or not can_store or owner == damaged
        assert read(store, *owner) == (b"anew" if kept else None)
    store.prune()
    if can_store:
        regular, everything = usage_on_disk(base_dir)
        size, entries, counted = store.usage()
        assert regular[0] <= size <= everything[0]
        assert regular[1] <= entries <= everything[1]
        assert (size <= CACHE_SIZE, counted) == (True, 256)
        assert [read(store, *owner) for owner in NEW] == [b"anew"] * 2


@contextmanager
def no_hanging():
    """Whatever takes more than 5 seconds waits for ever."""

    def on_alarm(*_):
        raise Hangs

    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(5)
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
    """What the other tests ask for holds in a cache that nobody damaged."""
    assert violations(files, [Damage("nothing", "lock", lambda path: None)]) == []


def test_flipped(files):
    """A bit or a byte flipped anywhere in a file costs at most the value of this file."""
    damages = [damage for name in without_lock(files) for damage in flips(name, range(len(files[name][0])), both)]
    assert violations(files, damages) == []


def test_cut(files):
    """A file cut off at any length costs at most the value of this file."""
    assert violations(files, [cut for name in without_lock(files) for cut in cuts(files, name)]) == []


def test_replaced(files):
    """A file that is zeroed, extended, deleted, or is no longer a file costs at most the value of this file."""
    damages = [damage for name in files for damage in replacements(files, name)]
    assert violations(files, damages) == []


@pytest.mark.parametrize("masks", [one_bit, all_bits])
def test_lock_file_flipped(files, masks):
    """A bit or a byte flipped in the ledger costs no value that is read, and the next visits mend it."""
    data = files["lock"][0]
    positions = [at for at in range(len(data)) if at <= 128 or at >= 4096 or data[at]]
    assert len(positions) > 2048
    assert violations(files, flips("lock", positions, masks)) == []


def test_lock_file_cut(files):
    """A lock file cut off at any length is made anew, and no value is lost."""
    assert violations(files, cuts(files, "lock")) == []


def shard_replaced(base_dir, make) -> None:
    """Fails unless reading and writing go on although a directory of the cache was replaced."""
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
    """A directory of the cache that became a file or a link makes misses, and nothing outside is touched."""
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
    """Who only ever hits notices within a second too that another directory has taken the place of his."""
    reader, writer = make_store(), make_store()
    assert writer.put(b"key", b"old")
    assert reader.get(b"key") == b"old"
    os.rename(base_dir, f"{base_dir}.old")
    assert writer.put(b"key", b"new")
    give_up_at = time.monotonic() + 1
    while reader.get(b"key") != b"new" and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert reader.get(b"key") == b"new"


def neighbours() -> tuple[bytes, bytes]:
    """Two keys of files in one shard."""
    return in_one_shard(FILE, b"first")[1], in_one_shard(FILE, b"second")[1]


@pytest.fixture
def paths(tmp_path):
    """
    Paths of the entry and of the content of a key.
    """

    def find(kind, key):
        digest = entry.digest(kind, key)
        directory = tmp_path / "cache" / "values" / digest[:2]
        return directory / digest, next(directory.glob(f"{digest}.*"), None)

    return find


def swap(first, second):
    spare = first.with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


@pytest.mark.parametrize("kind", [VALUE, FILE], ids=["values", "files"])
def test_entries_swapped(make_store, paths, kind):
    """An entry under the name of another is a miss, and can be set again."""
    store = make_store()
    first, second = neighbours()
    for key in (first, second):
        assert write(store, kind, key, b"value of %s" % key)
    swap(paths(kind, first)[0], paths(kind, second)[0])
    for key in (first, second):
        assert read(store, kind, key) is None
        assert write(store, kind, key, b"anew")
        assert read(store, kind, key) == b"anew"


def test_content_of_another_entry(make_store, paths):
    """An entry whose content is that of another key is a miss, though its checksum is right and the length fits."""
    store = make_store()
    mine, others = neighbours()
    for key in (mine, others):
        assert write(store, FILE, key, b"a content")
    path = paths(FILE, mine)[0]
    payload, created_ns = entry.decode(FILE, mine, path.read_bytes())
    payload = entry.Content.unpack(payload, paths(FILE, mine)[0].name)._replace(name=paths(FILE, others)[1].name).pack()
    path.write_bytes(entry.head(FILE, mine, payload, created_ns) + payload)
    assert read(store, FILE, mine) is None
    assert read(store, FILE, others) == b"a content"


def test_contents_swapped(make_store, paths):
    """A content is checked for its length, and, as is documented, not for its bytes."""
    store = make_store()
    first, second = neighbours()
    for lengths, found in [((5, 5), b"bbbbb"), ((5, 6), None)]:
        assert write(store, FILE, first, b"a" * lengths[0])
        assert write(store, FILE, second, b"b" * lengths[1])
        swap(paths(FILE, first)[1], paths(FILE, second)[1])
        assert read(store, FILE, first) == found


# Forged entries


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


KEY, OTHER_KEY = "the key", "another"
SECRET, OTHER_SECRET = b"a secret of 32 bytes, well nearly", "another secret"


@pytest.fixture
def region(tmp_path):
    """
    Makes regions on one directory, by their signing_key.
    """

    def make(signing_key=None):
        arguments = {"base_dir": str(tmp_path / "cache")}
        if signing_key is not None:
            arguments["signing_key"] = signing_key
        return make_region().configure("paylogic.filesystem", arguments=arguments)

    return make


@pytest.fixture
def canary(tmp_path):
    """
    The path of the directory that unpickling the canary makes.
    """
    return tmp_path / "unpickled"


@pytest.fixture
def entry_path(paths):
    return lambda key=KEY: paths(VALUE, key.encode())[0]


@pytest.fixture
def evil(region, canary):
    """
    What dogpile would have stored, had the canary been set.
    """
    written = []
    spying = region()
    spying.backend.set_serialized = lambda key, value: written.append(value)
    spying.set(KEY, Canary(str(canary)))
    assert pickle.dumps(Canary(str(canary)), protocol=5) in written[0]
    return written[0]


def fix_checksum(data: bytes) -> bytes:
    return data[:4] + zlib.crc32(data[8:]).to_bytes(4, "little") + data[8:]


def plant(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def unsigned(payload: bytes) -> bytes:
    return entry.head(VALUE, KEY.encode(), payload, int(NOW * 1e9)) + payload


def test_unsigned_cache_unpickles(region, canary, evil, entry_path):
    """Without a signing_key, whoever may write to the directory is trusted: the canary of these tests does sing."""
    plant(entry_path(), unsigned(evil))
    region().get(KEY)
    assert canary.exists()


def test_unsigned_entry(region, canary, evil, entry_path):
    """With a signing_key, an entry without signature is a miss that is never unpickled, and the key can be set."""
    signing = region(SECRET)
    plant(entry_path(), unsigned(evil))
    assert signing.get(KEY) is NO_VALUE
    assert not canary.exists()
    signing.set(KEY, "value")
    assert signing.get(KEY) == "value"


@pytest.mark.parametrize("secret", [OTHER_SECRET, [OTHER_SECRET, SECRET]], ids=["one", "first of two"])
def test_signed_with_another_key(region, canary, evil, secret):
    """An entry that is signed with another key is a miss that is never unpickled, whatever else that one verifies."""
    region(secret).backend.set_serialized(KEY, evil)
    assert region(SECRET).get(KEY) is NO_VALUE
    assert not canary.exists()


def test_rotation(region):
    """The first key signs, all verify, and what a removed key has signed is a miss."""
    region(SECRET).set(KEY, "old")
    rotated = region([OTHER_SECRET, SECRET])
    assert rotated.get(KEY) == "old"
    rotated.set(OTHER_KEY, "new")
    assert region(OTHER_SECRET).get(OTHER_KEY) == "new"
    assert region(SECRET).get(OTHER_KEY) is NO_VALUE
    assert region(OTHER_SECRET).get(KEY) is NO_VALUE


def test_text_and_bytes(region):
    """A signing_key is the same as a string, as bytes, and alone in a list."""
    region("secret").set(KEY, "value")
    assert [region(key).get(KEY) for key in (b"secret", ["secret"], [b"secret"])] == ["value"] * 3


def test_signed_entry_of_another_key(region, entry_path):
    """A signed entry copied to the name of another key is a miss."""
    signing = region(SECRET)
    signing.set(OTHER_KEY, "value")
    plant(entry_path(), entry_path(OTHER_KEY).read_bytes())
    assert signing.get(KEY) is NO_VALUE


def test_flipped_signed_entry(region, entry_path):
    """A signed entry with any byte changed and its checksum made right is a miss, or the value that was signed."""
    signing = region(SECRET)
    signing.set(KEY, "value")
    path = entry_path()
    data = path.read_bytes()
    hits = 0
    for at in range(len(data)):
        for mask in both(at):
            plant(path, fix_checksum(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]))
            found = signing.get(KEY)
            assert found in (NO_VALUE, "value")
            hits += found == "value"
    # Only in the checksum itself, which is made right again.
    assert hits == 8


def test_spliced_signed_entry(region, canary, evil, entry_path):
    """Whatever parts of a signed entry and of a forged one are joined, the canary is never unpickled."""
    signing = region(SECRET)
    path = entry_path()
    signing.backend.set_serialized(KEY, b"{}|" + bytes(len(evil) - 3))
    signed = path.read_bytes()
    forgeries = [unsigned(evil)]
    for secret in (OTHER_SECRET, [OTHER_SECRET, SECRET]):
        region(secret).backend.set_serialized(KEY, evil)
        forgeries.append(path.read_bytes())
    spliced = 0
    for forged in forgeries:
        for cut in range(1, len(signed)):
            for data in (signed[:cut] + forged[cut:], forged[:cut] + signed[cut:], signed[:cut] + forged[-cut:]):
                plant(path, fix_checksum(data))
                signing.get(KEY)
                assert not canary.exists(), (forged, cut)
                spliced += evil in data
    assert spliced > 10


def test_signed_files(tmp_path):
    """An entry of a file is signed too: one that was not written with the key is a miss."""

    def region(**arguments):
        arguments["base_dir"] = str(tmp_path / "cache")
        return make_region().configure("paylogic.raw_filesystem", arguments=arguments)

    region().set(KEY, io.BytesIO(b"content"))
    assert region().get(KEY).read() == b"content"
    assert region(signing_key=SECRET).get(KEY) is NO_VALUE
    region(signing_key=SECRET).set(KEY, io.BytesIO(b"signed"))
    assert region(signing_key=SECRET).get(KEY).read() == b"signed"
    assert region(signing_key=OTHER_SECRET).get(KEY) is NO_VALUE
