"""
The slow source of the tests does as it is told, and counts right: else the tests that use it prove nothing.
"""

from __future__ import annotations

import os
import pickle
import time

import pytest
from serving import wait_for
from slow_control import Control, Totals

from dogpile_filesystem.sources import source_identity

fsspec = pytest.importorskip("fsspec")
slow_source = pytest.importorskip("slow_source")
CONTENT = bytes(range(256)) * 4

#: Another process, which reads a file as often as it is told.
READER = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import slow_source
    fs = slow_source.SlowSource.from_json(sys.argv[2])
    for _ in range(int(sys.argv[3])):
        try:
            print(len(fs.cat_file("a", 0, 100)), flush=True)
        except OSError as error:
            print(error.errno, flush=True)
"""


@pytest.fixture
def slept(monkeypatch):
    seconds = []
    monkeypatch.setattr(slow_source.SlowSource, "sleep", staticmethod(seconds.append))
    return seconds


@pytest.fixture
def make(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").write_bytes(CONTENT)

    def make(**options):
        return fsspec.filesystem("slow", root=str(tmp_path / "root"), control=str(tmp_path / "control"), **options)

    return make


@pytest.fixture
def fs(make):
    return make()


@pytest.fixture
def start(spawn, fs):
    return lambda times: spawn(READER, os.path.dirname(slow_source.__file__), fs.to_json(), times)


def test_counts(fs):
    """Each request is counted once, with the bytes that it sent."""
    assert fs.cat_file("a") == CONTENT
    assert fs.cat_file("slow://a", 10, 20) == CONTENT[10:20]
    assert fs.cat_file("a", -24) == CONTENT[-24:]
    assert fs.info("a")["size"] == 1024
    assert [row["name"] for row in fs.ls("")] == ["a"]
    assert fs.control.totals() == Totals(requests=5, reads=3, bytes=1058, unfinished=0, infos={"a": 1})
    assert [(each.start, each.asked, each.pid) for each in fs.control.requests("read")] == [
        (0, 1024, os.getpid()),
        (10, 10, os.getpid()),
        (1000, 24, os.getpid()),
    ]
    fs.control.forget_requests()
    assert fs.control.totals() == Totals(requests=0, reads=0, bytes=0, unfinished=0, infos={})


def test_time(make, slept):
    """Each request takes the latency, and its bytes their time."""
    fs = make(latency=0.5, bandwidth=1024)
    fs.cat_file("a", 0, 256)
    fs.info("a")
    fs.ls("")
    with pytest.raises(FileNotFoundError):
        fs.info("missing")
    assert slept == [0.5, 0.25, 0.5, 0.5, 0.5]


def test_no_time(fs, slept):
    """Without a latency and a bandwidth nothing sleeps."""
    fs.cat_file("a")
    assert slept == []


def test_open(fs):
    """An opened file asks once for its size, and for its bytes in ranges."""
    with fs.open("a", block_size=100) as file:
        assert file.read(10) + file.read() == CONTENT
        file.seek(5)
        assert file.read(5) == CONTENT[5:10]
    totals = fs.control.totals()
    assert totals.infos == {"a": 1}
    assert totals.reads >= 2
    assert totals.unfinished == 0


def test_processes(fs, start):
    """What other processes ask is counted, and an order that holds twice is followed twice by all of them."""
    fs.control.fail("EIO", times=2)
    processes = [start(3) for _ in range(2)]
    lines = [line for process in processes for line in process.communicate()[0].split()]
    assert sorted(lines) == ["100"] * 4 + ["5"] * 2
    totals = fs.control.totals()
    assert (totals.requests, totals.bytes, totals.unfinished) == (6, 400, 0)
    assert {each.pid for each in fs.control.requests()} == {process.pid for process in processes}


def test_killed(fs, start):
    """What the request of a killed process asked for stays unfinished."""
    with fs.control.holding():
        process = start(1)
        wait_for(fs.control.unfinished)
        process.kill()
        process.communicate()
    assert fs.control.totals() == Totals(requests=1, reads=1, bytes=0, unfinished=100, infos={})


def test_hang(fs, start):
    """A request hangs until it is released, and others of another kind do not."""
    with fs.control.holding(times=1):
        process = start(2)
        wait_for(fs.control.unfinished)
        assert fs.info("a")["size"] == 1024
        assert fs.cat_file("a", 0, 7) == CONTENT[:7]
        assert len(fs.control.unfinished()) == 1
    assert process.communicate()[0].split() == ["100", "100"]
    assert fs.control.unfinished() == []


@pytest.mark.parametrize(("name", "error"), [("EIO", OSError), ("ETIMEDOUT", TimeoutError), ("ValueError", ValueError)])
def test_fail(fs, name, error):
    """A request fails with the error that was asked for, and the next one does not."""
    fs.control.fail(name, kind="info", path="a", times=1)
    assert fs.cat_file("a") == CONTENT
    with pytest.raises(error):
        fs.info("a")
    assert fs.info("a")["size"] == 1024
    assert [each.error for each in fs.control.requests()] == ["", error.__name__, ""]


def test_forget_orders(fs):
    """A source that was told to forget its orders answers again."""
    fs.control.fail("EIO")
    with pytest.raises(OSError):
        fs.cat_file("a")
    fs.control.forget_orders()
    assert fs.cat_file("a") == CONTENT


def test_cut(fs):
    """An answer is short by the bytes that were asked for."""
    fs.control.cut(3, times=1)
    assert fs.cat_file("a", 0, 10) == CONTENT[:7]
    assert fs.cat_file("a", 0, 10) == CONTENT[:10]


def test_whole(fs):
    """A range is answered with the whole file."""
    fs.control.answer_whole()
    assert fs.cat_file("a", 5, 10) == CONTENT
    assert fs.control.totals().bytes == 1024


def test_hide_length(fs):
    """Without a length, a file is read in order, in one request."""
    fs.control.hide_length()
    assert fs.info("a")["size"] is None
    with fs.open("a") as file:
        assert not file.seekable()
        assert file.read() == CONTENT
    assert [(each.asked, each.answered) for each in fs.control.requests("stream")] == [(1024, 1024)]
    fs.control.cut(3)
    with fs.open("a") as file:
        assert file.read() == CONTENT[:-3]
    fs.control.fail("EIO", kind="stream")
    with pytest.raises(OSError):
        fs.open("a")
    assert fs.control.unfinished() == []


@pytest.mark.parametrize(
    ("identity", "resolution"), [("content", 0.0), ("stat", 0.0), ("mtime", 0.02), ("second", 1.0), ("none", None)]
)
def test_identity(make, identity, resolution):
    """Each kind of identity has its resolution, and changes with the version as far as that goes."""
    fs = make(identity=identity)
    os.utime(fs.local("a"), (1.5, 1.5))
    before = source_identity(fs, "a")[1]
    assert (before and before.resolution) == resolution
    fs.control.replace("a", CONTENT[::-1], kind="info")
    assert (source_identity(fs, "a")[1] != before) is (identity != "none")
    fs.control.hide_identity()
    assert source_identity(fs, "a")[1] is None


def test_replace(fs):
    """A file is replaced before the answer, or within it, once."""
    fs.control.replace("a", b"x" * 1024)
    assert fs.info("a")["size"] == 1024
    assert fs.cat_file("a", 0, 10) == b"x" * 10
    fs.control.replace("a", b"y" * 1024, within=True)
    assert fs.cat_file("a", 0, 10) == b"xxxxxyyyyy"
    assert fs.cat_file("a", 0, 10) == b"y" * 10
    fs.control.replace("a", b"longer" * 1024)
    assert len(fs.cat_file("a")) == 6 * 1024


def test_writing(fs):
    """What is passed on to the source is done there, and a file that is written takes its place when closed."""
    with fs.open("b", "wb") as file:
        file.write(b"12345")
        assert not fs.exists("b")
    assert fs.cat_file("b") == b"12345"
    fs.mkdir("c")
    fs.cp_file("b", "c/d")
    fs.mv("b", "c/e")
    assert fs.find("") == ["a", "c/d", "c/e"]
    fs.rm("c", recursive=True)
    assert fs.ls("", detail=False) == ["a"]


def test_copies(fs, make):
    """The filesystem can be pickled, and made again from JSON."""
    assert pickle.loads(pickle.dumps(fs)) == fs == slow_source.SlowSource.from_json(fs.to_json())
    assert make(latency=0.001) != fs
    with pytest.raises(ValueError, match="identity='x'"):
        make(identity="x")


def test_sleep_is_real():
    """A latency is slept, unless a test replaces the sleep."""
    assert slow_source.SlowSource.sleep is time.sleep


def test_control_of_another_process(fs, tmp_path):
    """A control made anew on the same directory is the same one."""
    Control(tmp_path / "control").fail("EIO", times=1)
    with pytest.raises(OSError):
        fs.info("a")
