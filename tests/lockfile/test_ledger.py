"""
The ledger: its sums and turns, and a file that is damaged or lost.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, SHARDS, UNSENT_SHARD, charge
from dogpile_filesystem.lockfile import format as format_module
from dogpile_filesystem.lockfile.format import key_offset
from dogpile_filesystem.lockfile.ledger import Bound, Ledger, Usage
from dogpile_filesystem.lockfile.presence import is_alive


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger.open(str(tmp_path / "lock"))
    for shard in range(ALL_SHARDS):
        ledger.set(shard, 0, 0)
    return ledger


def test_charge():
    """A file is charged whole blocks of 4096 bytes."""
    assert [charge(length) for length in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


def test_sums(ledger):
    """The usage is the sum over all shards of the charges added, less those subtracted."""
    # Shard i gets i blocks and 2 i entries, and loses one of each: i from 1 to 255 makes 32,640 less 255.
    for shard in range(1, SHARDS):
        with ledger.shard(shard):
            ledger.add(shard, shard * BLOCK, 2 * shard)
            ledger.add(shard, -BLOCK, -1)
    assert ledger.usage() == Usage((32_640 - 255) * BLOCK, 2 * 32_640 - 255, ALL_SHARDS)


@pytest.mark.parametrize("shard", [7, UNSENT_SHARD])
def test_bounds(ledger, shard):
    """A bound holds up to and including its own number, of bytes and of entries, in whichever shard they are."""
    with ledger.shard(shard):
        ledger.add(shard, 3 * BLOCK, 3)
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


@pytest.mark.parametrize("value", [0xFF, 0x100, 0xFFFF, 0x10000, 0x89ABCDEF, 0xFFFFFFFF])
def test_bounds_of_large_records(ledger, value):
    """A bound is compared with the exact sum, whatever the records say: up to the most that each of them can."""
    for shard in range(ALL_SHARDS):
        with ledger.shard(shard):
            ledger.add(shard, value * BLOCK, value - shard % 2)
    # Every second record has one entry less: 128 in all.
    size, entries = ALL_SHARDS * value * BLOCK, ALL_SHARDS * value - 128
    assert ledger.usage() == Usage(size, entries, ALL_SHARDS)
    assert ledger.holds(Bound(size, entries))
    assert not ledger.holds(Bound(size - 1, None))
    assert not ledger.holds(Bound(None, entries - 1))


def test_never_below_zero(ledger):
    """Subtracting from a record that is too low stops at zero instead of wrapping around."""
    with ledger.shard(0):
        ledger.add(0, -BLOCK, -1)
    assert ledger.usage() == Usage(0, 0, ALL_SHARDS)


def test_turns(ledger):
    """The place to continue is kept for the next process, and a damaged one still leads to an existing shard."""
    assert ledger.next_shard() == 0
    ledger.set_next_shard(SHARDS - 1)
    assert ledger.next_shard() == SHARDS - 1
    ledger.set_next_shard(SHARDS + 3)
    assert ledger.next_shard() == 3


def test_lost_records(ledger):
    """If the ledger's file was emptied, no record is trusted until its shard is counted again."""
    os.truncate(ledger.file.path, 0)
    assert ledger.usage() == Usage(0, 0, 0)
    with ledger.shard(3):
        ledger.set(3, BLOCK, 1)
    assert ledger.usage() == Usage(BLOCK, 1, 1)
    assert ledger.record(3) == Usage(BLOCK, 1, 1)
    assert ledger.record(4) == Usage(0, 0, 0)
    assert not ledger.holds(Bound(None, None))


@pytest.mark.parametrize("damage", ["magic", "version", "zeroed", "cut", "emptied", "records only"])
def test_damaged_file(ledger, damage):
    """A lock file with a damaged header is made again, and none of its old records is trusted."""
    with ledger.shard(3):
        ledger.add(3, BLOCK, 1)
    path = ledger.file.path
    data = bytearray(pathlib.Path(path).read_bytes())
    if damage == "magic":
        data[0] ^= 1
    elif damage == "version":
        data[8] ^= 4
    elif damage == "zeroed":
        data = bytearray(len(data))
    elif damage == "records only":  # This is the state left by a thread that had the ledger of a deleted file.
        data = bytearray(4096) + data[4096:4200]
    os.truncate(path, {"cut": 5, "emptied": 0}.get(damage, len(data)))
    if damage not in ("cut", "emptied"):
        pathlib.Path(path).write_bytes(data)
    again = Ledger.open(path)
    assert again.usage().counted == 0
    assert pathlib.Path(path).read_bytes().startswith(b"dogpilfs\2\0\0\0")


def test_another_file(tmp_path):
    """A file that is not a ledger, or is of a later version, is refused and left unchanged."""
    path = tmp_path / "lock"
    for content in (b"12345\n", os.urandom(10_000), format_module.head(3)):
        path.write_bytes(content)
        with pytest.raises(OSError, match="base_dir"):
            Ledger.open(str(path))
        assert path.read_bytes() == content


def test_earlier_version(ledger):
    """A lock file of version 1 is taken over with its records and stamps, and can be read before that."""
    with ledger.shard(3):
        ledger.add(3, BLOCK, 1)
    ledger.stamp(5.0, hard=True)
    usage, path = ledger.usage(), ledger.file.path
    os.pwrite(ledger.file.fd, format_module.head(1), 0)
    reading = Ledger.open(path, make=False)
    assert (reading.usage(), reading.stamps()) == (usage, (5.0, 1.0))
    assert pathlib.Path(path).read_bytes().startswith(b"dogpilfs\1\0\0\0")
    again = Ledger.open(path)
    assert (again.usage(), again.stamps()) == (usage, (5.0, 1.0))
    assert pathlib.Path(path).read_bytes().startswith(format_module.HEAD)


def test_machine_started_again(ledger, monkeypatch):
    """After the machine restarts no record is trusted, since a power cut may have lost the last additions."""
    path = ledger.file.path
    assert Ledger.open(path).usage().counted == ALL_SHARDS
    monkeypatch.setattr(format_module, "start_of_machine", lambda: 12345)
    with ledger.shard(3):
        ledger.add(3, BLOCK, 1)
    assert Ledger.open(path).usage() == Usage(BLOCK, 1, 0)


def test_in_use_when_it_is_taken_over(ledger, monkeypatch):
    """What another process counts, and invalidates, while the file is taken over for another start, stays."""
    real = format_module.write

    def count_then(fd, data, offset):
        monkeypatch.undo()
        real(fd, data, offset)
        with ledger.shard(3):
            ledger.set(3, 5 * BLOCK, 2)
        ledger.stamp(7.0, hard=True)

    monkeypatch.setattr(format_module, "start_of_machine", lambda: 12345)
    monkeypatch.setattr(format_module, "write", count_then)
    again = Ledger.open(ledger.file.path)
    assert again.record(3) == (5 * BLOCK, 2, 1)
    assert again.stamps() == (7.0, 1.0)
    assert again.usage().counted == 1


def test_who_lives(ledger, spawn):
    """A process that marks itself as alive is seen as alive until it is killed."""
    program = """
        import sys
        from dogpile_filesystem.lockfile.ledger import Ledger
        from dogpile_filesystem.lockfile import presence
        ledger = Ledger.open(sys.argv[1])
        presence.name = "0123456789abcdef"
        presence.show(ledger.file)
        print("lives", flush=True)
        sys.stdin.read()
    """
    process = spawn(program, ledger.file.path)
    assert process.stdout.readline() == "lives\n"
    assert is_alive("0123456789abcdef", ledger.file)
    assert not is_alive("1123456789abcdef", ledger.file)
    process.kill()
    process.wait()
    assert not is_alive("0123456789abcdef", ledger.file)


def test_implausible(ledger):
    """Impossible records are detected: more entries than blocks, or more bytes than the bound."""
    for shard, blocks, entries in [(1, 5, 5), (2, 5, 6), (3, 11, 1)]:
        with ledger.shard(shard):
            ledger.add(shard, blocks * BLOCK, entries)
    assert ledger.implausible(10 * BLOCK) == [2, 3]


def test_key_offsets():
    """Mutexes lie above everything else, within the range that a lock can have."""
    assert key_offset("0" * 32) == 1 << 62
    assert key_offset("f" * 32) == (1 << 63) - 1
