"""
The records of unsent files: what follows from what. No filesystem here.
"""

from __future__ import annotations

import dataclasses
import errno

import pytest

pytest.importorskip("fsspec")

from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.unsent import Conflict, Record

NOW = 1_700_000_000.0


def record(**fields):
    return Record(**{"path": "a", "namespace": "n", "since": NOW, "next_try": NOW + 5, **fields})


def test_packs():
    """A record is the same when it is read again, whatever the name of its file."""
    for path in ("a", "ä/ö", "with \0", "\udcff"):
        said = record(path=path, base="etag", sent=("x", "y"), tries=3, error="no", is_lasting=True, removed=True)
        said = dataclasses.replace(said, beside=f"{path} 2")
        assert unsent.unpack(said.pack()) == said
    assert unsent.unpack(record().pack()) == record()


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", b"\xff", record().pack()[:-1], b'{"path": 1}'])
def test_damage(damaged):
    """What is no record is none, and no error."""
    assert unsent.unpack(damaged) is None


@pytest.mark.parametrize("tries", [0, 3])
def test_clock_set_back(tries):
    """A file is not kept waiting for years because the clock was wrong when it was written, or tried."""
    said = record(tries=tries, next_try=NOW + 300)
    assert said.wait(NOW) == 300
    assert said.wait(NOW + 299) == 1
    assert said.wait(NOW - 10**8) <= 0
    long = record(next_try=NOW + 10**6)
    assert long.wait(NOW + 1) == 10**6 - 1


def test_replaced():
    """What is written anew is sent when the first was to be, and keeps what is known of the source."""
    first = record(base="old", sent=("ours",))
    second = first.replaced(record(since=NOW + 3, next_try=NOW + 8, base="something"))
    assert (second.next_try, second.base, second.sent, second.since) == (NOW + 5, "old", ("ours",), NOW + 3)
    assert record(beside="a 2").replaced(record()).beside == ""


def test_replaced_after_failures():
    """To write a file anew does not make a failing source be asked more often, but one that said no is asked again."""
    failing = record(tries=5, next_try=NOW + 300, error="down")
    assert failing.replaced(record()).next_try == NOW + 300
    assert failing.replaced(record()).tries == 5
    refused = record(tries=5, next_try=NOW + 600, error="denied", is_lasting=True)
    assert refused.replaced(record()).next_try == NOW + 5
    assert not refused.replaced(record()).is_lasting


def test_pauses():
    """The pauses grow up to some minutes; those of a full source are longer."""
    down, full = ConnectionError("down"), OSError(errno.EDQUOT, "full")
    pauses = [unsent.pause(down, tries) for tries in range(1, 30)]
    assert pauses == sorted(pauses)
    assert pauses[0] <= 2
    assert pauses[-1] == 300
    assert all(unsent.pause(full, tries) > unsent.pause(down, tries) for tries in range(1, 30))
    assert unsent.pause(full, 100) == 1800


class Answered(Exception):
    def __init__(self, status):
        self.status = status


@pytest.mark.parametrize(
    ("error", "lasts"),
    [
        (ConnectionError(), False),
        (TimeoutError(), False),
        (OSError(errno.EDQUOT, ""), False),
        (OSError(errno.EIO, ""), False),
        (FileNotFoundError(), False),
        (Answered(503), False),
        (Answered(507), False),
        (Answered(403), True),
        (PermissionError(), True),
        (OSError(errno.ENAMETOOLONG, ""), True),
        (ValueError("name"), True),
        (Conflict("a"), True),
    ],
)
def test_lasting(error, lasts):
    """What the source refuses will not pass; what may be its state will."""
    failed = record().failed(error, NOW)
    assert failed.is_lasting is lasts
    assert failed.tries == 1
    assert failed.next_try > NOW
    assert type(error).__name__ in failed.error


def test_conflict():
    """A version of the source is known if it is the one that was replaced, or ours; without a base, all are."""
    assert record(base=None).knows("anything")
    assert record(base="old").knows("old")
    assert not record(base="old").knows("other")
    assert record(base="old").sent_as("ours").knows("ours")
    assert record(base="old").sent_as("") == record(base="old")
