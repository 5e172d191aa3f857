"""
How long things take, and how late the other host sees them.
"""

from __future__ import annotations

from typing import Any

from two_hosts.mounted import Mounted


def invalidate(mounted: Mounted, times: int = 10, seconds: float = 60) -> dict[str, Any]:
    """
    A invalidates the region, and B reads a value until it is a miss.

    :param seconds: for which B tries at most.
    :return: ``late``: seconds from each invalidation until B missed; None: it never did, and is not asked again.
    """
    base_dir = mounted.new_cache()
    first, second = mounted.a.worker(), mounted.b.worker()
    late: list[float | None] = []
    for number in range(times):
        second.do("set_one", base_dir=base_dir, key="key", value=f"value {number}")
        second.do("look", base_dir=base_dir, key="key")
        waiting = second.start("wait_until_missed", base_dir=base_dir, key="key", seconds=seconds)
        done = first.do("invalidate", base_dir=base_dir)
        missed = waiting.result()
        late.append(None if missed is None else round(max(0.0, missed - done), 4))
        if missed is None:
            break
    for worker in (first, second):
        worker.kill()
    return {"late": late}


def latencies(mounted: Mounted, calls: int) -> dict[str, Any]:
    """
    Calls of one process on A, beside those of bare files, while nobody else uses the cache.

    :return: for ``hit``, ``miss`` and ``set``: medians in microseconds, of a region and of a bare file.
    """
    worker = mounted.a.worker()
    found: dict[str, Any] = worker.do("latencies", base_dir=mounted.new_cache(), calls=calls)
    worker.kill()
    return found
