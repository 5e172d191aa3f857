"""
The command ``stats``: what it shows of a cache, once and repeatedly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time

import pytest
from commands import PATIENCE, read_until
from dogpile.cache import make_region

from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.lockfile.counts import SourceCounts
from dogpile_filesystem.lockfile.ledger import Ledger
from dogpile_filesystem.store.store import Store


def test_stats(base_dir, run):
    """The statistics of an application are shown, with its bound and its expiration."""
    region = make_region().configure(
        "paylogic.filesystem",
        arguments={"base_dir": base_dir, "cache_size": 100 * BLOCK, "max_entries": 50, "expiration_time": 7200},
    )
    region.set("a", 1)
    assert [region.get("a"), region.get("a"), region.get("a")] == [1, 1, 1]
    region.get("b")
    region.backend.store.flush()
    done = run("stats")
    assert done.exit_code == 0
    rows = {
        line.split("  ")[0]: line.split()[-len(line.split("  ", 1)[-1].split()) :] for line in done.stdout.splitlines()
    }
    assert rows["Entries"] == ["1", "of", "50", "at", "most"]
    assert rows["Size"] == ["4", "KiB", "1%", "of", "400", "KiB"]
    assert rows["Expiration of values"] == ["2", "h", "after", "creation"]
    assert rows["Hits"] == ["3", "75.0%", "of", "the", "reads"]
    assert rows["Misses"] == ["1", "0", "expired"]
    assert rows["Stores"] == ["1", "4", "KiB"]
    told = json.loads(run("stats", "--json").stdout)
    assert {name: told[name] for name in ("entries", "size", "is_counted", "cache_size", "max_entries")} == {
        "entries": 1,
        "size": BLOCK,
        "is_counted": True,
        "cache_size": 100 * BLOCK,
        "max_entries": 50,
    }
    assert told["expiration_time"] == {"value": 7200, "file": None}
    assert told["total"]["hits"] == 3
    assert told["total"]["hit_ratio"] == 0.75
    assert told["total"]["failures"] == {}
    assert told["since"] <= told["time"] <= time.time()


def test_stats_of_memory(base_dir, run):
    """Hits in the memory of processes are shown where there were any."""
    store = Store(base_dir, memory_size=1 << 20)
    store.put(b"a", b"value")
    store.get(b"a")
    store.get(b"a")
    store.flush()
    assert "Memory hits" not in run("stats").stdout
    store.get(b"a")
    store.get(b"a")
    store.flush()
    (row,) = (line for line in run("stats").stdout.splitlines() if line.startswith("Memory hits"))
    assert row.split()[2] == "2"
    total = json.loads(run("stats", "--json").stdout)["total"]
    assert (total["hits"], total["memory_hits"]) == (4, 2)


def test_stats_json_has_all_counts(store, run):
    """JSON has the names of all counts, even before anything has been counted."""
    told = json.loads(run("stats", "--json").stdout)
    names = set(type(store.stats().total).__dataclass_fields__)
    assert set(told["total"]) == names | {"hit_ratio"}
    assert set(told["total"]["source"]) == set(SourceCounts.__dataclass_fields__) - {"fills_running"}
    assert set(told["total"]["source"].values()) == {0}
    assert told["since"] is None
    assert told["is_counted"]


def test_source(store, run):
    """What was done with files of sources has a section of its own, with ratios, sizes and the mean of the requests."""
    counter = store.source_counter
    counter.open_hits, counter.open_partials, counter.open_misses, counter.open_outdated = 1200, 3, 2, 1
    counter.block_hits, counter.block_misses, counter.block_waits = 970, 20, 10
    counter.cache_bytes, counter.source_bytes, counter.shared_bytes = 970 << 20, 20 << 20, 5 << 20
    counter.requests, counter.request_ns = 8, 2_000_000_000
    counter.fills_started, counter.fills_finished, counter.fills_given_up = 5, 3, 1
    counter.stale_served = 4
    store.flush()
    done = run("stats")
    _, _, section = done.stdout.partition("\nSource\n")
    rows = dict(re.findall(r"^(\S.*?)  +(.*)$", section, re.MULTILINE))
    assert {label: re.split("  +", rest) for label, rest in rows.items()} == {
        "Opens": ["1,205", "1,200 hit, 3 partial, 2 missed; 1 outdated, 4 served stale"],
        "Block hits": ["970", "98.0% of the blocks read"],
        "Block misses": ["20", "and 10 waits for another reader"],
        "From the cache": ["970.0 MiB"],
        "From the source": ["20.0 MiB", "5.0 MiB shared by several readers"],
        "Requests": ["8", "0.250 s on average"],
        "Fills": ["5", "3 finished, 1 given up"],
    }
    told = json.loads(run("stats", "--json").stdout)["total"]["source"]
    assert (told["open_hits"], told["source_bytes"], told["request_seconds"]) == (1200, 20 << 20, 2.0)


def test_source_in_part(store, run):
    """One count of sources is enough for the section; without any there is none."""
    assert "Source" not in run("stats").stdout
    store.source_counter.stale_served += 1
    store.flush()
    assert re.search(r"^Source\nOpens +0 ", run("stats").stdout, re.MULTILINE)


def test_stats_of_a_lock_file_alone(store, base_dir, run):
    """The figures come from the lock file: no entry is looked at."""
    with Ledger.open(f"{base_dir}/lock").shard(0):
        Ledger.open(f"{base_dir}/lock").add(0, 10**9 * BLOCK, 1_000_000)
    assert json.loads(run("stats", "--json").stdout)["entries"] == 1_000_000


@pytest.mark.parametrize("command", ["stats", "check"])
def test_lock_file_missing(filled, base_dir, run, command):
    """If the lock file is missing, one line says so and how to make it again; the exit code is 1."""
    os.unlink(f"{base_dir}/lock")
    done = run(command)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert f"check --repair {base_dir}" in line
    assert run("check", "--repair").exit_code == 0
    assert run(command).exit_code == 0


def test_watch(store, base_dir, start, terminal):
    """
    A terminal shows what is done per second; the cache may be deleted and come back; Ctrl-C ends the command with
    0.
    """
    ours, theirs = terminal
    process = start("stats", base_dir, "--watch", "--interval", 0.1, stdin=theirs, stdout=theirs)
    read_until(ours, rb"Entries +0")

    def miss():
        store.get(b"missing")
        store.flush()

    read_until(ours, rb"Misses +[1-9][0-9,]* +[0-9,.]*[1-9][0-9,.]*/s", meanwhile=miss)
    shutil.rmtree(base_dir)
    read_until(ours, rb"no cache now")
    assert Store(base_dir).put(b"a", b"value")
    read_until(ours, rb"Entries +1")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == b""


def test_watch_source(store, base_dir, start, terminal):
    """A terminal shows what is done with files of sources per second, and how many bytes."""
    ours, theirs = terminal
    start("stats", base_dir, "--watch", "--interval", 0.1, stdin=theirs, stdout=theirs)
    read_until(ours, rb"Entries +0")

    def read():
        store.source_counter.block_hits += 1
        store.source_counter.cache_bytes += 1 << 30
        store.flush()

    rates = rb"Block hits +[0-9,]+ +[0-9,.]*[1-9][0-9,.]*/s[^\0]*From the cache +[0-9.]+ [MGT]iB +[0-9.]+ [MGT]iB/s"
    read_until(ours, rates, meanwhile=read)


def test_watch_json(store, base_dir, start):
    """A program gets a line for each reading, and may end the command with SIGINT."""
    process = start("stats", base_dir, "--watch", "--json", "--interval", 0.1)
    assert json.loads(process.stdout.readline())["entries"] == 0
    assert store.put(b"a", b"value")
    while json.loads(process.stdout.readline())["entries"] != 1:
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == b""


def test_watch_without_terminal(store, run):
    """To watch a table without a terminal is wrong usage."""
    done = run("stats", "--watch")
    assert done.exit_code == 2
    assert "--json" in done.stderr
