"""
Parts: any bytes of them are read as they were stored, or are a miss; and nothing is checked more often than needed.
"""

from __future__ import annotations

import array
import errno
import hashlib
import itertools
import os
import shutil
import stat
import threading
import time
import types

import injection
import ondisk
import pytest
from patching import replace_here
from patience import PATIENCE

from dogpile_filesystem import layout
from dogpile_filesystem.layout import BLOCK, FILE, PART, VALUE, VERSION
from dogpile_filesystem.lockfile.ledger import Usage
from dogpile_filesystem.maintenance import check
from dogpile_filesystem.store import entry, part_format, parts
from dogpile_filesystem.store.part_format import PAGE_SIZE, Part

SECRET = entry.signing_key(b"secret")
KEYS = pytest.mark.parametrize("keys", [(), (SECRET,)], ids=["unsigned", "signed"])
LENGTHS = [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE + 5, 1 << 20]
#: Four pages, the last of 5 bytes.
LENGTH = 3 * PAGE_SIZE + 5


def content(length, name=b""):
    return hashlib.shake_128(name + b"%d" % length).digest(length)


DATA = content(LENGTH)


def path_of(store, key=b"key"):
    return ondisk.path(store, PART, key)


def start_of(store, key=b"key"):
    """Where the bytes of a part begin in its file."""
    with open(path_of(store, key), "rb") as file:
        return part_format.start(file.read())


_times = itertools.count(1)


def flip(store, at, key=b"key", *, keeps_time=False):
    """Flips a byte of a part, or of what precedes its bytes if ``at`` is negative, in place."""
    path, start = path_of(store, key), start_of(store, key)
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(start + at)
        byte = file.read(1)[0]
        file.seek(start + at)
        file.write(bytes([byte ^ 1]))
    # Two changes in one tick of the kernel's clock would have one time.
    seen = (before.st_atime_ns, before.st_mtime_ns + (0 if keeps_time else next(_times)))
    os.utime(path, ns=seen)


def read(store, start, stop, key=b"key"):
    """Reads in both ways, which must agree."""
    buffer = memoryview(bytearray(stop - start))
    is_filled = store.read_part_into(key, start, buffer)
    found = store.read_part(key, start, stop)
    assert is_filled == (found is not None)
    assert found is None or found == buffer
    return found


@pytest.fixture
def store(make_store):
    """Makes a store with a part of four pages."""
    store = make_store()
    assert store.put_part(b"key", DATA)
    return store


@pytest.fixture
def checks(monkeypatch):
    """The first pages and the bytes of all checks of pages."""
    made = []
    check_pages = Part.check
    monkeypatch.setattr(
        Part, "check", lambda self, data, first: (made.append((first, len(data))), check_pages(self, data, first))[1]
    )
    return made


# Round trips


@KEYS
@pytest.mark.parametrize("length", LENGTHS)
def test_round_trip(make_store, usage_on_disk, keys, length):
    """A part of any length comes back whole, also to other stores, and is charged as any file."""
    store, data = make_store(signing_keys=keys), content(length)
    assert store.read_part(b"key", 0, length) is store.has_part(b"key") is None
    assert store.put_part(b"key", data)
    for reader in (store, store, make_store(signing_keys=keys)):
        assert reader.has_part(b"key") == length
        assert read(reader, 0, length) == data
        assert read(reader, 0, length + 1) is None
        assert reader.get(b"key", PART) == data
    assert store.usage() == usage_on_disk()
    assert store.usage().entries == 1
    assert store.remove(b"key", PART)
    assert read(store, 0, length) is store.has_part(b"key") is None


@KEYS
def test_any_bytes(make_store, keys):
    """Any bytes can be read, wherever they begin and end, by a reader that knows some pages, all or none."""
    writer = make_store(signing_keys=keys)
    assert writer.put_part(b"key", DATA)
    edges = sorted({number * PAGE_SIZE + more for number in range(4) for more in (-1, 0, 1, 5) if number + more >= 0})
    knowing = make_store(signing_keys=keys)
    for start, stop in itertools.combinations_with_replacement([*edges[:-1], LENGTH], 2):
        assert read(knowing, start, stop) == DATA[start:stop]
        assert read(make_store(signing_keys=keys), start, stop) == DATA[start:stop]


@pytest.mark.parametrize("data", [bytearray(b"0123"), memoryview(b"0123"), array.array("H", b"0123")])
def test_buffers(make_store, data):
    """A part can be any contiguous buffer, and be read into any."""
    store = make_store()
    assert store.put_part(b"key", data)
    assert store.read_part(b"key", 1, 3) == b"12"
    target = array.array("H", bytes(4))
    assert store.read_part_into(b"key", 0, memoryview(target))
    assert target.tobytes() == b"0123"


def test_large_part_and_long_key(make_store):
    """What precedes the bytes may be longer than the first read, by the table or by the key."""
    store = make_store()
    data, key = content(20 << 20), b"k" * 5000
    assert store.put_part(b"key", data)
    assert store.put_part(key, b"value")
    assert read(store, 19 << 20, 20 << 20) == data[19 << 20 :]
    assert read(store, 1, 3, key) == b"al"


def test_replaced(store, make_store):
    """The last part stored is read, also by a reader that knows the one before."""
    reader = make_store()
    for number in range(3):
        data = content(LENGTH, b"%d" % number)
        assert store.put_part(b"key", data)
        assert read(reader, 5, LENGTH) == data[5:]
    assert store.put_part(b"key", b"short")
    assert read(reader, 5, LENGTH) is None
    assert read(reader, 0, 5) == b"short"


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (-2, -1)])
def test_misuse(store, start, stop):
    """Bytes that no part can have are refused at once."""
    with pytest.raises(ValueError, match="pass"):
        store.read_part(b"key", start, stop)
    if start < 0:
        with pytest.raises(ValueError, match="pass"):
            store.read_part_into(b"key", start, memoryview(bytearray(1)))


def test_misuse_of_put(make_store):
    """Data with gaps is refused, and so is a kind that has its own method."""
    store = make_store()
    with pytest.raises(TypeError):
        store.put_part(b"key", memoryview(b"0123")[::2])
    with pytest.raises(ValueError, match="put_file"):
        store.put(b"key", b"value", FILE)
    with pytest.raises(ValueError, match="put_part"):
        store.put(b"key", b"value", PART)


def test_versions(make_store):
    """Versions are stored and read as values are, beside any other kind under the same key, and are not counted."""
    store = make_store(kinds=(PART, VERSION))
    assert store.get(b"key", VERSION) is None
    assert store.put(b"key", b"{}", VERSION)
    assert store.put(b"key", b"value")
    assert store.put_part(b"key", b"part")
    assert [store.get(b"key", VERSION), store.get(b"key"), store.read_part(b"key", 0, 4)] == [b"{}", b"value", b"part"]
    assert store.remove(b"key", VERSION)
    assert store.get(b"key", VERSION) is None
    assert (store.stats().process.hits, store.stats().process.misses) == (1, 0)


# Damage


@KEYS
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("page", range(4))
def test_damaged_page(make_store, keys, page, is_whole):
    """Damage in a page is a miss for the reads that touch it, and for no other; then the part is removed."""
    store = make_store(signing_keys=keys)
    assert store.put_part(b"key", DATA)
    flip(store, page * PAGE_SIZE + 4)
    for first, end in itertools.combinations(range(5), 2):
        if not first <= page < end:
            start, stop = first * PAGE_SIZE, min(end * PAGE_SIZE, LENGTH)
            assert read(make_store(signing_keys=keys), start, stop) == DATA[start:stop]
    assert store.has_part(b"key") == LENGTH
    assert os.path.exists(path_of(store))
    # One byte of the page is enough, since nobody can tell which one is damaged.
    assert (
        read(store, page * PAGE_SIZE, min((page + 1) * PAGE_SIZE, LENGTH) if is_whole else page * PAGE_SIZE + 1) is None
    )
    assert store.failures.counts == {"damaged": 1}
    assert not os.path.exists(path_of(store))
    assert store.usage() == Usage(0, 0, 257)


@KEYS
def test_damage_before_the_bytes(make_store, keys):
    """Damage anywhere before the bytes is a miss for every read, and the part is removed."""
    store = make_store(signing_keys=keys)
    assert store.put_part(b"key", DATA)
    for at in range(1, start_of(store) + 1):
        assert store.put_part(b"key", DATA)
        assert store.read_part(b"key", 0, LENGTH) == DATA
        flip(store, -at)
        assert (store.read_part if at % 2 else store.has_part)(b"key", *((0, 1) if at % 2 else ())) is None
        assert not os.path.exists(path_of(store))
    assert set(store.failures.counts) == {"damaged"}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("length", [0, 3, 60, 100, LENGTH, -1, "longer"])
def test_other_length(store, make_store, is_known, length):
    """A part that was cut off, or extended, is a miss, and is removed."""
    reader = make_store()
    assert not is_known or reader.read_part(b"key", 0, LENGTH) == DATA
    if length == "longer":
        with open(path_of(store), "ab") as file:
            file.write(b"x")
    else:
        os.truncate(path_of(store), length if length >= 0 else os.path.getsize(path_of(store)) - 1)
    assert reader.read_part(b"key", 0, 1) is None
    assert reader.failures.counts == {"damaged": 1}
    assert not os.path.exists(path_of(store))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("elsewhere", path)])
@pytest.mark.parametrize("is_known", [False, True])
def test_no_file(store, is_known, make):
    """What is no file is a miss, and is removed; nobody waits for it."""
    assert not is_known or store.read_part(b"key", 0, LENGTH) == DATA
    os.unlink(path_of(store))
    make(path_of(store))
    assert store.read_part(b"key", 0, 1) is None
    assert not os.path.lexists(path_of(store))


def test_foreign_entries(store, make_store):
    """Another kind of entry in its place is a damaged part; that of another key is a miss, and stays."""
    assert store.put(b"value", b"payload")
    shutil.copy(ondisk.path(store, VALUE, b"value"), path_of(store))
    assert make_store().read_part(b"key", 0, 1) is None
    assert not os.path.exists(path_of(store))
    assert store.put_part(b"key", DATA)
    os.makedirs(os.path.dirname(path_of(store, b"other")), exist_ok=True)
    shutil.copy(path_of(store), path_of(store, b"other"))
    assert make_store().read_part(b"other", 0, 1) is make_store().has_part(b"other") is None
    assert os.path.exists(path_of(store, b"other"))
    os.unlink(path_of(store, b"other"))


@pytest.mark.parametrize("page", range(4))
@KEYS
@pytest.mark.leaves_damage("the check does not repair")
def test_check(make_store, keys, page):
    """A check reports a part with a damaged page, also without the signing key, and a whole one not."""
    store = make_store(signing_keys=keys)
    assert store.put_part(b"key", DATA)
    assert store.put_part(b"other", DATA)
    assert check(store).ok
    assert check(make_store()).ok
    flip(store, page * PAGE_SIZE)
    assert check(store).damaged == check(make_store()).damaged == 1


# Signed


def test_signatures(make_store):
    """With signing keys, only parts that are signed with one of them are read; without, all are."""
    assert make_store(signing_keys=[SECRET]).put_part(b"signed", DATA)
    assert make_store().put_part(b"unsigned", DATA)
    for key in (b"signed", b"unsigned"):
        assert make_store().read_part(key, 0, LENGTH) == DATA
    rotated = make_store(signing_keys=[entry.signing_key(b"new"), SECRET])
    assert rotated.read_part(b"signed", 0, LENGTH) == DATA
    assert rotated.read_part(b"unsigned", 0, LENGTH) is None
    assert make_store(signing_keys=[entry.signing_key(b"new")]).read_part(b"signed", 0, LENGTH) is None


@pytest.mark.parametrize("page", range(4))
def test_forged_page(make_store, page):
    """With a signing key a forged page is not read, even if it was read before, and the file has its times again."""
    store = make_store(signing_keys=[SECRET])
    assert store.put_part(b"key", DATA)
    assert read(store, 0, LENGTH) == DATA
    store.flush()
    assert read(store, 0, LENGTH) == DATA
    flip(store, page * PAGE_SIZE, keeps_time=True)
    assert store.read_part(b"key", page * PAGE_SIZE, page * PAGE_SIZE + 1) is None


# What is remembered


def test_checked_once(store, make_store, checks):
    """Pages that a process has checked are not checked again, also after uses, its own and others', were written."""
    reader = make_store()
    assert reader.read_part(b"key", PAGE_SIZE + 1, PAGE_SIZE + 2) == DATA[PAGE_SIZE + 1 : PAGE_SIZE + 2]
    assert checks == [(1, PAGE_SIZE)]
    for _ in range(3):
        assert reader.read_part(b"key", PAGE_SIZE + 7, 2 * PAGE_SIZE) == DATA[PAGE_SIZE + 7 : 2 * PAGE_SIZE]
        used_ns = ondisk.last_use(store, PART, b"key")
        reader.flush()
        assert ondisk.last_use(store, PART, b"key") > used_ns
    assert checks == [(1, PAGE_SIZE)]
    assert reader.read_part(b"key", 0, LENGTH) == DATA
    assert reader.read_part(b"key", 0, LENGTH) == DATA
    assert checks == [(1, PAGE_SIZE), (0, LENGTH)]


@pytest.mark.parametrize("change", ["written in place", "replaced", "touched"])
def test_checked_again(store, make_store, clock, checks, change):
    """Pages are checked again when the file was changed in place, replaced or touched."""
    reader = make_store()
    assert reader.read_part(b"key", 0, LENGTH) == DATA
    clock.move(1)
    if change == "written in place":
        flip(store, 0)
        flip(store, 0)
    elif change == "replaced":
        assert store.put_part(b"key", DATA)
    else:
        os.utime(path_of(store))
    checks.clear()
    assert reader.read_part(b"key", 0, LENGTH) == DATA
    assert checks == [(0, LENGTH)]


@pytest.mark.parametrize("is_flushed", [False, True])
def test_changed_in_place(store, is_flushed):
    """A page that is damaged after it was checked is noticed, since the damage changes the time of the file."""
    assert read(store, 0, LENGTH) == DATA
    if is_flushed:
        store.flush()
    assert read(store, 0, LENGTH) == DATA
    flip(store, PAGE_SIZE)
    assert read(store, 0, PAGE_SIZE) == DATA[:PAGE_SIZE]
    assert store.read_part(b"key", PAGE_SIZE, PAGE_SIZE + 1) is None
    assert not os.path.exists(path_of(store))


@pytest.mark.parametrize("change", ["replaced", "cut off"])
def test_changed_with_the_same_time(store, make_store, change):
    """Another file, or another length, is noticed whatever time the file has."""
    reader, found = make_store(), os.stat(path_of(store))
    assert reader.read_part(b"key", 0, LENGTH) == DATA
    if change == "replaced":
        assert store.put_part(b"key", DATA[:-1] + b"x")
    else:
        os.truncate(path_of(store), found.st_size - 1)
    os.utime(path_of(store), ns=(found.st_atime_ns, found.st_mtime_ns))
    assert reader.read_part(b"key", 0, 1) == (DATA[:1] if change == "replaced" else None)
    assert reader.read_part(b"key", LENGTH - 1, LENGTH) == (b"x" if change == "replaced" else None)
    # Checked, and not only read.
    assert change == "cut off" or reader._parts._known[b"key"].inode == os.stat(path_of(store)).st_ino


@pytest.mark.parametrize(("limit", "size"), [(3, 1 << 23), (100, 3 * 17)])
def test_bounded_memory(make_store, monkeypatch, checks, limit, size):
    """Only so many parts, and tables of so many bytes, are remembered; the others are checked again."""
    # The table of four pages has 16 bytes.
    monkeypatch.setattr(parts, "LIMIT", limit)
    monkeypatch.setattr(parts, "LIMIT_SIZE", size)
    store = make_store()
    for number in range(5):
        assert store.put_part(b"%d" % number, DATA)
    for number in (*range(5), 4, 3, 2, 1, 0):
        assert store.read_part(b"%d" % number, 0, LENGTH) == DATA
    # Those of 4, 3 and 2 were known.
    assert len(checks) == 5 + 2
    assert len(store._parts._known) == 3


def test_no_descriptor_is_kept(store, open_descriptors):
    """No descriptor of a part stays open, however it was read, so that the disk has its space when it is removed."""
    read(store, 0, 1)
    before = open_descriptors()
    for start, stop in [(0, LENGTH), (0, LENGTH), (5, 6), (0, LENGTH + 1)]:
        read(store, start, stop)
        store.has_part(b"key")
    flip(store, 0)
    assert store.read_part(b"key", 0, 1) is None
    assert open_descriptors() == before


# Uses, and what is counted


def test_uses(make_store, clock):
    """A read is a use, and keeps a part from being evicted; to ask for its length is none."""
    # Each part takes one block, and there is room for three.
    store = make_store(cache_size=3 * BLOCK)
    for number in range(3):
        clock.move(1)
        assert store.put_part(b"%d" % number, b"bytes")
    clock.move(1)
    assert store.has_part(b"1") == 5
    assert read(store, 0, 1, b"0") == b"b"
    assert store.put_part(b"new", b"bytes")
    assert [store.has_part(key) for key in (b"0", b"1", b"2", b"new")] == [5, None, 5, 5]


def test_statistics(store):
    """Reads of parts are no hits and misses of values. What is stored and damaged is counted."""
    read(store, 0, 1)
    read(store, 0, 1, b"absent")
    flip(store, 0)
    assert store.read_part(b"key", 0, 1) is None
    counts = store.stats().process
    assert (counts.hits, counts.misses, counts.stores, counts.damaged) == (0, 0, 1, 1)
    # 49,157 bytes, and 70 before them.
    assert counts.stored_bytes == 13 * BLOCK


@pytest.mark.parametrize("is_known", [False, True])
def test_expiry(make_store, clock, is_known):
    """In a store with an expiration time a part is a miss when it is older, and reads do not prolong it."""
    store = make_store(expiration_time=10)
    assert store.put_part(b"key", DATA)
    assert not is_known or read(store, 0, LENGTH) == DATA
    clock.move(10)
    assert read(store, 0, 1) == DATA[:1]
    assert store.has_part(b"key") == LENGTH
    clock.move(0.001)
    assert read(store, 0, 1) is store.has_part(b"key") is None
    assert store.put_part(b"key", DATA)
    assert read(store, 0, 1) == DATA[:1]


def test_expiry_by_kind(make_store, clock):
    """A store for values does not remove parts that are too old for it; one for parts does."""
    store = make_store(expiration_time=10, kinds=(VALUE, FILE))
    assert store.put_part(b"key", DATA)
    clock.move(100)
    store.prune()
    assert make_store().has_part(b"key") == LENGTH
    make_store(expiration_time=10, kinds=(PART, VERSION)).prune()
    assert make_store().has_part(b"key") is None


# Beside others


def test_threads(make_store):
    """Each of several readers gets one of the parts that are stored in turn under a key, never a mix, never a miss."""
    versions = [content(LENGTH, b"%d" % number) for number in range(2)]
    store, done, wrong = make_store(), threading.Event(), []
    assert store.put_part(b"key", versions[0])

    def use(reader, start, stop):
        try:
            while not done.is_set():
                found = reader.read_part(b"key", start, stop)
                if found not in [data[start:stop] for data in versions]:
                    wrong.append(found and found[:10])
                    return
        except BaseException as error:
            wrong.append(error)

    readers = [(store, 0, LENGTH), (store, 10, 2 * PAGE_SIZE), (make_store(), PAGE_SIZE - 1, LENGTH)]
    threads = [threading.Thread(target=use, args=each) for each in readers]
    for thread in threads:
        thread.start()
    for number in range(300):
        assert store.put_part(b"key", versions[number % 2])
    done.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert wrong == []
    assert store.failures.counts == {}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("moment", ["before it is opened", "when it is open"])
def test_evicted_meanwhile(store, make_store, monkeypatch, is_known, moment):
    """A part that is evicted while it is read is a miss if it was not open yet; else it is read to its end."""
    reader = make_store()
    assert not is_known or reader.read_part(b"key", 0, LENGTH) == DATA
    name = "open" if moment == "before it is opened" else "pread"
    call = getattr(os, name)

    def evict_first(*arguments, **options):
        if name == "pread" or arguments[0].endswith("b"):
            monkeypatch.undo()
            assert store.remove(b"key", PART)
        return call(*arguments, **options)

    replace_here(monkeypatch, os, name, evict_first)
    assert reader.read_part(b"key", 5, LENGTH) == (None if name == "open" else DATA[5:])
    assert reader.read_part(b"key", 5, LENGTH) is None
    assert reader.failures.counts == {}


def test_replaced_while_found_damaged(store, monkeypatch):
    """A reader that found a damaged part returns the whole one that has since replaced it, and removes nothing."""
    flip(store, 0)
    check_pages = Part.check

    def replace_first(*arguments):
        monkeypatch.undo()
        assert store.put_part(b"key", DATA)
        check_pages(*arguments)

    monkeypatch.setattr(Part, "check", replace_first)
    assert store.read_part(b"key", 0, LENGTH) == DATA
    assert store.failures.counts == {}


@pytest.mark.leaves_damage("the other key's entry is damage to a check")
def test_another_key_with_the_same_digest(make_store, monkeypatch):
    """Of two keys with one digest, the last one stored is read, and the other one is a miss."""
    monkeypatch.setattr(layout, "blake2b", lambda *_, **__: types.SimpleNamespace(hexdigest=lambda: "00" * 16))
    store = make_store()
    assert store.put_part(b"a", DATA)
    assert read(store, 0, LENGTH, b"a") == DATA
    assert store.put_part(b"b", DATA)
    assert read(store, 0, LENGTH, b"a") is store.has_part(b"a") is None
    assert read(store, 0, LENGTH, b"b") == DATA


def test_directory_replaced(store, make_store, base_dir):
    """A reader notices that another directory has taken the place of its own, and reads nothing of the old one."""
    other = content(LENGTH, b"other")
    reader = make_store()
    assert reader.read_part(b"key", 0, LENGTH) == DATA
    os.rename(base_dir, f"{base_dir}.old")
    assert store.put_part(b"key", other)
    give_up_at = time.monotonic() + PATIENCE
    while (found := reader.read_part(b"key", 0, LENGTH)) != other and time.monotonic() < give_up_at:
        assert found == DATA
    assert found == other


def test_directory_deleted(store, base_dir):
    """A part of a directory that was deleted is a miss, and can be stored again."""
    assert read(store, 0, LENGTH) == DATA
    shutil.rmtree(base_dir)
    assert read(store, 0, LENGTH) is store.has_part(b"key") is None
    assert store.put_part(b"key", DATA)
    assert read(store, 0, LENGTH) == DATA


def test_link_instead_of_a_shard(store, make_store, tmp_path):
    """A shard that is a symbolic link is not followed."""
    shard = os.path.dirname(path_of(store))
    shutil.move(shard, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", shard)
    reader = make_store()
    assert reader.read_part(b"key", 0, 1) is reader.has_part(b"key") is None
    os.unlink(shard)
    store.prune()


# Trouble


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("is_known", [False, True])
def test_trouble_with_a_read(store, make_store, is_known, code):
    """Trouble that lasts from any call on is a miss, is counted, and removes nothing; trouble that passes is none."""
    reader = make_store()
    assert not is_known or reader.read_part(b"key", 0, LENGTH) == DATA
    with injection.Faults() as context:
        assert make_store().read_part(b"key", 0, LENGTH) == DATA
    calls = [call.name for call in context.calls]
    assert {"open", "fstat", "pread", "close"} <= set(calls)
    only = injection.can_fail_with(code)
    for number in range(1, len(calls) + 1):
        with injection.Faults(injection.fail(code), number, only=only):
            assert reader.read_part(b"key", 0, LENGTH) == DATA
        with injection.Faults(injection.fail(code), number, lasting=True, only=only) as context:
            assert reader.read_part(b"key", 0, LENGTH) == (None if context.struck else DATA)
            assert reader.has_part(b"key") == (None if context.struck else LENGTH)
    assert reader.failures.counts[errno.errorcode[code]] > 0
    assert reader.read_part(b"key", 0, LENGTH) == DATA


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_trouble_with_a_write(store, code):
    """A part that cannot be written is not kept, nor is the one that it should have replaced, and all is given back."""
    only = injection.can_fail_with(code)
    with injection.Faults(
        injection.fail(code), 1, lasting=True, only=lambda call: call.name == "writev" and only(call)
    ) as context:
        assert not store.put_part(b"key", content(LENGTH, b"new"))
    assert context.struck
    assert store.failures.counts[errno.errorcode[code]] > 0
    assert read(store, 0, 1) is None
    assert store.usage() == Usage(0, 0, 257)
    assert store.put_part(b"key", DATA)


def test_too_large(store):
    """A part larger than the cache is not kept."""
    small = type(store)(store.base_dir, cache_size=12 * BLOCK)
    assert not small.put_part(b"key", DATA)
    assert read(store, 0, 1) is None
    assert small.stats().process.refused == 1


@pytest.mark.parametrize("name", ["pread", "preadv"])
def test_short_reads(store, make_store, name, monkeypatch):
    """A filesystem may hand out less than it was asked for, anywhere."""
    call = getattr(os, name)
    short = {
        "pread": lambda fd, length, at: call(fd, min(length, 1000), at),
        "preadv": lambda fd, buffers, at: call(fd, [buffers[0][:1000]], at),
    }
    replace_here(monkeypatch, os, name, short[name])
    reader = make_store()
    for _ in range(2):
        assert read(reader, 0, LENGTH) == DATA
        assert read(reader, 5, LENGTH - 5) == DATA[5:-5]
    monkeypatch.undo()


def test_stale(store, monkeypatch):
    """A part that could not be removed is not read any more by this process."""
    assert read(store, 0, 1) == DATA[:1]
    with injection.Faults(injection.fail(errno.EROFS), 1, lasting=True, only=injection.can_fail_with(errno.EROFS)):
        assert not store.remove(b"key", PART)
    assert os.path.exists(path_of(store))
    assert read(store, 0, 1) is store.has_part(b"key") is None
    assert store.put_part(b"key", DATA)
    assert read(store, 0, 1) == DATA[:1]


def test_modes(store):
    """A part is as private as any entry."""
    assert stat.S_IMODE(os.stat(path_of(store)).st_mode) == 0o600
