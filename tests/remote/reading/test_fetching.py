"""
Blocks on their way from the source: each is fetched once, with its neighbours, and is not kept if anything is wrong.
"""

from __future__ import annotations

import errno
import os
import tracemalloc

import pytest
from cached_files import BLOCK, KIB, MIB, Shop, Threads, content, read_in_order, until
from forked import Forked
from ondisk import usage_on_disk

from dogpile_filesystem.layout import PART
from dogpile_filesystem.lockfile import KeyMutex
from dogpile_filesystem.remote import SourceChanged

NAME = "file"


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture
def control(shop):
    return shop.control


def counts(fs):
    return fs.stats().process.source


def asked(shop):
    """What was asked for of the file: where it begins, in blocks, and how many blocks."""
    return [(read.start / BLOCK, read.asked / BLOCK) for read in shop.reads()]


def read_at(fs, position, length=1, name=NAME):
    with fs.open(name, "rb") as file:
        file.seek(position)
        return file.read(length)


# Single flight


@pytest.mark.parametrize("number", [0, 2])
def test_interrupted(shop, monkeypatch, number):
    """Nobody waits for a mutex in vain whose holder got a KeyboardInterrupt at the moment that it was obtained."""
    data = shop.write(NAME, content(3 * BLOCK))
    fs, acquire, calls = shop.cache(lock_timeout=1), KeyMutex.acquire, []

    def interrupted(mutex, wait=True):
        calls.append(mutex)
        obtained = acquire(mutex, wait)
        if len(calls) == number + 1:
            raise KeyboardInterrupt
        return obtained

    with monkeypatch.context() as patched:
        patched.setattr(KeyMutex, "acquire", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fs.cat_file(NAME)
    assert fs.cat_file(NAME) == data
    assert counts(fs).block_waits == 0


def test_threads_share_one_fetch(shop, control):
    """A block that many threads want at once is asked for once, and those that waited are counted."""
    data = shop.write(NAME, content(BLOCK))
    fs, threads = shop.cache(), Threads()
    with control.holding("read"):
        for _ in range(8):
            threads.start(read_at, fs, 0, BLOCK)
        until(lambda: counts(fs).block_waits == 7)
        assert len(shop.reads()) == 1
    assert threads.results() == [data] * 8
    assert control.totals().bytes == BLOCK
    found = counts(fs)
    assert (found.source_bytes, found.cache_bytes, found.shared_bytes) == (BLOCK, 7 * BLOCK, 7 * BLOCK)


def read_for_parent(pipe, shop, arguments):
    fs = shop.cache(**arguments)
    pipe.send("ready")
    pipe.recv()
    with fs.open(NAME, "rb") as file:
        pipe.send(file.read())


def test_processes_share_one_fetch(shop, control):
    """Blocks that many processes want at once are asked for once each."""
    data = shop.write(NAME, content(20 * BLOCK + 7))
    processes = [Forked(read_for_parent, shop, {}) for _ in range(4)]
    assert [process.pipe.recv() for process in processes] == ["ready"] * 4
    with control.holding("read"):
        for process in processes:
            process.pipe.send("go")
        until(lambda: control.totals().infos.get(NAME) == 4)
    assert [process.pipe.recv() for process in processes] == [data] * 4
    assert [process.wait() for process in processes] == [0] * 4
    assert control.totals().bytes == len(data)


def test_two_filesystems_share_one_fetch(shop, control):
    """Two filesystems of one process, on one directory and one source, fetch a block once."""
    data = shop.write(NAME, content(BLOCK))
    first, second, threads = shop.cache(), shop.cache(), Threads()
    with control.holding("read"):
        threads.start(read_at, first, 0, BLOCK)
        until(lambda: len(shop.reads()) == 1)
        threads.start(read_at, second, 0, BLOCK)
        until(lambda: counts(second).block_waits == 1)
    assert threads.results() == [data] * 2
    assert len(shop.reads()) == 1


def test_holder_killed(shop, control):
    """A reader that waits for the fetch of a process that is killed goes on at once, and fetches the block itself."""
    data = shop.write(NAME, content(BLOCK))
    # It would wait for ever.
    fs, threads = shop.cache(lock_timeout=None), Threads()
    with control.holding("read", times=1):
        holder = Forked(read_for_parent, shop, {})
        holder.ask("go")
        until(lambda: len(shop.reads()) == 1)
        threads.start(read_at, fs, 0, BLOCK)
        until(lambda: counts(fs).block_waits == 1)
        holder.kill()
        assert threads.results() == [data]
    assert [read.answered for read in shop.reads()] == [None, BLOCK]
    assert fs.store.failures.counts == {}


def test_holder_hangs(shop, control):
    """A reader waits for a fetch that hangs no longer than the ``lock_timeout``, and once only for all its blocks."""
    data = shop.write(NAME, content(4 * BLOCK))
    fs, impatient = shop.cache(), shop.cache(lock_timeout=0.2)
    threads = Threads()
    with control.holding("read", times=1):
        threads.start(read_at, fs, 0, 4 * BLOCK)
        until(lambda: len(shop.reads()) == 1)
        assert read_at(impatient, 0, 4 * BLOCK) == data
        assert impatient.store.failures.counts == {"lock timeout": 1}
        assert counts(impatient).block_waits == 1
    assert threads.results() == [data]
    assert asked(shop) == [(0, 4), (0, 4)]


def test_holder_fails(shop, control):
    """If the source fails one reader, those that wait for it ask the source themselves."""
    data = shop.write(NAME, content(BLOCK))
    fs, threads = shop.cache(), Threads()
    with control.holding("read", times=1):
        control.fail("EIO", "read", times=1)
        threads.start(read_at, fs, 0, BLOCK)
        until(lambda: len(shop.reads()) == 1)
        for _ in range(3):
            threads.start(read_at, fs, 0, BLOCK)
        until(lambda: counts(fs).block_waits == 3)
    failed, *others = threads.results()
    assert (failed.errno, others) == (errno.EIO, [data] * 3)
    assert len(shop.reads()) == 2


def test_hanging_does_not_block_others(shop, control):
    """While the fetch of one block hangs, all other blocks and files are read, by threads and processes."""
    data = shop.write(NAME, content(6 * BLOCK))
    other = shop.write("other", content(BLOCK, "other"))
    fs, threads = shop.cache(lock_timeout=None), Threads()
    with control.holding("read", times=1):
        threads.start(read_at, fs, 2 * BLOCK)
        until(lambda: len(shop.reads()) == 1)
        assert read_at(fs, 0, 2 * BLOCK) == data[: 2 * BLOCK]
        assert read_at(fs, 3 * BLOCK, 3 * BLOCK) == data[3 * BLOCK :]
        assert fs.cat_file("other") == other
        process = Forked(lambda pipe: pipe.send(read_at(shop.cache(lock_timeout=None), 4 * BLOCK, BLOCK)))
        assert process.pipe.recv() == data[4 * BLOCK : 5 * BLOCK]
        assert process.wait() == 0
    assert threads.results() == [data[2 * BLOCK : 2 * BLOCK + 1]]


# How much is asked for


def test_growth(shop):
    """A reader that goes on in order asks for four times more each time, up to 16 MiB."""
    size = 64 * MIB
    with open(shop.local(NAME), "wb") as file:
        file.truncate(size)
    with shop.cache(block_size=MIB).open(NAME, "rb") as file:
        while file.read(MIB // 2):
            pass
    assert [read.asked / MIB for read in shop.reads()] == [1, 4, 16, 16, 16, 11]
    assert [read.start / MIB for read in shop.reads()] == [0, 1, 5, 21, 37, 53]


def test_growth_ends_where_the_order_ends(shop):
    """A reader that goes elsewhere begins with one block there."""
    shop.write(NAME, content(40 * BLOCK))
    with shop.cache().open(NAME, "rb", buffering=0) as file:
        for position in (0, BLOCK, 30 * BLOCK, 10 * BLOCK):
            file.seek(position)
            file.read(BLOCK)
    assert asked(shop) == [(0, 1), (1, 4), (30, 1), (10, 1)]


def test_what_is_wanted_is_asked_for_at_once(shop):
    """One request asks for all the blocks that a read touches."""
    data = shop.write(NAME, content(40 * BLOCK))
    assert read_at(shop.cache(), 3 * BLOCK - 1, 20 * BLOCK) == data[3 * BLOCK - 1 : 23 * BLOCK - 1]
    assert asked(shop) == [(2, 21)]


def test_share_of_the_cache(shop):
    """No request asks for more than a sixteenth of the cache, so that readers do not evict what others are to read."""
    data = shop.write(NAME, content(100 * BLOCK))
    assert read_at(shop.cache(cache_size=48 * BLOCK), 0, len(data)) == data
    assert max(count for _, count in asked(shop)) == 3


def test_cached_blocks_are_left_out(shop):
    """Requests end where blocks are in the cache already: none is fetched twice."""
    data = shop.write(NAME, content(20 * BLOCK))
    fs = shop.cache()
    for number in (3, 4, 11):
        read_at(fs, number * BLOCK)
    shop.control.forget_requests()
    assert read_at(fs, 0, len(data)) == data
    assert asked(shop) == [(0, 3), (5, 6), (12, 8)]


def test_blocks_of_others_are_left_out(shop, control):
    """Requests end where another reader is fetching, and that block is waited for only when the reader comes to it."""
    data = shop.write(NAME, content(10 * BLOCK))
    fs, threads = shop.cache(), Threads()
    with control.holding("read", times=1):
        threads.start(read_at, fs, 6 * BLOCK)
        until(lambda: len(shop.reads()) == 1)
        threads.start(read_at, fs, 0, len(data))
        until(lambda: counts(fs).block_waits == 1)
        assert asked(shop) == [(6, 1), (0, 6)]
    assert threads.results() == [data[6 * BLOCK : 6 * BLOCK + 1], data]
    assert sorted(asked(shop)) == [(0, 6), (6, 1), (7, 3)]


def test_random_reads(shop, rng):
    """Random reads of 1 % of a file fetch the blocks that they touch, each once, and nothing else."""
    # 1,024 blocks. 82 reads of 8 KiB are 1 % of 64 MiB.
    size = 64 * MIB
    shop.write(NAME, content(size))
    fs = shop.cache()
    places = [rng.randrange(size - 8 * KIB) for _ in range(82)]
    touched = {place // BLOCK for start in places for place in (start, start + 8 * KIB - 1)}
    for _ in range(2):
        with fs.open(NAME, "rb") as file, open(shop.local(NAME), "rb") as original:
            for place in places:
                file.seek(place)
                original.seek(place)
                assert file.read(8 * KIB) == original.read(8 * KIB)
    fetched = [number for start, count in asked(shop) for number in range(int(start), int(start + count))]
    assert sorted(fetched) == sorted(touched)
    assert shop.control.totals().bytes == len(touched) * BLOCK


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 100])
def test_sizes(shop, size):
    """A file of any size is read in order with its last block as long as it is, and each byte is fetched once."""
    data = shop.write(NAME, content(size))
    fs = shop.cache()
    for _ in range(2):
        with fs.open(NAME, "rb") as file:
            assert read_in_order(file, 1000) == data
    assert shop.control.totals().bytes == size


# What is wrong with an answer


def no_block_is_kept(fs):
    return not any(fs.store.has_part(fs.versions.opened(NAME).key(number)) for number in range(20))


def test_short_answer_is_not_kept(shop, control):
    """Of an answer that is too short nothing reaches the reader or the cache, and the next one is taken."""
    data = shop.write(NAME, content(3 * BLOCK))
    fs = shop.cache()
    control.cut(1)
    with pytest.raises(SourceChanged):
        read_at(fs, 0, 3 * BLOCK)
    assert no_block_is_kept(fs)
    control.forget_orders()
    control.cut(1, times=1)
    assert read_at(fs, 0, 3 * BLOCK) == data


def test_short_answer_within_a_file(shop, control):
    """A reader that has read something is told of an answer that is too short, and can go on when it is over."""
    data = shop.write(NAME, content(3 * BLOCK))
    with shop.cache().open(NAME, "rb") as file:
        assert file.read(BLOCK) == data[:BLOCK]
        control.cut(1, times=1)
        with pytest.raises(SourceChanged):
            file.read(BLOCK)
        assert file.read(2 * BLOCK) == data[BLOCK:]


def test_whole_file_instead_of_a_range(shop, control):
    """Where the source answers a range with the whole file, the reader gets the range, and all blocks are kept."""
    data = shop.write(NAME, content(5 * BLOCK + 100))
    fs = shop.cache()
    control.answer_whole(times=1)
    assert read_at(fs, 2 * BLOCK + 10, 1000) == data[2 * BLOCK + 10 : 2 * BLOCK + 1010]
    assert fs.cat_file(NAME) == data
    assert len(shop.reads()) == 1


ERRORS = ["ENOENT", "EACCES", "ETIMEDOUT", "EIO", "ConnectionResetError", "ValueError", "MemoryError"]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", ["info", "read"])
def test_errors_of_the_source(shop, control, kind, error):
    """An error of the source is raised as it is, nothing of the file is kept, and once it is over the file is read."""
    data = shop.write(NAME, content(2 * BLOCK))
    fs = shop.cache()
    control.fail(error, kind)
    with pytest.raises(Exception) as raised:
        read_at(fs, 0)
    if error.startswith("E"):
        assert raised.value.errno == getattr(errno, error)
    else:
        assert type(raised.value).__name__ == error
    assert fs.store.failures.counts == {}
    control.forget_orders()
    assert no_block_is_kept(fs)
    assert read_at(fs, 0, 2 * BLOCK) == data


def test_error_of_the_check(shop, control):
    """What cannot be verified, because the source fails behind the data, is neither handed out nor kept."""
    data = shop.write(NAME, content(2 * BLOCK))
    fs = shop.cache()
    with fs.open(NAME, "rb") as file:
        control.fail("EIO", "info", times=1)
        with pytest.raises(OSError, match="Input/output"):
            file.read(BLOCK)
        assert not fs.store.has_part(file.raw.version.key(0))
        assert file.read(2 * BLOCK) == data


# Changes


@pytest.mark.parametrize("within", [False, True], ids=["before", "within"])
def test_changed_while_fetched(shop, control, within):
    """A fetch during which the file is replaced hands out nothing and keeps nothing of a mixture."""
    old, new = shop.write(NAME, content(4 * BLOCK, "old")), content(4 * BLOCK, "new")
    fs = shop.cache()
    with fs.open(NAME, "rb") as file:
        assert file.read(BLOCK) == old[:BLOCK]
        control.replace(NAME, new, within=within)
        with pytest.raises(SourceChanged):
            file.read(2 * BLOCK)
        assert [fs.store.has_part(file.raw.version.key(number)) for number in (1, 2, 3)] == [None] * 3
    assert fs.cat_file(NAME) == new


@pytest.mark.parametrize("within", [False, True], ids=["before", "within"])
def test_changed_before_the_first_byte(shop, control, within):
    """A reader that has read nothing yet gets the new version, whole."""
    shop.write(NAME, content(4 * BLOCK, "old"))
    new = content(3 * BLOCK + 1, "new")
    with shop.cache().open(NAME, "rb") as file:
        control.replace(NAME, new, within=within)
        assert file.read() == new
        assert file.size == len(new)


def test_identity_no_longer_told(shop, control):
    """What comes while the source tells no identity of a version that had one is neither handed out nor kept."""
    shop.write(NAME, content(4 * BLOCK, "old"))
    fs = shop.cache()
    with fs.open(NAME, "rb") as file:
        file.read(BLOCK)
        control.hide_identity()
        shop.write(NAME, content(4 * BLOCK, "new"))
        with pytest.raises(SourceChanged):
            file.read(BLOCK)


# Bounds


def test_cache_smaller_than_the_file(shop):
    """A file that is larger than the cache is read in order with each byte fetched once, within the bound."""
    data = shop.write(NAME, content(64 * BLOCK))
    fs = shop.cache(cache_size=8 * BLOCK)
    with fs.open(NAME, "rb") as file:
        assert read_in_order(file) == data
    assert shop.control.totals().bytes == len(data)
    assert usage_on_disk(shop.base_dir).size <= 8 * BLOCK


def test_cache_smaller_than_a_read(shop):
    """A read of more than the cache holds gets its bytes, each fetched once."""
    data = shop.write(NAME, content(40 * BLOCK))
    assert read_at(shop.cache(cache_size=5 * BLOCK), 0, len(data)) == data
    assert shop.control.totals().bytes == len(data)


@pytest.mark.parametrize("arguments", [{"cache_size": BLOCK // 2}, {"max_entries": 1}, {"min_free_space": 1 << 60}])
def test_nothing_can_be_kept(shop, arguments):
    """In a cache that has room for no block, or for one, a file is read in order with each byte fetched once."""
    data = shop.write(NAME, content(40 * BLOCK))
    with shop.cache(**arguments).open(NAME, "rb") as file:
        assert read_in_order(file) == data
    assert shop.control.totals().bytes == len(data)


def test_watermarks(shop):
    """Past the high watermark, entries are evicted down to the low one, and never are there more."""
    data = shop.write(NAME, content(100 * BLOCK))
    fs = shop.cache(cache_size=64 * BLOCK, high_watermark=0.5, low_watermark=0.25)
    sizes = []
    with fs.open(NAME, "rb") as file:
        for position in range(0, len(data), BLOCK):
            assert file.read(BLOCK) == data[position : position + BLOCK]
            sizes.append(usage_on_disk(shop.base_dir).size)
    assert max(sizes) <= 32 * BLOCK
    # Of 64 blocks, a quarter. A request brings 4 blocks, each charged 4 KiB more for its head: 16 * 64 + 4 * 68 KiB.
    assert min(sizes[30:]) <= 16 * BLOCK + 4 * (BLOCK + 4 * KIB)


def test_evicted_while_it_is_open(shop):
    """A reader whose blocks are all removed under it fetches them again."""
    data = shop.write(NAME, content(10 * BLOCK))
    fs = shop.cache()
    with fs.open(NAME, "rb") as file:
        assert file.read(5 * BLOCK) == data[: 5 * BLOCK]
        for number in range(10):
            fs.store.remove(file.raw.version.key(number), PART)
        file.seek(0)
        assert read_in_order(file) == data


@pytest.mark.parametrize("arguments", [{}, {"min_free_space": 1 << 60}], ids=["kept", "not kept"])
def test_memory(shop, arguments):
    """To read a large file, a process needs less than 32 MiB, whether or not its blocks are kept."""
    size = 64 * MIB
    with open(shop.local(NAME), "wb") as file:
        file.truncate(size)
    fs, piece = shop.cache(block_size=MIB, **arguments), memoryview(bytearray(MIB))
    tracemalloc.start()
    try:
        with fs.open(NAME, "rb") as file:
            assert sum(iter(lambda: file.readinto(piece), 0)) == size
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


# Filling


def test_larger_than_the_cache_is_not_filled(shop):
    """A file that does not fit into the cache is not filled, since it would evict what its readers want."""
    shop.write(NAME, content(40 * BLOCK))
    fs = shop.cache(cache_size=20 * BLOCK, fill=True)
    read_at(fs, 0)
    assert counts(fs).fills_running == 0
    assert asked(shop) == [(0, 1)]


def test_descriptors(shop, open_descriptors):
    """Neither reading nor failing to read leaves a descriptor open."""
    shop.write(NAME, content(40 * BLOCK))
    fs = shop.cache()
    read_at(fs, 0)
    before = open_descriptors()
    for position in range(0, 40 * BLOCK, 3 * BLOCK):
        read_at(fs, position)
    shop.control.fail("EIO", "read")
    for position in range(0, 40 * BLOCK, BLOCK):
        fs.cat_ranges([NAME], [position], [position + 1])
    assert open_descriptors() == before
    assert os.path.isdir(shop.base_dir)
