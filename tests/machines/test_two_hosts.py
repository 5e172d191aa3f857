"""
Two hosts, with two processes of two threads each, on one cache on a filesystem that both have mounted.

Each test is short; benchmarks/machines.py does the same for longer, and measures times.
"""

from __future__ import annotations

from two_hosts.nfs import LEASE

#: Seconds for which a host may get what was there before, since it does not ask the server each time.
OLD = {"moosefs": 0.0, "nfs": 60.0}
LOCK_TIMEOUT = 3
#: Seconds beyond what must happen at once, on a machine that does other things too.
BUSY = 30


def test_mix(filesystem, kind):
    """
    With everything at once nothing is wrong, nothing raises, and nothing is older than the filesystem says.
    """
    found = filesystem.run("mix", seconds=8)
    print(found)
    assert found["gets"] > 0
    assert (found["wrong"], found["raised"]) == (0, [])
    assert found["stale_s"] <= OLD[kind]
    assert found["forgotten_s"] <= OLD[kind]


def test_create(filesystem):
    """
    A value that all want at once is created once, though all hosts have just seen that there is none.
    """
    found = filesystem.run("create", rounds=5)
    assert found == {"creations": [1] * 5, "wrong": 0, "raised": []}


def test_bound(filesystem):
    """
    While both hosts write, the files take no more than a hundredth above the bound at any instant, no shard is counted
    again, whoever opens the cache next, and afterwards the ledger equals the disk.
    """
    found = filesystem.run("bound", seconds=8, size=2 << 20)
    print(found)
    assert min(found["sums"], found["stored"]) > 0
    assert found["over"] <= 0.01
    assert (found["incomplete"], found["counted"], found["reopened"]) == (0, 0, [0] * 5)
    assert found["difference"] == []
    assert found["raised"] == []


def test_kill_holder(filesystem):
    """
    When the holder of a mutex is killed on one host, a waiter on the other one goes on before any lease has ended.
    """
    found = filesystem.run("kill_holder", times=2)
    assert max(found["late"]) < LEASE - 1


def test_kill_host(filesystem):
    """
    When the power of a host is cut that holds locks, a waiter on the other one goes on when its patience has ended, if
    not before; all that it then sets is kept; and when the host is back, the ledger equals the disk after a visit.
    """
    found = filesystem.run("kill_host", lock_timeout=LOCK_TIMEOUT, writes=False)
    print(found)
    assert found["late"] < LOCK_TIMEOUT + BUSY
    assert (found["lost"], found["raised"], found["difference"]) == (0, [], [])


def test_power_cuts(filesystem):
    """
    Whenever the power of a writing host is cut, the other one reads only values that were set.
    """
    found = filesystem.run("power_cuts", times=2)
    assert found["hits"] > 0
    assert (found["wrong"], found["raised"]) == (0, [])


def test_invalidate(filesystem):
    """
    An invalidation on one host makes values misses on the other one.
    """
    found = filesystem.run("invalidate", times=5, seconds=BUSY)
    assert None not in found["late"]
