"""
The ledger: sums, turns, and a file that was damaged or lost.
"""

from __future__ import annotations

import os

import pytest

from dogpile_filesystem.ledger import BLOCK, SHARDS, Bound, Ledger, Usage, charge, key_offset


@pytest.fixture
def ledger(tmp_path):
    return Ledger.open(str(tmp_path / "lock"), is_fresh=lambda: True)


def test_charge():
    """A file is charged whole blocks of 4096 bytes."""
    assert [charge(length) for length in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


def test_sums(ledger):
    """The usage is the sum over all shards, of what was added less what was taken off."""
    # Shard i gets i blocks and 2 i entries, and loses one of each: i from 1 to 255 makes 32,640 less 255.
    for shard in range(1, SHARDS):
        with ledger.shard(shard):
            ledger.add(shard, shard * BLOCK, 2 * shard)
            ledger.add(shard, -BLOCK, -1)
    assert ledger.usage() == Usage((32_640 - 255) * BLOCK, 2 * 32_640 - 255, SHARDS)


def test_bounds(ledger):
    """A bound holds up to and including its own number, of bytes and of entries."""
    with ledger.shard(7):
        ledger.add(7, 3 * BLOCK, 3)
    for size, entries, holds in [
        (3 * BLOCK, None, True),
        (3 * BLOCK - 1, None, False),
        (None, 3, True),
        (None, 2, False),
        (3 * BLOCK, 3, True),
        (3 * BLOCK - 1, 3, False),
        (None, None, True),
    ]:
        assert ledger.holds(Bound(size, entries)) is holds


def test_never_below_zero(ledger):
    """A record that was too low stops at zero instead of wrapping around."""
    with ledger.shard(0):
        ledger.add(0, -BLOCK, -1)
    assert ledger.usage() == Usage(0, 0, SHARDS)


def test_turns(ledger):
    """Where to go on is kept for the next process; damage leads to some shard, not out of them."""
    assert ledger.next_shard() == 0
    ledger.set_next_shard(SHARDS - 1)
    assert ledger.next_shard() == SHARDS - 1
    ledger.set_next_shard(SHARDS + 3)
    assert ledger.next_shard() == 3


def test_lost_records(ledger):
    """Of a ledger whose file was emptied, nothing is believed until it is counted again."""
    os.truncate(ledger.file.path, 0)
    assert ledger.usage() == Usage(0, 0, 0)
    with ledger.shard(3):
        ledger.set(3, BLOCK, 1)
    assert ledger.usage() == Usage(BLOCK, 1, 1)
    assert ledger.is_counted(3)
    assert not ledger.is_counted(4)


def test_another_file(tmp_path):
    """A file that is no ledger becomes one, with nothing counted."""
    path = tmp_path / "lock"
    path.write_bytes(os.urandom(10_000))
    assert Ledger.open(str(path), is_fresh=lambda: False).usage() == Usage(0, 0, 0)


def test_key_offsets():
    """Mutexes lie above everything else, within the range that a lock can have."""
    assert key_offset("0" * 32) == 1 << 62
    assert key_offset("f" * 32) == (1 << 63) - 1
