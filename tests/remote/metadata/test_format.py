"""
A listing is read as it was told, except for secrets, and what is no listing is none.
"""

from __future__ import annotations

import datetime

import pytest

pytest.importorskip("fsspec")

from dogpile_filesystem.remote.metadata import format as listing_format
from dogpile_filesystem.remote.metadata.changes import Change, Changes, Judge

NOW = datetime.datetime(2026, 7, 1, 12, 30, 15, 250, tzinfo=datetime.timezone.utc)
ROWS = [
    {"name": "d/a", "size": 1, "type": "file", "LastModified": NOW, "Owner": {"id": ["x"]}},
    {"name": "d/b/", "size": 0, "type": "directory"},
    {"name": "d/c", "size": None, "type": "file", "LastModified": None, "Owner": None},
    {"type": "file", "name": "d/\udcff", "size": 2, "exact": 0.1, "is_link": True},
    {"name": "d", "size": 7, "type": "file", "LastModified": NOW, "Owner": {}},
]


def read(rows, path="d"):
    packed = listing_format.pack({"token": "t"}, rows, path)
    return listing_format.unpack(packed, path)[1]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[:1] * 3, ROWS[:4]])
def test_as_told(rows):
    """Rows keep their order, their keys, and the types of their values."""
    found = read(rows)
    assert found.rows() == rows
    assert [list(row) for row in found.rows()] == [list(row) for row in rows]
    assert len(found) == len(rows)
    for row in rows:
        assert found.get(row["name"].rstrip("/")) == row
    assert found.get("d/missing") is None


def test_names():
    """The names alone are those of files and those of directories."""
    files, directories = read(ROWS[:4]).names()
    assert sorted(files) == ["d/a", "d/c", "d/\udcff"]
    assert directories == ["d/b/"]


def test_root():
    """The root has no path, or a slash as its path."""
    for path, name in (("", "a"), ("/", "/a")):
        assert read([{"name": name, "size": 1, "type": "file"}], path).get(name) is not None


def test_own_copies():
    """What is handed out is the caller's, with what is in it."""
    found = read(ROWS[:1])
    found.rows()[0]["Owner"]["id"].append("y")
    found.get("d/a")["Owner"]["id"].append("y")
    assert found.rows() == [found.get("d/a")] == ROWS[:1]


def test_secrets():
    """No secret is stored: a URL is without its signature, and a listing of names that have one is not stored."""
    row = {"name": "d/a", "size": 1, "type": "file", "url": "https://u:pw@host/a?sig=secret&x=1"}
    packed = listing_format.pack({}, [row], "d")
    assert b"pw" not in packed
    assert b"secret" not in packed
    assert b"x=1" in packed
    for name in ("d/a?X-Amz-Signature=secret", "d/https://u:pw@host/a"):
        assert listing_format.pack({}, [{**row, "name": name}], "d") is None
    page = "https://u:pw@host/d"
    packed = listing_format.pack({}, [{"name": f"{page}/a", "size": None, "type": "file"}], page)
    assert b"pw" not in packed
    changed = Changes.new().with_changes({"a?sig=secret": Change(5.0, None)})
    assert (changed.by_name, changed.since) == ({}, 5.0)


def test_what_json_cannot_say():
    """What JSON cannot say is left out, and only that."""
    row = {"name": "d/a", "size": 1, "type": "file", "object": object(), "tags": (1, 2)}
    assert read([row]).rows() == [{"name": "d/a", "size": 1, "type": "file", "tags": [1, 2]}]


def test_strange_names():
    """A listing with a name that is not below the directory is not stored: it could not be read back."""
    assert listing_format.pack({}, [{"name": "e/a", "size": 1, "type": "file"}], "d") is None


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}\n[]\n[]", b'{"format": 2}\n[[], []]\n[]', b'{"format": 1}\n5\n[]']
)
def test_no_listing(payload):
    """What is no listing of this format is none."""
    assert listing_format.unpack(payload, "d") is None


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"[1, 2, 3, 4, 5]", b'["e", "t", "1", 0.0, []]', b"[[[["])
def test_no_changes(payload):
    """What is no record of changes is none."""
    assert Changes.unpack(payload, "d") is None


def test_changes_as_noted():
    """Changes are read as they were noted."""
    info = {"name": "d/a", "size": 1, "type": "file", "LastModified": NOW}
    changes = Changes.new().with_changes({"a": Change(5.0, info), "b": Change(6.0, None)})
    assert Changes.unpack(changes.pack(), "d") == changes


def told(size, mtime=None):
    return {"name": "d/a", "size": size, "type": "file"} | ({} if mtime is None else {"mtime": mtime})


DIRECTORY = {"name": "d/a", "size": 0, "type": "directory"}


@pytest.mark.parametrize(
    ("changed", "listed", "wins"),
    [
        (told(1, 5.5), told(1, 5.5), False),
        (told(1, 5.5), told(1, 4.5), True),
        # Somebody else was later.
        (told(1, 5.5), told(1, 6.5), False),
        (told(1), told(1), False),
        (told(1), told(2), True),
        (told(1), None, True),
        (None, told(1), True),
        (None, None, False),
        (DIRECTORY, told(1), True),
        (DIRECTORY, DIRECTORY, False),
    ],
    ids=str,
)
def test_change_against_a_listing(changed, listed, wins):
    """A change wins for a minute over what was asked for later, unless that shows it, and always over the earlier."""
    judge = Judge({"some"}, lambda: 1010.0)
    assert judge.wins(Change(1000.0, changed), listed, 1005.0) == wins
    assert judge.wins(Change(1000.0, changed), listed, 995.0)
    assert not Judge({"some"}, lambda: 1061.0).wins(Change(1000.0, changed), listed, 1005.0)
