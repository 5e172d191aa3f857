"""
Times of change, in the many forms in which sources tell them. Pure: no I/O here.

A time has two uses. Its text is compared, to tell one version from another. Its seconds tell whether it lies far enough
back that no later change can get the same text. So the text must never vary for one version, and the seconds must never
be earlier than the change: where a source leaves the zone open, the latest moment that it can mean is assumed.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

#: Two changes within this many seconds may get one time. A kernel takes the time of a file from a clock that it moves
#: 100 to 1,000 times a second; twice the longest step.
TICK = 0.02
SECOND, MINUTE, DAY = 1.0, 60.0, 86400.0
#: No place on earth is further behind UTC, or further ahead of it.
_BEHIND, _AHEAD = 12 * 3600, 14 * 3600

_UTC = datetime.timezone.utc
_MLSD = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\.\d+)?")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)([.,]\d+)?\s*(Z|[+-]\d\d:?\d\d)?", re.IGNORECASE)
_LISTED = re.compile(r"([A-Z][a-z]{2}) +(\d{1,2}) +(?:(\d{4})|(\d{1,2}):(\d\d))")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Told(NamedTuple):
    """
    A time of change as a source tells it.

    :ivar text: equal for equal times, in whichever form they are told.
    :ivar seconds: since the epoch; never earlier than the change. None: the form is not known.
    :ivar resolution: changes within this many seconds may get the same text.
    """

    text: str
    seconds: float | None
    resolution: float


def told(value: object, clock: Callable[[], float]) -> Told:
    """
    A time of change.

    :param value: a ``datetime``, seconds since the epoch, or text: these seconds, ISO 8601, the date of an HTTP header,
     what MLSD of FTP answers (``20261126093200.123``), or what ``ls -l`` writes (``Nov 26 09:32``, ``Nov 26 2025``).
    :param clock: tells the year of a time that is without one.
    """
    try:
        return _read(value, clock)
    except (ValueError, OverflowError, OSError):
        # There is no such time. It still tells one version from another.
        return Told(str(value), None, SECOND)


def _read(value: object, clock: Callable[[], float]) -> Told:
    if isinstance(value, datetime.datetime):
        return _of_datetime(value)
    if isinstance(value, (int, float)):
        return _exact(float(value))
    text = str(value).strip()
    for read in (_of_number, _of_mlsd, _of_iso, _of_http_date):
        seconds = read(text)
        if seconds is not None:
            return _exact(seconds)
    return _of_listing(text, clock) or Told(text, None, SECOND)


def _exact(seconds: float) -> Told:
    # Microseconds are what all forms of one time have in common. Infinity and NaN have no remainder.
    return Told(f"{seconds:.6f}", seconds, TICK if seconds - int(seconds) else SECOND)


def _of_datetime(value: datetime.datetime) -> Told:
    if value.tzinfo is not None:
        return _exact(value.timestamp())
    # Sources mean UTC by this, or this machine's zone. The text must not depend on the zone of the process.
    found = _exact(value.replace(tzinfo=_UTC).timestamp())
    return found._replace(seconds=max(value.timestamp(), value.replace(tzinfo=_UTC).timestamp()))


def _of_number(text: str) -> float | None:
    # More digits are a date without separators.
    return float(text) if re.fullmatch(r"\d{1,11}(\.\d+)?", text) else None


def _of_mlsd(text: str) -> float | None:
    match = _MLSD.fullmatch(text)
    return _moment(match.groups()) if match else None


def _of_iso(text: str) -> float | None:
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    seconds, zone = _moment(match.groups()[:7]), match[8]
    if zone is None or zone in "Zz":
        return seconds
    offset = 3600 * int(zone[1:3]) + 60 * int(zone[-2:])
    return seconds - offset if zone[0] == "+" else seconds + offset


def _of_http_date(text: str) -> float | None:
    parsed = email.utils.parsedate_tz(text) if "," in text else None
    # A date without a zone is UTC, as HTTP has it.
    return email.utils.mktime_tz((*parsed[:9], parsed[9] or 0)) if parsed else None


def _moment(groups: Sequence[str | None]) -> float:
    """
    The seconds since the epoch of year, month, day, hour, minute, second and fraction.

    :raises ValueError: there is no such time.
    """
    year, month, day, hour, minute, second = (int(number or 0) for number in groups[:6])
    fraction = groups[6]
    whole = datetime.datetime(year, month, day, hour, minute, second, tzinfo=_UTC)
    # Written as text first: a sum of two floats would be another float than the one of the same time as a number.
    return float(f"{whole.timestamp():.0f}.{(fraction or '.0')[1:]}")


def _of_listing(text: str, clock: Callable[[], float]) -> Told | None:
    """A time from ``ls -l``: it is the server's local one, and leaves out the year or the time of day."""
    match = _LISTED.fullmatch(text)
    if match is None or match[1] not in _MONTHS:
        return None
    month, day, year, hour, minute = str(_MONTHS.index(match[1]) + 1), match[2], match[3], match[4], match[5]
    if year is not None:
        # The start of the day: the text stands for all of it.
        return Told(text, _moment((year, month, day, None, None, None, None)) + _BEHIND, DAY)
    latest = clock() + _AHEAD
    # The year before, if the day has not come yet this year. 29 February comes at least every eight years.
    this_year = datetime.datetime.fromtimestamp(latest, _UTC).year
    for candidate in range(this_year, this_year - 9, -1):
        with contextlib.suppress(ValueError):
            seconds = _moment((str(candidate), month, day, hour, minute, None, None))
            if seconds <= latest:
                return Told(text, seconds + _BEHIND, MINUTE)
    return None
