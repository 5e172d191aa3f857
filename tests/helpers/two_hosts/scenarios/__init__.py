"""
What two hosts do with one cache, and what comes of it: functions of a mounted filesystem, as short or long as they are
told to be. Their results can be written as JSON. Nothing here asserts anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from two_hosts.scenarios import bounding, creating, killing, mixing, timing

#: By their names.
SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    "mix": mixing.mix,
    "create": creating.create,
    "bound": bounding.bound,
    "kill_holder": killing.kill_holder,
    "kill_host": killing.kill_host,
    "power_cuts": killing.power_cuts,
    "new_cache": killing.new_cache,
    "read": killing.read,
    "invalidate": timing.invalidate,
    "latencies": timing.latencies,
}
