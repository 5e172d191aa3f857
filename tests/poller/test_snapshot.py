"""
What is compared, and how it is kept: pure functions.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogpile_filesystem.poller.blobs import Damaged, buckets_for, count_of, decode, encode, split, wrapped
from dogpile_filesystem.poller.patterns import Patterns
from dogpile_filesystem.poller.places import Place
from dogpile_filesystem.poller.snapshot import contents_of, difference
from dogpile_filesystem.sources import Identity

NUMBERS = st.integers(-(2**63), 2**64 - 1)
NAMES = st.text(st.characters(blacklist_characters="\0/"), min_size=1)
FILES = st.dictionaries(NAMES, st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=20)


@given(FILES)
def test_blobs(files):
    """A blob gives back what it was made of, in its order, numbers beyond 63 bits as a remainder."""
    blob = encode(files)
    assert list(decode(blob).items()) == [(name, wrapped(record)) for name, record in files.items()]
    assert count_of(blob) == len(files)


@given(FILES, st.integers(0, 10**6), st.integers(1, 255))
def test_damaged_blobs(files, at, change):
    """Any changed byte, and any missing end, is noticed."""
    blob = bytearray(encode(files))
    with pytest.raises(Damaged):
        decode(bytes(blob[: at % len(blob)]))
    blob[at % len(blob)] ^= change
    with pytest.raises(Damaged):
        decode(bytes(blob))


@given(FILES, st.sampled_from([1, 2, 8]))
def test_split(files, buckets):
    """Parts have every file once, and always the same one in the same part."""
    parts = split(files, buckets)
    assert {name: record for part in parts for name, record in part.items()} == files
    assert sum(map(len, parts)) == len(files)
    assert split({name: record for part in parts for name, record in part.items()}, buckets) == parts


def test_number_of_buckets():
    """Small directories have one part; large ones parts of thousands, whose number changes rarely."""
    assert [buckets_for(files) for files in (0, 1, 8192, 8193, 1_000_000)] == [1, 1, 1, 4, 256]
    assert [buckets_for(files, 4) for files in (4096, 8193, 32_768)] == [4, 4, 4]
    assert [buckets_for(files, 4) for files in (4095, 32_769)] == [1, 16]


@given(FILES, FILES)
def test_difference(known, found):
    """The events of a comparison, applied to what is known, lead to what was found."""
    events, recorded, waiting = difference(known, found)
    assert not waiting
    assert recorded == found
    assert {name for name, event in events.items() if event == "created"} == found.keys() - known.keys()
    assert {name for name, event in events.items() if event == "deleted"} == known.keys() - found.keys()
    assert all(known[name] != found[name] for name, event in events.items() if event == "modified")
    assert difference(recorded, found).events == {}


@given(FILES, FILES, FILES)
def test_what_waits_is_reported_later(known, first, second):
    """What is not ready, or cannot be read, keeps what is known of it, and is reported by a later comparison."""
    events, recorded, waiting = difference(known, first, frozenset(known), lambda _name, _record: False)
    assert events == {}
    assert recorded == known
    assert waiting == any(known.get(name) not in (record, wrapped(record)) for name, record in first.items())
    assert difference(recorded, second).events == difference(known, second).events


def test_listing_of_a_store():
    """A flat listing becomes directories, parents before what is in them, each listed in its parent."""
    identity = Identity("etag:1", 5, None, 0.0)
    found = contents_of([("d/e/a", identity), ("b", identity), ("d/c", None)])
    assert [path for path, _ in found] == ["", "d", "d/e"]
    contents = dict(found)
    assert (contents[""].files.keys(), contents[""].subdirectories) == ({"b"}, {"d": 0})
    assert (contents["d"].files.keys(), contents["d"].subdirectories) == ({"c"}, {"e": 0})
    assert contents["d/e"].identity("a") == identity
    assert contents["d/e"].files["a"] == contents[""].files["b"]
    assert contents["d/e"].files["a"][0] == 5
    assert contents["d"].files["c"] != contents[""].files["b"]


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("*.csv", ["a.csv", "d/a.csv", ".csv"], ["a.csvx", "a.csv/b", "csv"]),
        ("d/*.csv", ["d/a.csv"], ["a.csv", "d/e/a.csv", "x/d/a.csv"]),
        ("d/**/a", ["d/a", "d/e/a", "d/e/f/a"], ["da", "d/ea"]),
        ("/a", ["a"], ["d/a"]),
        ("**/a", ["a", "d/a"], ["da"]),
        ("d/**", ["d/a", "d/e/f"], ["d", "e/d/a"]),
        ("?[0-9][!x]", ["a1b", "d/a1\n"], ["a1x", "a11x", "ab1"]),
        ("a+(b).{c}^$", ["a+(b).{c}^$"], ["aab.c"]),
    ],
)
def test_globs(glob, matching, others):
    """A glob matches the paths that its form says, and no others."""
    patterns = Patterns([glob])
    assert [path for path in matching if not patterns.report(path)] == []
    assert [path for path in others if patterns.report(path)] == []
    assert not any(map(Patterns(exclude=[glob]).report, matching))


def test_excluded_above():
    """For a source without directories, what lies below an excluded one is left out."""
    patterns = Patterns(exclude=["tmp"])
    assert [path for path in ("a", "tmp", "tmp/a", "d/tmp/e/a", "tmpx/a") if patterns.report_below(path)] == [
        "a",
        "tmpx/a",
    ]


def test_places():
    """A root is the one known if it is the same directory, or was made at the same mount of the same filesystem."""
    known = Place(7, 1, "/mnt/with space")
    assert Place.parse(known.text()) == known
    assert Place(7, 1, "/elsewhere").succeeds(known)
    assert Place(8, 1, "/mnt/with space").succeeds(known)
    assert not Place(7, 2, "/mnt/with space").succeeds(known)
    assert not Place(8, 1, "/").succeeds(known)
