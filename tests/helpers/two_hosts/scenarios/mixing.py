"""
Everything at once, from all processes of both hosts.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from two_hosts.history import judge
from two_hosts.mounted import Mounted


def mix(mounted: Mounted, seconds: float, threads: int = 2) -> dict[str, Any]:
    """
    Get, set, get_or_create and delete, over 200 keys.

    :return: what :func:`.history.judge` finds; ``raised``: the tracebacks; ``failures``: what the library counted.
    """
    base_dir = mounted.new_cache()
    workers = mounted.workers()
    jobs = [
        worker.start("mix", base_dir=base_dir, name=f"{number}", seconds=seconds, threads=threads)
        for number, worker in enumerate(workers)
    ]
    results = [job.result() for job in jobs]
    for worker in workers:
        worker.kill()
    failures: Counter[str] = Counter()
    for result in results:
        failures.update(result["failures"])
    return {
        **judge(event for result in results for event in result["events"]),
        "raised": [text for result in results for text in result["raised"]],
        "failures": dict(failures),
    }
