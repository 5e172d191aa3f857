"""
What a worker can be told to do. All arguments and results can be written as JSON.

A job keeps what it made, regions and mutexes, until the process ends.
"""

from __future__ import annotations

from two_hosts.jobs.creating import acquire, hold, hold_shard, look, race
from two_hosts.jobs.filling import compare_ledger, fill, open_cache, prune, watch_ledger
from two_hosts.jobs.mixing import mix, read_all
from two_hosts.jobs.timing import invalidate, latencies, set_one, wait_until_missed

__all__ = [
    "acquire",
    "compare_ledger",
    "fill",
    "hold",
    "hold_shard",
    "invalidate",
    "latencies",
    "look",
    "mix",
    "open_cache",
    "prune",
    "race",
    "read_all",
    "set_one",
    "wait_until_missed",
    "watch_ledger",
]
