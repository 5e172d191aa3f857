"""
Times of change, in all the forms in which sources tell them.
"""

from __future__ import annotations

import datetime
import time

import pytest

from dogpile_filesystem.sources.times import DAY, MINUTE, SECOND, TICK, told

UTC = datetime.timezone.utc
#: Thursday, 26 November 2026, 09:32:00 UTC.
CHANGED = 1_795_685_520
HALF_A_DAY = 12 * 3600


def tell(value, now=CHANGED):
    return told(value, lambda: now)


@pytest.mark.parametrize(
    "value",
    [
        CHANGED,
        float(CHANGED),
        "1795685520",
        "1795685520.000",
        datetime.datetime(2026, 11, 26, 9, 32, tzinfo=UTC),
        datetime.datetime(2026, 11, 26, 11, 32, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        "20261126093200",
        "20261126093200.000",
        "2026-11-26T09:32:00Z",
        "2026-11-26T09:32:00.000Z",
        "2026-11-26 09:32:00",
        "2026-11-26T11:32:00+02:00",
        "2026-11-26T04:02:00-0530",
        "Thu, 26 Nov 2026 09:32:00 GMT",
        "Thu, 26 Nov 2026 09:32:00",
        "Thursday, 26-Nov-26 09:32:00 GMT",
    ],
    ids=repr,
)
def test_whole_second(value):
    """A time in whole seconds gives one text, its seconds, and their resolution, in whichever form it is told."""
    assert tell(value) == (f"{CHANGED}.000000", CHANGED, SECOND)


@pytest.mark.parametrize(
    "value",
    [
        CHANGED + 0.123456,
        "1795685520.123456",
        datetime.datetime(2026, 11, 26, 9, 32, 0, 123456, tzinfo=UTC),
        "20261126093200.123456",
        "2026-11-26T09:32:00.123456Z",
        "2026-11-26T09:32:00,123456+00:00",
    ],
    ids=repr,
)
def test_fraction(value):
    """A time with a fraction gives one text, and the resolution of a kernel's clock, in whichever form it is told."""
    assert tell(value) == (f"{CHANGED}.123456", CHANGED + 0.123456, TICK)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_no_zone(monkeypatch, zone):
    """A datetime without a zone has a text that no zone changes, and seconds that are not earlier in either reading."""
    value = datetime.datetime(2026, 11, 26, 9, 32)  # noqa: DTZ001 - that it has no zone is the case
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        found = tell(value)
        local = value.timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == (f"{CHANGED}.000000", max(CHANGED, local), SECOND)


@pytest.mark.parametrize(
    ("text", "now", "seconds", "resolution"),
    [
        ("Nov 26 09:32", CHANGED, CHANGED, MINUTE),
        ("Nov  6 09:32", CHANGED, CHANGED - 20 * DAY, MINUTE),
        # A server ahead of UTC by 14 hours tells of a file that was written just now.
        ("Nov 26 23:32", CHANGED, CHANGED + 14 * 3600, MINUTE),
        ("Nov 26 23:33", CHANGED, CHANGED + 14 * 3600 + 60 - 365 * DAY, MINUTE),
        ("Nov 26 09:32", CHANGED + 60 * DAY, CHANGED, MINUTE),
        # 29 February 2028.
        ("Feb 29 00:00", 1_835_395_200 + 3 * 365 * DAY, 1_835_395_200, MINUTE),
        ("Nov 26 2026", CHANGED + 300 * DAY, CHANGED - (9 * 60 + 32) * 60, DAY),
    ],
)
def test_listing(text, now, seconds, resolution):
    """A time from ``ls -l`` is its own text, and the latest moment that it can mean in any zone before now."""
    assert tell(text, now) == (text, seconds + HALF_A_DAY, resolution)


@pytest.mark.parametrize(
    "value",
    [
        *("yesterday", "20261326093200", "2026-02-30T00:00:00Z", "Feb 30 09:32", "Feb 30 2026", "Foo 26 09:32", "a, b"),
        *(float("nan"), float("inf")),
    ],
    ids=str,
)
def test_no_such_time(value):
    """A time that is none, or of an unknown form, still tells versions apart, and is never taken for past."""
    assert tell(value) == (str(value), None, SECOND)
