"""
What is judged of a history of calls: the tests of two hosts rest on it.
"""

from __future__ import annotations

import pytest
from two_hosts.history import judge

NONE = {"gets": 1, "wrong": 0, "stale": 0, "stale_s": 0.0, "forgotten": 0, "forgotten_s": 0.0}
OLD, NEW = ("set", 7, 1.0, 2.0, "old"), ("set", 7, 3.0, 4.0, "new")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([OLD, NEW, ("get", 7, 5.0, 6.0, "new")], {}, id="the newest"),
        pytest.param([OLD, NEW, ("get", 7, 3.5, 6.0, "old")], {}, id="the one before, while the newest is being set"),
        pytest.param([OLD, NEW, ("get", 7, 5.0, 6.0, "old")], {"stale": 1, "stale_s": 1.0}, id="the one before"),
        pytest.param(
            [OLD, ("delete", 7, 3.0, 4.0, None), ("get", 7, 5.0, 6.0, "old")],
            {"stale": 1, "stale_s": 1.0},
            id="one that was deleted",
        ),
        pytest.param([("get", 7, 0.0, 0.5, None), OLD], {}, id="a miss before the first"),
        pytest.param([OLD, ("get", 7, 5.0, 6.0, None)], {"forgotten": 1, "forgotten_s": 3.0}, id="a miss"),
        pytest.param([OLD, ("delete", 7, 3.0, 4.0, None), ("get", 7, 5.0, 6.0, None)], {}, id="a miss after a delete"),
        pytest.param(
            [OLD, ("delete", 7, 1.5, 4.0, None), ("get", 7, 5.0, 6.0, None)], {}, id="deleted while it is set"
        ),
        pytest.param(
            [OLD, ("delete", 7, 5.5, 8.0, None), ("get", 7, 5.0, 6.0, None)], {}, id="deleted while it is got"
        ),
        pytest.param(
            [("delete", 7, 0.0, 0.5, None), OLD, ("get", 7, 5.0, 6.0, None)],
            {"forgotten": 1, "forgotten_s": 3.0},
            id="a miss after a delete before",
        ),
        pytest.param([OLD, ("tried", 7, 3.0, 4.0, "new"), ("get", 7, 5.0, 6.0, "old")], {}, id="a set that failed"),
        pytest.param(
            [OLD, ("tried", 7, 3.0, 4.0, "new"), ("get", 7, 5.0, 6.0, "new")], {}, id="one that was kept though"
        ),
        pytest.param(
            [OLD, ("tried", 7, 3.0, 4.0, "new"), ("get", 7, 5.0, 6.0, None)], {}, id="removed as a set failed"
        ),
        pytest.param([OLD, ("get", 7, 5.0, 6.0, "new")], {"wrong": 1}, id="one that nobody set"),
        pytest.param([("get", 7, 0.0, 0.5, "old"), OLD], {"wrong": 1}, id="one that is set later"),
        pytest.param([("set", 8, 1.0, 2.0, "old"), ("get", 7, 5.0, 6.0, "old")], {"wrong": 1}, id="of another key"),
    ],
)
def test_judge(events, expected):
    """
    A value is old, or a miss forgets one, if what should be seen had returned before the read began, and not otherwise.
    """
    assert judge(events) == {**NONE, **expected}
