"""
Operations killed at each of their calls: the state that a process leaves when it ends at any instant.
"""

from __future__ import annotations

import cases
import crash_cases
import pytest


@pytest.mark.parametrize("name", crash_cases.OPERATIONS)
def test_kill_at_each_call(scratch, record_property, name):
    """
    Wherever an operation is killed: every key reads as before, as after or not at all; every lock is free; the bound
    holds and the ledger is not too low, also if nobody prunes; after one prune the ledger equals the disk and nothing
    is left over. A file that is being moved is lost at most between its rename and that of its entry.
    """
    found = cases.run_cases(crash_cases.__file__, name, scratch)
    calls = found["calls"]
    record_property("kills", found["kills"])
    print(f"{name}: {len(calls)} calls, {found['kills']} kills, {len(found['lost'])} moved files lost")
    assert not found["wrong"], cases.summary(found["wrong"])
    # On a slow machine the operation that counts the calls may look at its directory once more than those after it.
    assert found["kills"] >= (len(calls) * 3 // 4 if len(calls) <= crash_cases.MANY else 7)
    renames = [number for number, call in enumerate(calls, 1) if call.startswith("rename")]
    moved, published = renames if crash_cases.OPERATIONS[name].moves else (0, 0)
    assert all(moved < number <= published for number in found["lost"])
