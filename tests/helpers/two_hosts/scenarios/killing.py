"""
Processes that are killed, and hosts whose power is cut, while the other host goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from two_hosts.mounted import Mounted
from two_hosts.scenarios.bounding import difference


def kill_holder(mounted: Mounted, times: int = 3) -> dict[str, Any]:
    """
    A process of A that holds a key's mutex is killed, while a process of B waits for it.

    :return: ``late``: seconds from each kill until B had the mutex.
    """
    base_dir = mounted.new_cache()
    waiter = mounted.b.worker()
    waiter.do("look", base_dir=base_dir, key="key")
    late = []
    for _ in range(times):
        holder = mounted.a.worker()
        holder.do("hold", base_dir=base_dir, key="key")
        waiting = waiter.start("acquire", base_dir=base_dir, key="key")
        _let_wait(waiting)
        killed = time.monotonic()
        holder.kill()
        late.append(round(waiting.result() - killed, 4))
    waiter.kill()
    return {"late": late}


def kill_host(mounted: Mounted, lock_timeout: float, writes: bool = True) -> dict[str, Any]:
    """
    The power of A is cut while it holds a key's mutex, and a shard's lock. Then B uses the cache; and so does A, when
    it is there again.

    :param lock_timeout: of B, in seconds.
    :param writes: whether A also writes values all the time. MooseFS keeps the part of a file that somebody was writing
     who died from all others, for two minutes: and that may be the lock file's.
    :return: ``late``: seconds until B went on; ``used_late``: seconds until B, which then set a value in each of 200
     keys, was done; ``lost``: those of them that it did not get again; ``difference`` between ledger and disk after a
     visit to all shards by A when it is there again; ``failures`` that B counted.
    """
    base_dir = mounted.new_cache()
    arguments = {"base_dir": base_dir, "lock_timeout": lock_timeout}
    waiter = mounted.b.worker()
    waiter.do("look", key="key", **arguments)
    holders = [mounted.a.worker(), mounted.a.worker()]
    holders[0].do("hold", key="key", **arguments)
    for number, holder in enumerate(holders if writes else ()):
        holder.start("mix", name=f"{number}", seconds=1e6, **arguments)
    holders[1].do("hold_shard", key="key 000", **arguments)
    waiting = waiter.start("acquire", key="key", **arguments)
    _let_wait(waiting)
    killed = mounted.cut_power()
    late = round(waiting.result() - killed, 3)
    for number in range(200):
        waiter.do("set_one", key=f"key {number:03}", value="B's", **arguments)
    used_late = round(time.monotonic() - killed, 3)
    found = waiter.do("read_all", **arguments)
    mounted.restart()
    again = mounted.a.worker()
    again.do("prune", **arguments)
    differs = difference(again, {**arguments, "has_dead": True})
    for worker in (again, waiter):
        worker.kill()
    return {
        "late": late,
        "used_late": used_late,
        "lost": found["misses"],
        "difference": differs,
        "raised": found["raised"],
        "failures": found["failures"],
    }


def power_cuts(mounted: Mounted, times: int, seconds: float = 1.0) -> dict[str, Any]:
    """
    The power of A is cut in the middle of writing, again and again, while B reads all values.

    :param seconds: for which A writes each time.
    :return: ``wrong``: values that B read that nobody had set; ``hits``; ``misses``; ``raised``; ``failures`` of B.
    """
    base_dir = mounted.new_cache()
    arguments = {"base_dir": base_dir, "keys": 40, "lock_timeout": 5}
    reader = mounted.b.worker()
    found: Counter[str] = Counter()
    raised: list[str] = []
    for number in range(times):
        writers = [mounted.a.worker(), mounted.a.worker()]
        for writer in writers:
            # The first value stored counts the shards, which may take longer than all of this.
            writer.do("set_one", base_dir=base_dir, key="another key", value="any", lock_timeout=5)
        reading = reader.start("read_all", seconds=seconds + 1, **arguments)
        for which, writer in enumerate(writers):
            writer.start("mix", name=f"{number}.{which}", seconds=1e6, **arguments)
        time.sleep(seconds)
        mounted.cut_power()
        for result in (reading.result(), reader.do("read_all", **arguments)):
            found.update({name: result[name] for name in ("hits", "misses", "wrong")})
            raised += result["raised"]
            failures = result["failures"]
        mounted.restart()
    reader.kill()
    return {**found, "raised": raised, "failures": failures}


def new_cache(mounted: Mounted) -> dict[str, Any]:
    """``base_dir``: the path of a cache of its own."""
    return {"base_dir": mounted.new_cache()}


def read(mounted: Mounted, base_dir: str, keys: int, seconds: float) -> dict[str, Any]:
    """A process of B reads all values, again and again for a time. See :func:`.jobs.mixing.read_all`."""
    reader = mounted.b.worker()
    found: dict[str, Any] = reader.do("read_all", base_dir=base_dir, keys=keys, seconds=seconds)
    reader.end()
    return found


def _let_wait(waiting: Any) -> None:
    """Give a process time to begin to wait. If this is too short, it waits for less than it could have."""
    time.sleep(0.3)
    if waiting.done():
        msg = f"it did not wait: {waiting.result()}"
        raise RuntimeError(msg)
