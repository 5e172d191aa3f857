"""
The slots of last uses: what is found again, what makes room for what, and what damage does.
"""

from __future__ import annotations

import itertools
import os
import random

import pytest
from patience import PATIENCE

from dogpile_filesystem.layout import UNSENT_SHARD, VALUE, entry_name
from dogpile_filesystem.lockfile import format as file_format
from dogpile_filesystem.lockfile.format import USES_AT, USES_OF_SHARD
from dogpile_filesystem.lockfile.ledger import Ledger
from dogpile_filesystem.lockfile.uses import FUTURE_NS, NO_USES, Uses

NOW = 1_700_000_000 * 10**9
SECOND = 10**9
#: Bytes of all slots.
SLOTS = 8 * USES_OF_SHARD * 256


@pytest.fixture
def ledger(path):
    return Ledger.open(path)


class ByShards(Uses):
    """Uses that are noted as on a filesystem of several machines."""

    note = Uses.note_by_shards


@pytest.fixture(params=[Uses, ByShards])
def uses(ledger, request):
    return request.param(ledger.file)


def names(number, bucket=None):
    """Names of entries; of those in the first bucket of the first shard."""
    if bucket is None:
        return [entry_name(VALUE, b"%d" % each) for each in range(number)]
    return [f"0000{each * 8:04x}".ljust(32, "0") + "v" for each in range(number)]


def known(uses, name, now=NOW):
    """The last use of an entry, which both ways of reading must agree on."""
    found = uses.of_entry(name, now)
    assert uses.of_shard(int(name[:2], 16), now).used_ns(name) == found
    return found


def test_found_again(uses):
    """A use is found again to the microsecond, and an entry that was not used has none."""
    used, unused = names(2)
    uses.note([(used, NOW + 123_456)], NOW)
    assert known(uses, used) == NOW + 123_000
    assert known(uses, unused) == 0


def test_a_thousand_entries_lose_no_use(uses):
    """The uses of a thousand entries are all known, and a later use takes the place of the earlier one."""
    for turn in (0, 1000):
        uses.note([(name, NOW + (turn + at) * 1000) for at, name in enumerate(names(1000))], NOW)
    assert [known(uses, name) for name in names(1000)] == [NOW + at * 1000 for at in range(1000, 2000)]


def test_each_has_one_slot(uses, ledger):
    """However often an entry is used, it takes one slot."""
    name = names(1)[0]
    for at in range(20):
        uses.note([(name, NOW + at * 1000)], NOW)
    data = os.pread(ledger.file.fd, SLOTS, USES_AT)
    assert len(data.replace(b"\0", b"")) <= 8


def test_never_backwards(uses):
    """A use that is written late takes nothing away from a later one."""
    name = names(1)[0]
    uses.note([(name, NOW)], NOW)
    uses.note([(name, NOW - SECOND)], NOW)
    assert known(uses, name) == NOW


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "backwards"])
def test_the_latest_eight_stay(uses, order):
    """Of more entries in a bucket than it has slots, the latest uses are known, in whatever order they are written."""
    crowd = names(20, bucket=0)
    uses.note([(name, NOW + at * 1000) for at, name in enumerate(crowd)][::order], NOW)
    assert [known(uses, name) for name in crowd] == [0] * 12 + [NOW + at * 1000 for at in range(12, 20)]


def test_buckets_are_apart(uses):
    """Uses of entries of other shards, and of other buckets of the shard, change nothing."""
    alone = "0000" + "0" * 28 + "v"
    uses.note([(alone, NOW)], NOW)
    others = [f"{first:02x}{second:02x}".ljust(32, "0") + "v" for first in range(3) for second in range(256)]
    others.remove(alone)
    uses.note([(name, NOW + SECOND) for name in others * 2], NOW)
    assert known(uses, alone) == NOW
    assert all(known(uses, name) == NOW + SECOND for name in others)


def test_too_far_in_the_future(uses):
    """A use that lies further ahead than clocks differ counts as none, and a use now takes its place."""
    name = names(1)[0]
    uses.note([(name, NOW + FUTURE_NS)], NOW + FUTURE_NS)
    assert known(uses, name) == 0
    assert known(uses, name, NOW + SECOND) == NOW + FUTURE_NS
    uses.note([(name, NOW)], NOW)
    assert known(uses, name) == NOW


def test_bucket_full_of_the_future(uses):
    """A bucket whose slots all lie in the future, by damage or a wrong clock, is used again at once."""
    crowd = names(9, bucket=0)
    later = NOW + 1000 * FUTURE_NS
    uses.note([(name, later) for name in crowd[:8]], later)
    uses.note([(crowd[8], NOW)], NOW)
    assert [known(uses, name) for name in crowd] == [0] * 8 + [NOW]


@pytest.mark.parametrize("ns", [0, -NOW, 1_577_836_800 * SECOND - 1, 1 << 62, 1 << 80])
def test_times_that_have_no_place(uses, ns):
    """A use that a slot has no room for, as of a clock that was never set, is not kept, and does no harm."""
    name, other = names(2)
    uses.note([(name, ns), (other, NOW)], ns)
    assert known(uses, name, ns) == 0
    assert known(uses, other) == NOW


@pytest.mark.parametrize("name", ["", "x", "0", "zz" * 16, "-1234567", "12_45678", "00 0000000", "\udcff" * 40])
def test_foreign_names(uses, name):
    """A file in a shard that is no entry has no use, and makes no trouble."""
    for now in (0, NOW):
        assert uses.of_shard(0, now).used_ns(name) == uses.of_entry(name, now) == 0
    assert NO_USES.used_ns(name) == 0


def test_unsent_files_have_none(uses, ledger):
    """Unsent files, which are never evicted, have no slots, whatever stands behind those of the other shards."""
    name = "0" * 32 + "v"
    uses.note([(name, NOW)], NOW)
    os.pwrite(ledger.file.fd, os.pread(ledger.file.fd, 8 * USES_OF_SHARD, USES_AT), USES_AT + SLOTS)
    assert uses.of_shard(0, NOW).used_ns(name) == NOW
    assert uses.of_shard(UNSENT_SHARD, NOW).used_ns(name) == 0


def test_what_cannot_be_read_is_no_use(uses, ledger, monkeypatch):
    """If the lock file cannot be read, there are no uses, and nothing is raised."""
    name = names(1)[0]
    uses.note([(name, NOW)], NOW)
    # Of a program that has closed all descriptors.
    monkeypatch.setattr(ledger.file.descriptor, "fd", -1)
    assert known(uses, name) == 0
    with pytest.raises(OSError):
        uses.note([(name, NOW)], NOW)


def test_damaged_slots(uses, ledger, seed):
    """Whatever stands in the slots, nothing raises, no use lies in the future, and a use now is known."""
    rng = random.Random(seed)
    for _ in range(20):
        os.pwrite(ledger.file.fd, rng.randbytes(8 * USES_OF_SHARD), USES_AT)
        crowd = names(32, bucket=0)
        assert all(known(uses, name) <= NOW + FUTURE_NS for name in crowd)
        uses.note([(name, NOW) for name in crowd[:4]], NOW)
        assert all(known(uses, name) >= NOW for name in crowd[:4])


def test_lock_file_of_version_1(path):
    """A lock file of version 1, which ends before the slots, is taken over without uses, and gets them."""
    Ledger.open(path)
    with open(path, "r+b") as file:
        file.write(file_format.head(1))
        file.truncate(file_format.LENGTH)
    name = names(1)[0]
    assert known(Ledger.open(path, make=False).uses, name) == 0
    uses = Ledger.open(path).uses
    assert known(uses, name) == 0
    uses.note([(name, NOW)], NOW)
    assert known(uses, name) == NOW


def test_many_processes_at_once(spawn, path, uses):
    """Processes that note the uses of many entries at the same time mix none up, and all last uses are known."""
    program = """
        import sys
        from dogpile_filesystem.layout import VALUE, entry_name
        from dogpile_filesystem.lockfile.ledger import Ledger

        path, first, now = sys.argv[1], *map(int, sys.argv[2:])
        uses = Ledger.open(path).uses
        names = [entry_name(VALUE, b"%d" % each) for each in range(first, 1200, 4)]
        print("ready", flush=True)
        input()
        for turn in range(1, 21):
            uses.note([(name, now + turn * 1000) for name in names], now)
        """
    processes = [spawn(program, path, first, NOW) for first in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.wait(PATIENCE) == 0
    # Two entries that took one slot at the same moment: the one that lost it has got another one since.
    assert {known(uses, name) for name in names(1200)} == {NOW + 20_000}


def test_keys_that_share_a_slot(uses):
    """Two keys that agree in 29 bits of their digests share a slot: the later use counts for both."""
    first, second = "00000008".ljust(32, "0") + "v", "0000000f".ljust(32, "1") + "v"
    for each, at in itertools.product((first, second), (0, 1)):
        uses.note([(each, NOW + at * 1000)], NOW)
    assert known(uses, first) == known(uses, second) == NOW + 1000
