"""
One value that all want at once.
"""

from __future__ import annotations

import time
from typing import Any

from two_hosts.mounted import Mounted

#: Seconds until all processes have surely been told to begin.
_AHEAD = 0.3


def create(mounted: Mounted, rounds: int, takes: float = 0.2, threads: int = 2) -> dict[str, Any]:
    """
    In each round, all processes ask for a key that none of them has found a moment before.

    :param takes: seconds for which a value is created.
    :return: ``creations`` of each round; ``wrong``: values got that are not those of the key; ``raised``.
    """
    base_dir = mounted.new_cache()
    workers = mounted.workers()
    found: dict[str, Any] = {"creations": [], "wrong": 0, "raised": []}
    for number in range(rounds):
        key = f"key {number}"
        for worker in workers:
            worker.do("look", base_dir=base_dir, key=key)
        at = time.monotonic() + _AHEAD
        jobs = [
            worker.start("race", base_dir=base_dir, key=key, at=at, takes=takes, threads=threads) for worker in workers
        ]
        results = [job.result() for job in jobs]
        found["creations"].append(sum(len(result["created"]) for result in results))
        found["wrong"] += sum(value != f"value of {key}" for result in results for value in result["values"])
        found["raised"] += [text for result in results for text in result["raised"]]
    for worker in workers:
        worker.kill()
    return found
