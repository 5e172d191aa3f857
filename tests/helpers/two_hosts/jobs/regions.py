"""
The region of a process on a cache, and threads that do the same.
"""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Callable
from typing import Any

from dogpile.cache import make_region
from dogpile.cache.region import CacheRegion

from dogpile_filesystem import FilesystemInvalidation


@functools.cache
def region_of(base_dir: str, *, is_shared: bool = True, **arguments: Any) -> CacheRegion:
    """
    The region of this process on a directory; with the same arguments, always the same.

    :param is_shared: whether invalidations of other processes count.
    """
    return make_region().configure(
        "paylogic.filesystem",
        arguments={"base_dir": base_dir, **arguments},
        region_invalidator=FilesystemInvalidation(base_dir) if is_shared else None,
    )


def failures_of(region: CacheRegion) -> dict[str, int]:
    """What the region's backend has counted as failures in this process."""
    return dict(region.backend.store.failures.counts)


def in_threads(count: int, act: Callable[[int], Any]) -> tuple[list[Any], list[str]]:
    """
    Call ``act(number)`` in this many threads at once.

    :return: what they returned, and the tracebacks of those that raised.
    """
    returned: list[Any] = []
    raised: list[str] = []

    def run(number: int) -> None:
        try:
            returned.append(act(number))
        except BaseException:
            raised.append(traceback.format_exc())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return returned, raised
