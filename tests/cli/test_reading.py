"""
The commands ``ls`` and ``show``: what they show of entries and keys.
"""

from __future__ import annotations

import io
import json
import os
import re
import time

import pytest
from commands import path_of
from dogpile.cache import make_region

from dogpile_filesystem import layout
from dogpile_filesystem.cli import reading
from dogpile_filesystem.layout import BLOCK, VALUE, VERSION
from dogpile_filesystem.store.store import Store


@pytest.fixture
def several(store, base_dir):
    """Entries whose orders by key, size, creation and last use all differ."""
    now = time.time_ns()
    for key, blocks, used in ((b"b", 3, 20), (b"c", 1, 40), (b"a", 2, 30)):
        assert store.put(key, bytes(blocks * BLOCK - 100))
        os.utime(path_of(base_dir, VALUE, key), ns=(0, now - used * 10**9))
    return store


def listed(done):
    assert done.exit_code == 0
    return [line.split()[-1] for line in done.stdout.splitlines()[1:]]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 7, 100])
def test_first(limit, reverse):
    """With a limit, the items are the same, in the same order, as the first items of the whole sorted list."""
    items = [(number * 7919 % 31, number) for number in range(31)]
    expected = sorted(items, reverse=reverse)[:limit]
    assert list(reading.first(iter(items), lambda item: item, limit, reverse=reverse)) == expected


@pytest.mark.parametrize(
    ("sort", "expected"), [("used", "bac"), ("size", "bac"), ("created", "acb"), ("key", "abc"), (None, "bac")]
)
def test_ls_sorted(several, run, sort, expected):
    """Each order is as its name says, also with a limit and in reverse."""
    arguments = [] if sort is None else ["--sort", sort]
    assert listed(run("ls", *arguments)) == list(expected)
    assert listed(run("ls", *arguments, "--limit", 2)) == list(expected[:2])
    assert listed(run("ls", *arguments, "--reverse")) == list(expected[::-1])
    assert listed(run("ls", *arguments, "--reverse", "--limit", 1)) == [expected[-1]]


def test_ls_row(several, run):
    """A row shows kind, size, age, last use, the time until the entry expires, and the key."""
    assert run("ls", "--limit", 1).stdout.splitlines()[1].split() == [
        "value",
        "12",
        "KiB",
        "0",
        "s",
        "20",
        "s",
        "-",
        "b",
    ]


def test_ls_json(base_dir, run):
    """A program gets one object per line, with times in seconds since the epoch."""
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir, "expiration_time": 60})
    before = time.time()
    region.set("ä", "value")
    region.backend.store.flush()
    (line,) = run("ls", "--json").stdout.splitlines()
    seen = json.loads(line)
    assert (seen["key"], seen["kind"], seen["size"]) == ("ä", "value", BLOCK)
    assert before <= seen["created"] <= time.time()
    assert seen["expires"] == pytest.approx(seen["created"] + 60)
    assert seen["used"] == pytest.approx(seen["created"])
    assert os.path.exists(f"{base_dir}/values/{seen['name'][:2]}/{seen['name']}")


@pytest.mark.parametrize(
    ("seconds", "ago", "shown"),
    [(None, 0, "never"), (7100, 0, "118 min"), (7100, 3600, "58 min"), (3600, 7100, "expired")],
)
def test_ls_expiry(base_dir, run, seconds, ago, shown):
    """The time left to an entry follows the expiration_time that its application configured."""
    store = Store(base_dir, expiration_time=seconds, clock=lambda: time.time() - ago)
    assert store.put(b"a", b"value")
    store.flush()
    assert f"  {shown:>7}  a\n" in run("ls").stdout


@pytest.mark.parametrize(
    ("key", "shown", "text"),
    [
        (b"\x1b]0;evil\x07\r\n", r"\x1b]0;evil\x07\r\n", "\x1b]0;evil\x07\r\n"),
        (b"[bold]markup[/bold]", "[bold]markup[/bold]", "[bold]markup[/bold]"),
        ("ü\u202e".encode(), r"ü\u202e", "ü\u202e"),
        (b"\xff\x00", r"\xff\x00", "\udcff\x00"),
        (b"x" * 5000, "x" * 5000, "x" * 5000),
    ],
    ids=["escape sequence", "markup", "direction", "no text", "long"],
)
def test_keys(store, run, key, shown, text):
    """A key is shown whole and cannot steer a terminal; JSON has it exactly, so that it can be passed to a command."""
    assert store.put(key, b"value")
    assert run("ls").stdout.splitlines()[1].endswith(f"  {shown}")
    assert json.loads(run("ls", "--json").stdout)["key"] == text
    assert f"Key       {shown}\n" in run("show", "--", text).stdout
    assert run("remove", "--", text).stdout.startswith("Removed 1 entry")


def test_ls_of_what_is_damaged(store, base_dir, run):
    """An entry that cannot be read is listed by the name of its file."""
    assert store.put(b"a", b"value")
    os.truncate(path_of(base_dir, VALUE, b"a"), 3)
    assert f"(damaged: {layout.entry_name(VALUE, b'a')})" in run("ls", "--sort", "key").stdout
    assert json.loads(run("ls", "--json").stdout)["key"] is None


def test_ls_into_a_pipe_that_is_closed(store, base_dir, start):
    """A program that reads only the first lines causes no traceback."""
    for number in range(3000):
        assert store.put(b"%d" % number, b"")
    process = start("ls", base_dir)
    assert process.stdout.readline().split()[-1] == b"KEY"
    process.stdout.close()
    process.stdout = None
    assert process.communicate()[1] == b""


def test_show_value(base_dir, run):
    """A value is shown with dogpile's metadata and its first bytes, and is never unpickled."""
    region = make_region(serializer=lambda value: value, deserializer=bytes)
    region.configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    region.set("key", b"cos\nsystem\n(S'false'\ntR.")
    done = run("show", "key", "--bytes", 20)
    assert done.exit_code == 0
    assert re.search(r'^Metadata +\{"ct": [0-9.]+, "v": [0-9]+\}$', done.stdout, re.MULTILINE)
    assert re.search(r"^Length +24 bytes$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-2:] == [
        "00000000  63 6f 73 0a 73 79 73 74  65 6d 0a 28 53 27 66 61  |cos.system.(S'fa|",
        "00000010  6c 73 65 27                                       |lse'|",
    ]
    (seen,) = json.loads(run("show", "key", "--json").stdout)
    assert seen["start"] == b"cos\nsystem\n(S'false'\ntR.".hex()
    assert set(seen["metadata"]) == {"ct", "v"}


@pytest.mark.parametrize("payload", [b"", b"no metadata", b"1|2", b"[1]|2", b"{|"])
def test_show_value_without_metadata(store, run, payload):
    """A value that dogpile did not store is shown from its first byte."""
    assert store.put(b"key", payload)
    (seen,) = json.loads(run("show", "key", "--json").stdout)
    assert (seen["metadata"], seen["start"], seen["length"]) == (None, payload.hex(), len(payload))


def test_show_file(store, run):
    """A file is shown with its content, and with the position at which reading starts."""
    file = io.BytesIO(b"0123456789" * 1000)
    file.seek(7)
    assert store.put_file(b"key", file, b'{"ct": 5.0}')
    done = run("show", "key")
    assert re.search(r"^Length +10,000 bytes, read from 7$", done.stdout, re.MULTILINE)
    assert re.search(r'^Metadata +\{"ct": 5.0\}$', done.stdout, re.MULTILINE)
    assert "  |0123456789012345|" in done.stdout
    (seen,) = json.loads(run("show", "key", "--json", "--bytes", 2).stdout)
    assert (seen["position"], seen["length"], seen["start"], seen["size"]) == (7, 10_000, b"01".hex(), 4 * BLOCK)


def test_show_both_kinds(store, run):
    """A value and a file under one key are both shown; --kind chooses one of them."""
    assert store.put(b"key", b"value")
    assert store.put_file(b"key", io.BytesIO(b"file"))
    assert re.findall(r"^Kind +(\w+)$", run("show", "key").stdout, re.MULTILINE) == ["value", "file"]
    (seen,) = json.loads(run("show", "key", "--kind", "file", "--json").stdout)
    assert seen["kind"] == "file"


def test_blocks_and_versions(store, run):
    """Blocks and versions are listed with their keys and kinds; those whose keys can be passed are shown."""
    key = layout.PartKey("s3://bucket/file", "namespace", "etag:1", 10, 5, 1).pack()
    assert store.put_part(key, b"01234")
    assert store.put(layout.version_key("s3://bucket/file", "namespace"), b"{}|", VERSION)
    store.flush()
    rows = {line.split()[0]: line for line in run("ls").stdout.splitlines()}
    assert set(rows) == {"KIND", "block", "version"}
    assert rows["block"].endswith(r"  s3://bucket/file\x00namespace\x00etag:1\x0010\x005\x001")
    assert {len(line.partition(" KiB ")[0]) for name, line in rows.items() if name != "KIND"} == {len("version") + 8}
    assert {json.loads(line)["kind"] for line in run("ls", "--json").stdout.splitlines()} == {"block", "version"}
    (seen,) = json.loads(run("show", key.decode(), "--json").stdout)
    assert (seen["kind"], seen["length"], seen["start"], seen["metadata"]) == ("block", 5, b"01234".hex(), None)
    done = run("show", key.decode().partition("\0etag")[0])
    assert re.search(r"^Kind +version$", done.stdout, re.MULTILINE)
    assert re.search(r"^Length +3 bytes$", done.stdout, re.MULTILINE)
    assert run("check").exit_code == 0
    assert run("remove", "--prefix", "s3://bucket/", "--kind", "block").stdout == "Removed 1 entry, 4 KiB.\n"
    assert run("remove", "--prefix", "s3://bucket/").stdout == "Removed 1 entry, 4 KiB.\n"


def test_show_nothing(store, run):
    """For a key without an entry, the command says so and ends with 1."""
    done = run("show", "key")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no entry under key" in done.stderr


def test_show_what_is_damaged(filled, base_dir, run):
    """For a damaged entry, the command says so and how to remove it, and ends with 1."""
    os.truncate(path_of(base_dir, VALUE, b"value"), 3)
    done = run("show", "value", "--kind", "value")
    assert done.exit_code == 1
    assert "damaged" in done.stderr
