"""
The commands ``evict``, ``remove`` and ``clear``: what they remove, and what they leave.
"""

from __future__ import annotations

import io
import os
import time

import ondisk
import pytest
from commands import PATIENCE, difference, path_of, read_until

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, VALUE, PartKey
from dogpile_filesystem.lockfile.ledger import Usage


def test_evict_to(store, base_dir, run):
    """The least recently used entries are evicted down to the size, as a dry run says; the ledger is right."""
    for number in range(20):
        assert store.put(b"%d" % number, b"value")
    assert store.get(b"0")
    store.flush()
    dry = run("evict", "--to", "40KiB", "--dry-run")
    assert dry.stdout == "Would remove 10 entries, 40 KiB.\n"
    assert run("evict", "--to", "40KiB").stdout == "Removed 10 entries, 40 KiB.\n"
    assert [store.get(b"%d" % number) is not None for number in range(20)] == [True, *[False] * 10, *[True] * 9]
    assert difference(base_dir) == []
    assert run("evict", "--to", "40KiB").stdout == "Removed 0 entries, 0 KiB.\n"


def test_evict_older_than(store, base_dir, run):
    """Entries not used for that long are evicted, whatever their age; with --to, so are those that it selects."""
    for number in range(10):
        assert store.put(b"%d" % number, b"value")
        used = time.time_ns() - number * 3600 * 10**9 - 60 * 10**9
        os.utime(path_of(base_dir, VALUE, b"%d" % number), ns=(0, used))
    assert run("evict", "--older-than", "6h", "-n").stdout == "Would remove 4 entries, 16 KiB.\n"
    assert run("evict", "--older-than", "6h").stdout == "Removed 4 entries, 16 KiB.\n"
    both = ["--older-than", "5h", "--to", 2 * BLOCK]
    assert run("evict", *both, "--dry-run").stdout == "Would remove 4 entries, 16 KiB.\n"
    assert run("evict", *both).stdout == "Removed 4 entries, 16 KiB.\n"
    assert [store.get(b"%d" % number) is not None for number in range(10)] == [True, True, *[False] * 8]
    assert difference(base_dir) == []


def test_evict_spares_entries_for_what_is_left_over(store, base_dir, run, spawn):
    """The files of a killed process are removed first: no entry is evicted to make up for them."""
    for number in range(5):
        assert store.put(b"%d" % number, b"value")
    program = """
        import os, signal, sys
        from dogpile_filesystem.store.reservation import Reservation
        from dogpile_filesystem.store.store import Store
        Reservation.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Store(sys.argv[1]).put(b"new", bytes(100_000))
    """
    assert spawn(program, base_dir).wait() == -9
    assert run("evict", "--to", 5 * BLOCK).stdout == "Removed 0 entries, 0 KiB.\n"
    assert difference(base_dir) == []


@pytest.mark.parametrize(
    "arguments", [[], ["--to", "0"], ["--to", "none"], ["--to", "-1"], ["--to", "1XB"], ["--older-than", "1y"]]
)
def test_evict_wrong_usage(filled, run, arguments):
    """Without a limit, or with one that makes no sense, nothing is evicted and the exit code is 2."""
    done = run("evict", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert filled.usage().entries == 2


def test_remove_keys(filled, base_dir, run):
    """The entries of the keys are removed, of both kinds or one; a key without an entry is named, with exit code 1."""
    assert filled.put(b"file", b"value")
    assert filled.put(b"stays", b"value")
    assert run("remove", "file", "value", "--dry-run").stdout == "Would remove 3 entries, 20 KiB.\n"
    assert run("remove", "file", "--kind", "value").stdout == "Removed 1 entry, 4 KiB.\n"
    done = run("remove", "file", "missing", "value")
    assert (done.exit_code, done.stdout) == (1, "Removed 2 entries, 16 KiB.\n")
    assert done.stderr == "no entry under missing\n"
    assert filled.get(b"stays") is not None
    assert difference(base_dir) == []


def test_remove_prefix(filled, base_dir, run):
    """
    All entries whose keys begin with the prefix are removed, and no others; if there are none, the exit code is 1.
    """
    assert filled.put(b"val", b"value")
    assert filled.put_file(b"value:2", io.BytesIO(b"file"))
    assert run("remove", "--prefix", "value", "--dry-run").stdout == "Would remove 2 entries, 12 KiB.\n"
    assert run("remove", "--prefix", "value", "--kind", "file").stdout == "Removed 1 entry, 8 KiB.\n"
    assert run("remove", "--prefix", "value").stdout == "Removed 1 entry, 4 KiB.\n"
    done = run("remove", "--prefix", "value")
    assert (done.exit_code, done.stderr) == (1, "no key begins with value\n")
    assert filled.usage().entries == 2
    assert difference(base_dir) == []


def test_remove_source_files(cached, store, base_dir, run):
    """
    By its URL, a file of a source is removed with all its blocks and its record; by a prefix, all files below.
    """
    url = f"file://{cached}"
    assert store.put(url.encode(), b"value of a region")
    assert run("remove", f"{url}/some", f"{url}/whole", "--dry-run").stdout.startswith("Would remove 6 entries, ")
    done = run("remove", f"{url}/some", f"{url}/missing", f"{url}/whole")
    assert (done.exit_code, done.stderr) == (1, f"no entry under {url}/missing\n")
    assert done.stdout.startswith("Removed 6 entries, ")
    assert store.usage().entries == 6
    assert run("remove", "--prefix", f"{url}/far/", "--kind", "block").stdout.startswith("Removed 1 entry, ")
    assert run("remove", "--prefix", f"{url}/far/").stdout.startswith("Removed 1 entry, ")
    assert run("remove", "--prefix", f"{url}/").stdout.startswith("Removed 3 entries, ")
    assert store.get(url.encode()) is not None
    assert difference(base_dir) == []


def test_remove_source_files_whose_names_are_not_utf8(store, base_dir, run):
    """Names that are no text are found as the shell passes them."""
    url = "file:///far/\udcff"
    for number in range(2):
        assert store.put_part(PartKey(url, "n", "i", 1 << 17, 1 << 16, number).pack(), bytes(1 << 16))
    assert run("ls").stdout.endswith("file:///far/\\udcff\n")
    assert run("remove", "--prefix", url, "--dry-run").stdout.startswith("Would remove 2 entries")
    assert run("remove", url).stdout.startswith("Removed 2 entries")
    assert difference(base_dir) == []


@pytest.mark.parametrize("arguments", [[], ["key", "--prefix", "k"], ["--prefix", ""]])
def test_remove_wrong_usage(filled, run, arguments):
    """Neither keys nor a prefix, both, or an empty prefix: nothing is removed and the exit code is 2."""
    assert run("remove", *arguments).exit_code == 2
    assert filled.usage().entries == 2


def test_clear(filled, base_dir, run):
    """All entries are removed, and the cache can be used at once."""
    assert run("clear", "--dry-run").stdout == "Would remove 2 entries, 16 KiB.\n"
    assert run("clear", "--yes").stdout == "Removed 2 entries, 16 KiB.\n"
    assert ondisk.usage_on_disk(base_dir) == Usage(0, 0, ALL_SHARDS)
    assert filled.put(b"a", b"value")
    assert difference(base_dir) == []


def test_clear_asks(filled, base_dir, start, terminal):
    """On a terminal the command asks first, and accepts no for an answer."""
    ours, theirs = terminal
    for answer, left in ((b"n\n", 2), (b"y\n", 0)):
        process = start("clear", base_dir, stdin=theirs, stdout=theirs, stderr=theirs)
        read_until(ours, rb"Remove 2 entries, 16 KiB from .*\?")
        os.write(ours, answer)
        assert process.wait(PATIENCE) == (1 if left else 0)
        assert filled.usage().entries == left


def test_clear_without_terminal(filled, base_dir, start):
    """Without a terminal and without --yes, nothing is removed and the exit code is 2."""
    process = start("clear", base_dir)
    assert b"--yes" in process.communicate()[1]
    assert process.returncode == 2
    assert filled.usage().entries == 2
    assert start("clear", base_dir, "--yes").wait(PATIENCE) == 0
    assert filled.usage().entries == 0
