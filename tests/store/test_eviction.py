"""
Which entries go, and when.

All entries here take one block, unless the arithmetic says otherwise.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import OrderedDict

import ondisk
import pytest
from patching import replace_here

from dogpile_filesystem import layout
from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.lockfile.format import USES_AT, USES_OF_SHARD
from dogpile_filesystem.lockfile.ledger import Usage
from dogpile_filesystem.store.eviction import BATCH
from dogpile_filesystem.store.reservation import Reservation
from dogpile_filesystem.store.shard import Shard, Shards

#: Bytes of the slots in the lock file.
USES_LENGTH = 8 * USES_OF_SHARD * layout.SHARDS


def names(numbers):
    return [b"%d" % number for number in numbers]


def put_all(store, clock, keys):
    for key in keys:
        clock.move(1)
        assert store.put(key, b"")


def kept(store, keys):
    """Returns which of the keys are stored, without using them."""
    return [key for key in keys if os.path.exists(ondisk.path(store, 1, key))]


def test_oldest_goes_first(make_store, clock):
    """In a full cache, the entry used longest ago makes room for the next, and a read counts as a use."""
    store = make_store(cache_size=5 * BLOCK)
    put_all(store, clock, names(range(5)))
    clock.move(1)
    assert store.get(b"0") is not None
    put_all(store, clock, [b"new"])
    # 6 blocks are needed and 5 are available. A tenth of 6 entries rounds down to none, so one entry is evicted.
    assert kept(store, [*names(range(5)), b"new"]) == [b"0", b"2", b"3", b"4", b"new"]


def test_a_tenth_goes(make_store, clock, usage_on_disk):
    """An eviction from a small cache removes exactly the oldest tenth."""
    store = make_store(cache_size=30 * BLOCK)
    put_all(store, clock, names(range(31)))
    assert kept(store, names(range(31))) == names(range(3, 31))
    assert store.usage() == usage_on_disk() == Usage(28 * BLOCK, 28, 257)


def test_few_go_at_a_time(make_store, clock):
    """However many entries there are, an eviction removes no more than a few if one would do."""
    store = make_store(cache_size=900 * BLOCK)
    put_all(store, clock, names(range(901)))
    assert kept(store, names(range(901))) == names(range(BATCH, 901))


def test_as_many_go_as_are_needed(make_store, clock, usage_on_disk):
    """A large value evicts as many of the oldest entries as it needs room for."""
    # 20 of 20 blocks are taken. The value takes 8, so the 8 oldest are evicted; a tenth of 21 would be 2.
    store = make_store(cache_size=20 * BLOCK)
    put_all(store, clock, names(range(20)))
    clock.move(1)
    assert store.put(b"large", bytes(8 * BLOCK - 100))
    assert kept(store, names(range(20))) == names(range(8, 20))
    assert store.usage() == usage_on_disk() == Usage(20 * BLOCK, 13, 257)


def test_value_that_takes_most_of_the_cache(make_store, clock, usage_on_disk):
    """A value that takes most of a large cache is kept, even if every entry has to be evicted for it."""
    # 1,500 of 1,500 blocks are taken and 1,450 are needed, of which one round of samples frees some 900.
    store = make_store(cache_size=1500 * BLOCK)
    put_all(store, clock, names(range(1500)))
    assert store.put(b"large", bytes(1450 * BLOCK - 100))
    assert store.usage() == usage_on_disk()
    assert store.usage().size <= 1500 * BLOCK


def test_uses_of_another_store(make_store, clock):
    """In one process, a use through one store counts at once when another store on the directory evicts."""
    store, other = make_store(cache_size=3 * BLOCK), make_store(cache_size=3 * BLOCK)
    put_all(store, clock, names(range(3)))
    clock.move(1)
    assert other.get(b"0") is not None
    put_all(store, clock, [b"3"])
    assert kept(store, names(range(4))) == [b"0", b"2", b"3"]


def test_max_entries(make_store, clock, usage_on_disk):
    """The number of entries is bounded too, and replacing an entry evicts no other."""
    store = make_store(max_entries=3)
    put_all(store, clock, names(range(3)))
    put_all(store, clock, [b"0", b"0", b"1"])
    assert kept(store, names(range(3))) == names(range(3))
    put_all(store, clock, [b"3"])
    assert kept(store, names(range(4))) == [b"0", b"1", b"3"]
    assert store.usage() == usage_on_disk() == Usage(3 * BLOCK, 3, 257)


def test_entry_being_replaced_goes_last(make_store, clock, monkeypatch):
    """An entry that is being replaced is not evicted to make room while another could be."""
    store = make_store(cache_size=2 * BLOCK)
    put_all(store, clock, [b"0", b"1"])
    monkeypatch.setattr(store.directory, "is_local", False)  # To write over it would take no room.
    seen = []
    publish = Reservation.publish
    monkeypatch.setattr(
        Reservation, "publish", lambda self, shard: (seen.append(kept(store, [b"0"])), publish(self, shard))[1]
    )
    put_all(store, clock, [b"0"])
    assert seen == [[b"0"]]
    assert kept(store, [b"0", b"1"]) == [b"0"]


@pytest.mark.parametrize("length", [0, 100_000])
def test_entry_gone_while_it_is_replaced(make_store, clock, monkeypatch, usage_on_disk, length):
    """If the entry being replaced disappears while its replacement is written, room is made for one more entry."""
    store = make_store(max_entries=2)
    put_all(store, clock, [b"0", b"1"])
    make_room = store._room.make

    def others_first(*arguments):
        monkeypatch.setattr(store._room, "make", make_room)
        other = make_store(max_entries=2)
        other.remove(b"0")
        put_all(other, clock, [b"2"])
        make_room(*arguments)

    monkeypatch.setattr(store._room, "make", others_first)
    clock.move(1)
    assert store.put(b"0", bytes(length))
    if length:
        assert kept(store, names(range(3))) == [b"0", b"2"]
    assert store.usage() == usage_on_disk()
    assert store.usage().entries == 2


def test_only_entry_replaced(make_store, clock, usage_on_disk):
    """In a cache with room for one entry, that entry can be replaced, again and again."""
    store = make_store(cache_size=BLOCK, max_entries=1)
    for value in (b"a", b"b", b"c"):
        clock.move(1)
        assert store.put(b"k", value)
        assert store.get(b"k") == value
    assert store.usage() == usage_on_disk() == Usage(BLOCK, 1, 257)


def test_used_since_it_was_seen(make_store, clock):
    """A candidate that was used after the visit that found it is not evicted."""
    store = make_store(cache_size=100 * BLOCK)
    put_all(store, clock, names(range(101)))
    clock.move(1)
    assert store.get(b"%d" % BATCH) is not None  # The next candidate.
    put_all(store, clock, names(range(101, 101 + BATCH)))  # The last of them evicts again.
    left = [b"%d" % BATCH, *names(range(2 * BATCH + 1, 101 + BATCH))]
    assert kept(store, names(range(101 + BATCH))) == left


def test_used_long_after_it_was_stored(make_store, clock):
    """Of a thousand entries that were used in another order than stored, exactly those used longest ago go first."""
    store = make_store(max_entries=1000)
    keys = names(range(1000))
    put_all(store, clock, keys)
    order = random.Random(1).sample(keys, len(keys))
    for key in order:
        clock.move(0.000_001)
        assert store.get(key) is not None
    for number in range(50):
        put_all(store, clock, [b"new%d" % number])
        gone = set(keys) - set(kept(store, keys))
        assert gone == set(order[: len(gone)])
    assert len(gone) >= 50


def test_slots_of_the_future(make_store, clock, base_dir):
    """If the slots of the lock file are overwritten with times to come, the order is that in which entries came."""
    store = make_store(max_entries=5)
    put_all(store, clock, names(range(5)))
    damage_uses(base_dir, b"\xff" * USES_LENGTH)
    put_all(store, clock, names(range(5, 8)))
    assert kept(store, names(range(8))) == names(range(3, 8))


def test_stored_in_the_future(make_store, clock):
    """Entries that were stored while the clock was far ahead go before others, unless they are used."""
    store = make_store(max_entries=20)
    clock.move(10**8)
    put_all(store, clock, names(range(20)))
    clock.move(-(10**8))
    assert store.get(b"0") is not None
    put_all(store, clock, names(range(20, 30)))
    assert kept(store, [b"0", *names(range(20, 30))]) == [b"0", *names(range(20, 30))]


def test_random_slots(make_store, clock, base_dir, rng, usage_on_disk):
    """Whatever stands in the slots of the lock file, no entry stays for good, and nothing is raised or miscounted."""
    store = make_store(max_entries=50)
    put_all(store, clock, names(range(50)))
    for turn in range(1, 4):
        damage_uses(base_dir, rng.randbytes(USES_LENGTH))
        # More than clocks may differ: whatever the slots say then is in the past.
        clock.move(61)
        put_all(store, clock, names(range(turn * 100, turn * 100 + 100)))
        assert set(kept(store, names(range(500)))) <= set(names(range(turn * 100, turn * 100 + 100)))
    assert store.usage() == usage_on_disk()
    assert store.failures.counts == {}


def damage_uses(base_dir, data):
    with open(f"{base_dir}/lock", "r+b") as file:
        file.seek(USES_AT)
        file.write(data)


def test_each_shard_is_locked_once(make_store, clock, monkeypatch):
    """However many entries of a shard an eviction removes, it locks the shard once."""
    store = make_store(max_entries=100)
    first, second = (shard_mates(number, BATCH) for number in (7, 8))
    others = [key for key in names(range(200)) if layout.place(1, key).shard not in (7, 8)]
    put_all(store, clock, [*first, *second, *others[: 101 - 2 * BATCH]])  # The last of these evicts the first ones.
    put_all(store, clock, others[101 - 2 * BATCH : 100 - BATCH])  # It is full again.
    lock, locked = Shards.locked, []
    monkeypatch.setattr(
        Shards, "locked", lambda shards, ledger, number: (locked.append(number), lock(shards, ledger, number))[1]
    )
    put_all(store, clock, others[100 - BATCH : 101 - BATCH])
    assert kept(store, [*first, *second]) == []
    assert locked.count(8) == 1


def shard_mates(shard, count):
    """Keys of one shard."""
    keys = (b"key%d" % number for number in itertools.count())
    return list(itertools.islice((key for key in keys if layout.place(1, key).shard == shard), count))


def test_expired_go_before_live_ones(make_store, clock):
    """An expired entry is evicted before a live one, even if the live one was used longer ago."""
    store = make_store(cache_size=10 * BLOCK, expiration_time=100)
    put_all(store, clock, names(range(5)))
    clock.move(101)
    # 5 expired and 10 live entries do not fit together; the live ones alone do.
    put_all(store, clock, names(range(5, 15)))
    assert kept(store, names(range(15))) == names(range(5, 15))


def test_expired_though_used(make_store, clock):
    """An entry that was used until it expired is removed by the first visit after that."""
    store = make_store(expiration_time=100)
    put_all(store, clock, [b"k"])
    clock.move(99)
    assert store.get(b"k") is not None
    clock.move(2)
    store.prune()
    assert kept(store, [b"k"]) == []


def test_sweep(make_store, clock):
    """Expired entries leave the disk within one expiration time, even if nobody reads them."""
    store = make_store(expiration_time=256)
    put_all(store, clock, names(range(50)))
    clock.move(257)
    for _ in range(256):
        clock.move(1)
        assert store.get(b"missing") is None
    assert kept(store, names(range(50))) == []


def test_files_go_with_their_content(make_store, clock, files, tmp_path, usage_on_disk):
    """Evicting a file frees the blocks of its entry and of its content."""
    # Each file takes 1 + 3 blocks, so that 3 of them fit in 13.
    store = make_store(cache_size=13 * BLOCK)
    path = tmp_path / "content"
    path.write_bytes(bytes(3 * BLOCK))
    for number in range(4):
        clock.move(1)
        with open(path, "rb") as file:
            assert store.put_file(b"%d" % number, file)
    assert len(files()) == 6
    assert store.usage() == usage_on_disk() == Usage(12 * BLOCK, 3, 257)


def test_entries_that_cannot_be_removed(make_store, clock, monkeypatch):
    """An entry that cannot be removed is skipped, and the next one is evicted instead."""
    store = make_store(cache_size=3 * BLOCK)
    put_all(store, clock, names(range(3)))
    stuck = layout.place(1, b"0").name
    unlink = os.unlink

    def refuse(path, **kwargs):
        if path.endswith(stuck):
            raise PermissionError(1, "not permitted", path)
        unlink(path, **kwargs)

    replace_here(monkeypatch, os, "unlink", refuse)
    put_all(store, clock, [b"3"])
    assert kept(store, names(range(4))) == [b"0", b"2", b"3"]


def test_nothing_can_be_removed(make_store, clock, monkeypatch, usage_on_disk):
    """If no room can be made, the value is not kept, nothing raises, and the reservation is released."""
    store = make_store(cache_size=3 * BLOCK)
    put_all(store, clock, names(range(3)))
    with monkeypatch.context() as patch:
        patch.setattr(Shard, "remove_unused", lambda *_: None)
        assert not store.put(b"3", b"")
    assert store.failures.counts == {"no room": 1}
    assert store.usage() == usage_on_disk() == Usage(3 * BLOCK, 3, 257)


def test_prune(make_store, clock, usage_on_disk):
    """Pruning with a smaller bound removes expired entries, and the oldest of those over the bound."""
    put_all(make_store(), clock, names(range(20)))
    store = make_store(cache_size=10 * BLOCK, expiration_time=15)
    store.prune()
    # The entries are 15 to 1 seconds old: 0 to 4 are older and expired, and the 5 oldest of the other 15 are over the
    # bound.
    assert kept(store, names(range(20))) == names(range(10, 20))
    assert store.usage() == usage_on_disk() == Usage(10 * BLOCK, 10, 257)


# Watermarks


def test_watermarks(make_store, clock, usage_on_disk):
    """Nothing is evicted up to the high watermark; what goes beyond it evicts the oldest down to the low one."""
    store = make_store(cache_size=100 * BLOCK, high_watermark=0.8, low_watermark=0.5)
    put_all(store, clock, names(range(80)))
    assert store.usage().entries == 80
    put_all(store, clock, [b"80"])
    assert kept(store, names(range(81))) == names(range(31, 81))
    assert store.usage() == usage_on_disk() == Usage(50 * BLOCK, 50, 257)


def test_low_watermark_alone(make_store, clock):
    """With a high watermark of 1.0 the whole cache is used before eviction begins."""
    store = make_store(cache_size=20 * BLOCK, low_watermark=0.25)
    put_all(store, clock, names(range(20)))
    assert store.usage().entries == 20
    put_all(store, clock, [b"20"])
    assert kept(store, names(range(21))) == names(range(16, 21))


def test_watermarks_of_an_unbounded_cache(make_store, clock):
    """Without a size, there is nothing to take a fraction of."""
    store = make_store(max_entries=10, high_watermark=0.5, low_watermark=0.1)
    put_all(store, clock, names(range(11)))
    assert kept(store, names(range(11))) == names(range(1, 11))


def test_low_watermark_counts_no_entries(make_store, clock):
    """What is evicted for the sake of max_entries alone is not evicted down to the low watermark."""
    store = make_store(cache_size=100 * BLOCK, max_entries=10, high_watermark=0.5, low_watermark=0.01)
    put_all(store, clock, names(range(11)))
    assert kept(store, names(range(11))) == names(range(1, 11))


def test_value_above_the_low_watermark(make_store, clock, usage_on_disk):
    """A value that is larger than the low watermark evicts only what does not fit beside it, and is kept."""
    # The value takes 40 blocks. Beside 30 others that is more than 50; beside 70 it is more than all 100, and 10 go.
    for others, left in ((30, 30), (45, 45), (70, 60)):
        store = make_store(cache_size=100 * BLOCK, high_watermark=0.8, low_watermark=0.25)
        store.clear()
        assert others <= 80
        put_all(store, clock, names(range(others)))
        clock.move(1)
        assert store.put(b"large", bytes(40 * BLOCK - 100))
        assert store.usage() == usage_on_disk() == Usage((40 + left) * BLOCK, left + 1, 257)
    put_all(store, clock, [b"next"])
    assert store.usage().size <= 25 * BLOCK


def test_value_above_the_high_watermark(make_store, clock):
    """A value that alone is beyond the high watermark is kept, as long as it fits into the cache."""
    store = make_store(cache_size=10 * BLOCK, high_watermark=0.5, low_watermark=0.3)
    put_all(store, clock, names(range(5)))
    clock.move(1)
    assert store.put(b"large", bytes(9 * BLOCK - 100))
    assert store.usage() == Usage(10 * BLOCK, 2, 257)
    assert not store.put(b"larger", bytes(11 * BLOCK))


def test_watermark_that_cannot_be_reached(make_store, clock, monkeypatch, usage_on_disk):
    """A value that fits into the cache is kept, even if what others are writing alone is above the low watermark."""
    # While 4 blocks are being written 2 are stored. Together they are above 5, and nothing can be evicted down to 3.
    arguments = {"cache_size": 10 * BLOCK, "high_watermark": 0.5, "low_watermark": 0.3}
    store, other = make_store(**arguments), make_store(**arguments)
    write = Reservation.write

    def others_first(*rest):
        monkeypatch.setattr(Reservation, "write", write)
        assert other.put(b"other", bytes(2 * BLOCK - 100))
        write(*rest)

    monkeypatch.setattr(Reservation, "write", others_first)
    assert store.put_part(b"part", bytes(4 * BLOCK - 100))
    assert other.get(b"other") is not None
    assert store.usage() == usage_on_disk() == Usage(6 * BLOCK, 2, 257)
    assert store.failures.counts == other.failures.counts == {}


@pytest.mark.parametrize(("high", "low"), [(1.1, 1.0), (0.5, 0.6), (0.5, 0), (0, 0), (-1, -1), (float("nan"), 0.5)])
def test_watermarks_that_make_no_sense(make_store, stores_made, high, low):
    """The bound cannot be passed, and eviction cannot go on until there is more than before: that raises at once."""
    with pytest.raises(ValueError, match="low_watermark"):
        make_store(high_watermark=high, low_watermark=low)
    stores_made.clear()


@pytest.mark.time_intensive
@pytest.mark.parametrize("bound", [{"max_entries": 2000}, {"cache_size": 2000 * BLOCK}], ids=["entries", "bytes"])
def test_hit_ratio_of_sampled_eviction(make_store, clock, bound):
    """Beyond 1,000 entries, the hit ratio on a Zipf trace is within half a percentage point of exact LRU."""
    rng = random.Random(1)
    weights = [1 / rank for rank in range(1, 20_001)]
    trace = rng.choices(names(range(20_000)), weights, k=40_000)
    store = make_store(**bound)
    exact: OrderedDict[bytes, None] = OrderedDict()
    hits = exact_hits = 0
    for key in trace:
        clock.move(0.001)
        if store.get(key) is None:
            store.put(key, b"")
        else:
            hits += 1
        if key in exact:
            exact_hits += 1
            exact.move_to_end(key)
        else:
            exact[key] = None
            if len(exact) > 2000:
                exact.popitem(last=False)
    assert exact_hits > 10_000
    assert abs(hits - exact_hits) / len(trace) <= 0.005
