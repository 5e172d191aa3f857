"""
Values in memory while another process is killed at each call of a change.
"""

from __future__ import annotations

import os
import time

import injection
import pytest
from forked import in_child

from dogpile_filesystem.store.store import Store

CHANGES = {
    "put": lambda store: store.put(b"k", b"new"),
    "put a large value": lambda store: store.put(b"k", b"new" * 50_000),
    "remove": lambda store: store.remove(b"k"),
    "clear": lambda store: store.clear(),
}


def calls_of(change, base_dir):
    """The number of calls that a change makes."""

    def count():
        Store(base_dir).put(b"k", b"old")
        with injection.Faults() as faults:
            change(Store(base_dir))
        return len(faults.calls)

    return in_child(count)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.leaves_damage("a killed process leaves a ledger that is too high")
def test_another_process_is_killed(base_dir, monkeypatch, name):
    """
    Wherever a process is killed that changes a value, readers that keep it in memory get what lies on the disk: at once
    if it was replaced, and within a second if it was removed.
    """
    change, passed, now = CHANGES[name], 0.0, time.monotonic()
    number = calls_of(change, base_dir)
    assert number
    store = Store(base_dir, memory_size=1 << 20)
    monkeypatch.setattr(time, "monotonic", lambda: now + passed)

    def run(at):
        with injection.Faults(injection.kill, at):
            change(Store(base_dir))

    outcomes = set()
    # `clear` visits all shards when everything is done.
    for at in range(1, min(number, 80) + 1):
        assert store.put(b"k", b"old")
        passed += 0.1
        assert [store.get(b"k"), store.get(b"k")] == [b"old"] * 2
        in_child(lambda at=at: run(at))
        if not name.startswith("put"):
            passed += 1
        found = store.get(b"k")
        assert found == in_child(lambda: Store(base_dir).get(b"k")), f"killed at call {at}"
        outcomes.add(found == b"old")
    assert outcomes == {True, False}
    assert os.path.exists(base_dir)
