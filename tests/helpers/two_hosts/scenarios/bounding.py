"""
More values than fit, from both hosts.
"""

from __future__ import annotations

import time
from typing import Any

from two_hosts.mounted import Mounted

#: Seconds within which a host sees what the other one has done to files.
_SEEN = 10


def bound(mounted: Mounted, seconds: float, size: int = 8 << 20, threads: int = 2) -> dict[str, Any]:
    """
    Both hosts write, while the server is asked how much there is.

    :param size: the bound in bytes.
    :return: ``most``: the most bytes that the files had at one instant, by ``sums`` sums on the server; ``over``: that
     part of the bound by which this is more; ``ledger``: the most that the ledger said; ``incomplete``: how many of the
     ``looks`` at the ledger found a shard that was not counted; ``counted``: how often a process counted shards anew;
     ``reopened``: how many shards were not counted when processes were started on both hosts in turn, and when another
     one was started after all had ended in order; ``difference`` between the ledger and the disk, after a visit to all
     shards; ``stored``; ``raised``; ``failures``.
    """
    base_dir = mounted.new_cache()
    arguments = {"base_dir": base_dir, "cache_size": size}
    *workers, watcher = [*mounted.workers(), mounted.b.worker()]
    for number, worker in enumerate(workers):
        worker.do("fill", name=f"warm {number}", seconds=0.2, **arguments)
    watched = watcher.start("watch_ledger", seconds=seconds, **arguments)
    jobs = [
        worker.start("fill", name=f"{number}", seconds=seconds, threads=threads, **arguments)
        for number, worker in enumerate(workers)
    ]
    most = sums = 0
    while not all(job.done() for job in jobs):
        most, sums = max(most, mounted.used(base_dir)), sums + 1
    results = [job.result() for job in jobs]
    ledger = watched.result()
    later = [host.worker() for host in (mounted.a, mounted.b, mounted.a, mounted.b)]
    reopened = [worker.do("open_cache", **arguments) for worker in later]
    workers[0].do("prune", **arguments)
    found = {
        "most": most,
        "sums": sums,
        "over": max(0.0, most / size - 1),
        "ledger": ledger["most"],
        "looks": ledger["looks"],
        "incomplete": ledger["incomplete"],
        "reopened": reopened,
        "counted": sum(result["counted"] for result in results),
        "difference": difference(watcher, arguments),
        "stored": sum(result["stored"] for result in results),
        "raised": [text for result in results for text in result["raised"]],
        "failures": [result["failures"] for result in results],
    }
    for worker in [*workers, *later, watcher]:
        worker.end()
    last = mounted.a.worker()
    reopened.append(last.do("open_cache", **arguments))
    last.end()
    return found


def difference(worker: Any, arguments: dict[str, Any]) -> list[str]:
    """How ledger and disk differ, once the host has seen what the other one did last."""
    deadline = time.monotonic() + _SEEN
    while (found := worker.do("compare_ledger", **arguments)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return list(found)
