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


def rows_of_files(done):
    """The columns of each file of a source, and its name."""
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["LENGTH", "CACHED"])
    return {line.rpartition("/source/")[2]: line.rpartition("  ")[0].split() for line in lines[start + 1 :]}


def test_ls_of_source_files(cached, run):
    """A file of a source is one row: its length, how much of it is there, and its age and last use."""
    done = run("ls")
    assert done.stdout.split()[0] == "LENGTH"
    rows = rows_of_files(done)
    assert set(rows) == {"some", "whole", "empty", "far/away", "whole too"}
    assert rows["some"][:5] == ["293", "KiB", "128", "KiB", "43%"]
    assert rows["whole"][:5] == ["98", "KiB", "98", "KiB", "100%"]
    assert rows["empty"][:5] == ["0", "KiB", "0", "KiB", "100%"]
    assert rows["whole too"][:5] == ["5", "KiB", "5", "KiB", "100%"]


@pytest.mark.parametrize(
    ("sort", "first"), [("used", "whole too"), ("size", "some"), ("created", "whole too"), ("key", "empty")]
)
def test_ls_of_source_files_sorted(cached, run, sort, first):
    """Files of sources are sorted as entries are, also with a limit and in reverse."""
    everything = list(rows_of_files(run("ls", "--sort", sort)))
    assert everything[0] == first
    assert list(rows_of_files(run("ls", "--sort", sort, "--limit", 2))) == everything[:2]
    assert list(rows_of_files(run("ls", "--sort", sort, "--reverse"))) == everything[::-1]


def test_ls_of_both(cached, store, run):
    """Entries of regions, and files of sources, have a table each."""
    assert store.put(b"key of a region", b"value")
    entries, files = run("ls").stdout.split("\n\n")
    assert [line.split()[0] for line in entries.splitlines()] == ["KIND", "value"]
    assert len(files.splitlines()) == 6


def test_ls_blocks(cached, store, run):
    """With --blocks, the entries that files of sources consist of are listed themselves."""
    kinds = [json.loads(line)["kind"] for line in run("ls", "--blocks", "--json").stdout.splitlines()]
    assert (kinds.count("block"), kinds.count("version"), len(kinds)) == (6, 5, 11)


def test_ls_of_source_files_as_json(cached, base_dir, run):
    """A program gets the exact numbers of a file of a source, and what tells its version."""
    files = {seen["key"]: seen for seen in map(json.loads, run("ls", "--json").stdout.splitlines())}
    some = files[f"file://{cached}/some"]
    assert (some["kind"], some["length"], some["cached"], some["blocks"]) == ("source", 300_000, 2 << 16, 2)
    assert some["size"] == sum(
        os.path.getsize(path) // -BLOCK * -BLOCK
        for path in (f"{base_dir}/values/{name[:2]}/{name}" for name in names_of(run, "some"))
    )
    assert some["identity"].startswith("stat:")
    assert some["created"] <= some["used"] <= time.time()
    assert some["checked"] <= some["created"]


def names_of(run, name):
    """The files of the entries that a file of a source consists of."""
    for line in run("ls", "--blocks", "--json").stdout.splitlines():
        entry = json.loads(line)
        if entry["key"].partition("\0")[0].endswith(f"/{name}"):
            yield entry["name"]


def test_ls_of_a_file_of_two_versions(cached, run, base_dir, store):
    """Blocks of an earlier version, which nothing has removed yet, are a row of their own."""
    url, old = f"file://{cached}/far/away", layout.PartKey(f"file://{cached}/far/away", "n", "old", 1 << 20, 1 << 16, 3)
    assert store.put_part(old.pack(), bytes(1 << 16))
    found = [json.loads(line) for line in run("ls", "--json").stdout.splitlines()]
    versions = {each["identity"]: each for each in found if each["key"] == url}
    assert versions["old"]["cached"] == 1 << 16
    assert versions["old"]["checked"] is None
    assert len(versions) == 2
    assert "6%" in run("ls").stdout
    done = run("show", url)
    assert len(re.findall(r"^URL ", done.stdout, re.MULTILINE)) == 2
    assert re.search(r"^Blocks +1 of 16, of 64 KiB each: 3$", done.stdout, re.MULTILINE)
    assert "no record of this version" in done.stdout


def test_ls_of_a_file_of_unknown_length(store, run):
    """The length of a file that was read through in order is known when its last block is there."""
    key = layout.PartKey("http://host/f", "n", "etag:1", -1, 1 << 16, 0)
    assert store.put_part(key.pack(), bytes(1 << 16))
    assert run("ls").stdout.splitlines()[1].split()[:4] == ["?", "64", "KiB", "?"]
    assert "Length     not known\n" in run("show", "http://host/f").stdout
    assert store.put_part(key._replace(number=1).pack(), b"")
    assert run("ls").stdout.splitlines()[1].split()[:5] == ["64", "KiB", "64", "KiB", "100%"]


def test_ls_of_damaged_blocks(cached, base_dir, run):
    """A damaged block is listed as a damaged entry, and its file without it."""
    block = next(name for name in names_of(run, "whole") if name.endswith("b"))
    os.truncate(f"{base_dir}/values/{block[:2]}/{block}", 3)
    assert f"(damaged: {block})" in run("ls").stdout
    assert rows_of_files(run("ls"))["whole"][4] != "100%"


def test_show_source_file(cached, run):
    """A file of a source is shown by its URL, with its version, the blocks that are there, and its first bytes."""
    done = run("show", f"file://{cached}/some")
    assert done.exit_code == 0
    for line in (
        "Length +300,000 bytes",
        "Cached +131,072 bytes, 43%",
        "Blocks +2 of 5, of 64 KiB each: 1-2",
        "Version +stat:.*",
        "Last look .* ago",
        "Namespace +[0-9a-f]{32}",
    ):
        assert re.search(f"^{line}$", done.stdout, re.MULTILINE), line
    assert "|" not in done.stdout
    assert "00000000  00 01 02 03 04 05 06 07" in run("show", f"file://{cached}/whole").stdout
    (seen,) = json.loads(run("show", f"file://{cached}/whole", "--json", "--bytes", 3).stdout)
    assert (seen["runs"], seen["start"], seen["signed"]) == ([[0, 1]], "000102", False)
    assert run("show", f"file://{cached}/whole", "--kind", "value").exit_code == 1


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
    rows = {line.split()[0]: line for line in run("ls", "--blocks").stdout.splitlines()}
    assert set(rows) == {"KIND", "block", "version"}
    assert rows["block"].endswith(r"  s3://bucket/file\x00namespace\x00etag:1\x0010\x005\x001")
    assert {len(line.partition(" KiB ")[0]) for name, line in rows.items() if name != "KIND"} == {len("version") + 8}
    listed = run("ls", "--blocks", "--json").stdout.splitlines()
    assert {json.loads(line)["kind"] for line in listed} == {"block", "version"}
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
