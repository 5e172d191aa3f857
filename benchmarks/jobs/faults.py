"""
The same faults for several caches, and what their application then gets: see ``../faults.py``.

From the bottom up: ``caches`` opens, fills and forks; ``application`` uses a cache and counts; ``harmed``, ``killed``
and ``filesystems`` cause the faults.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from jobs import filesystems, harmed, killed
from jobs.caches import SYSTEMS, values_of

_SMALL, _LARGE, _BOTH = values_of(20, 0), values_of(0, 4), values_of(20, 4)
#: The functions that cause the faults, given a directory and a system, by the names in the results.
FAULTS: dict[str, Callable[[str, str], Counter[str]]] = {
    "flip-small": functools.partial(harmed.harm_files, harmed.flip, _SMALL, 1000),
    "flip-large": functools.partial(harmed.harm_files, harmed.flip, _LARGE, 200),
    "cut-small": functools.partial(harmed.harm_files, harmed.cut, _SMALL, 300),
    "cut-large": functools.partial(harmed.harm_files, harmed.cut, _LARGE, 100),
    "garbage": functools.partial(harmed.harm_files, harmed.fill_with_garbage, _BOTH, 0),
    "mistaken": functools.partial(harmed.harm_files, harmed.mistake_for_next, _BOTH, 0),
    "deleted": filesystems.delete_directory,
    "full": filesystems.fill_disk,
    "read-only": filesystems.read_only,
    "kill": killed.kill,
}


def fault(directory: str, fault: str, system: str) -> dict[str, Any]:
    """
    Cause one fault in one system.

    :returns: counts by name; or ``skipped``: the reason why there are none.
    """
    logging.disable()
    warnings.simplefilter("ignore")
    warm_up = f"{directory}/warm-up"
    os.mkdir(warm_up)
    # Do before the forks what is imported and computed once.
    cache = SYSTEMS[system](warm_up)
    cache.set("key", b"value")
    cache.close()
    try:
        return dict(FAULTS[fault](directory, system))
    except filesystems.SkippedError as reason:
        return {"skipped": str(reason)}
