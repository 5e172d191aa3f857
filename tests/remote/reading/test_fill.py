"""
With ``fill=True``, files that were opened are fetched whole, by one thread of a process, also when nobody reads them.
"""

from __future__ import annotations

import threading

import pytest
from forked import Child
from patience import PATIENCE
from serving import wait_for

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from dogpile_filesystem.remote.reading import fill  # noqa: E402 - needs fsspec

BLOCK = cached.BLOCK_SIZE
#: Three turns of 4 MiB, and a part of one.
CONTENT = cached.noise((12 << 20) + 1000, 5)


@pytest.fixture
def fs(make):
    yield make(fill=True)
    wait_for(fill.filler.is_idle)


def filled(fs):
    """The counts of fills, when all have ended."""
    wait_for(fill.filler.is_idle)
    counts = fs.stats().process.source
    assert counts.fills_running == 0
    return counts.fills_started, counts.fills_finished, counts.fills_given_up


def test_goes_on_without_readers(fs, source):
    """A file that was opened, and closed again, is fetched whole, each byte once."""
    source.write("a", CONTENT)
    with fs.open("a") as file:
        assert file.read(10) == CONTENT[:10]
    assert filled(fs) == (1, 1, 0)
    assert source.control.totals().bytes == len(CONTENT)
    source.asked()
    assert fs.cat_file("a") == CONTENT
    assert source.asked("read") == 0


def test_requests(fs, source):
    """What is missing is fetched in large requests."""
    source.write("a", CONTENT)
    fs.open("a").close()
    assert filled(fs) == (1, 1, 0)
    assert [each.asked for each in source.control.requests("read")] == [4 << 20, 4 << 20, 4 << 20, 1000]


def test_only_what_is_missing(make, source):
    """Blocks that are there are not fetched again."""
    source.write("a", CONTENT)
    make().cat_file("a", 0, 8 << 20)
    source.asked()
    fs = make(fill=True)
    fs.open("a").close()
    assert filled(fs) == (1, 1, 0)
    assert source.control.totals().bytes == len(CONTENT) - (8 << 20)


def test_all_files_in_turn(fs, source):
    """All files that were opened are fetched, a request of each in turn."""
    for name in "abc":
        source.write(name, CONTENT)
    with source.control.holding("read", times=1):
        for name in "abc":
            fs.open(name).close()
    assert filled(fs) == (3, 3, 0)
    asked = [each.path for each in source.control.requests("read")]
    assert sorted(asked) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert set(asked[:4]) == {"a", "b", "c"}


def test_opened_often(fs, source):
    """A file that is opened several times meanwhile is fetched once."""
    source.write("a", CONTENT)
    with source.control.holding("read"):
        fs.open("a").close()
        wait_for(source.control.unfinished)  # The thread is at it.
        for _ in range(5):
            fs.open("a").close()
    assert filled(fs) == (1, 1, 0)
    assert source.control.totals().bytes == len(CONTENT)


def test_reader_beside_it(fs, source):
    """A reader that goes on meanwhile gets every byte, and none is fetched twice."""
    source.write("a", CONTENT)
    with fs.open("a") as file:
        assert file.read() == CONTENT
    assert filled(fs) == (1, 1, 0)
    assert source.control.totals().bytes == len(CONTENT)


@pytest.mark.parametrize("error", ["EIO", "FileNotFoundError", "RuntimeError"])
def test_source_fails(fs, source, error):
    """A fill whose source fails is given up, and the next opening takes it up."""
    source.write("a", CONTENT)
    source.control.fail(error, "read", times=1)
    fs.open("a").close()
    assert filled(fs) == (1, 0, 1)
    fs.open("a").close()
    assert filled(fs) == (2, 1, 1)


def test_changed(fs, source):
    """A fill of a file that is changed meanwhile is given up, and nothing of the new version is taken for the old."""
    source.write("a", CONTENT)
    source.control.replace("a", CONTENT[::-1])
    fs.open("a").close()
    assert filled(fs) == (1, 0, 1)
    assert fs.cat_file("a") == CONTENT[::-1]


def test_no_room(make, source, monkeypatch):
    """A file that is larger than the cache is not filled; a fill of which nothing can be kept is given up."""
    source.write("a", CONTENT)
    make(fill=True, cache_size=len(CONTENT)).open("a").close()
    wait_for(fill.filler.is_idle)
    assert source.control.requests("read") == []
    fs = make(fill=True)
    monkeypatch.setattr(fs.store, "put_part", lambda *_: False)
    fs.open("a").close()
    assert filled(fs) == (1, 0, 1)
    assert len(source.control.requests("read")) == 1


def test_unsettled_is_not_filled(make, tmp_path, clock):
    """A file that would not be kept is not fetched."""
    source = cached.Files(tmp_path, identity="second")
    source.write("a", CONTENT, changed=clock.now)
    fs = make(source, fill=True)
    fs.open("a").close()
    assert filled(fs) == (0, 0, 0)


def test_forked_child(fs, source):
    """A forked child has none of its parent's fills, and begins its own."""
    source.write("a", CONTENT)
    source.write("b", CONTENT)
    with source.control.holding("read", "a"):
        fs.open("a").close()

        def work():
            is_idle = fill.filler.is_idle()
            fs.open("b").close()
            wait_for(fill.filler.is_idle)
            return is_idle

        assert Child(work).result()
    assert filled(fs) == (1, 1, 0)
    source.asked()
    assert fs.cat_file("b") == CONTENT
    assert source.asked("read") == 0


def test_no_thread(fs, source, monkeypatch):
    """Where no thread can be begun, as when the interpreter ends, a file is opened all the same."""
    source.write("a", CONTENT)

    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with fs.open("a") as file:
            assert file.read(3) == CONTENT[:3]
    assert filled(fs) == (0, 0, 0)


EXITING = """
    fs.open("a").close()
    print("opened", flush=True)
    sys.stdin.readline()
"""


def test_exit(make, source, start):
    """A process ends at once, also while a request of a fill is on its way."""
    source.write("a", CONTENT)
    with source.control.holding("read"):
        process = start(make(fill=True), EXITING)
        assert process.stdout.readline() == "opened\n"
        wait_for(source.control.unfinished)
        # The request hangs for as long as it takes: that the process ends shows that it does not wait for it.
        assert process.communicate("\n", timeout=PATIENCE)[0] == ""
        assert process.returncode == 0


def test_killed(make, source, start):
    """What a killed process had fetched stays, and the next one goes on with the rest."""
    source.write("a", CONTENT)
    process = start(make(fill=True), EXITING)
    assert process.stdout.readline() == "opened\n"
    wait_for(lambda: len(source.control.requests("read")) >= 2)
    process.kill()
    process.wait()
    killed = source.control.totals()
    fs = make(fill=True)
    fs.open("a").close()
    assert filled(fs) == (1, 1, 0)
    assert source.control.totals().bytes <= len(CONTENT) + killed.unfinished + (4 << 20)
    source.asked()
    assert fs.cat_file("a") == CONTENT
    assert source.asked("read") == 0
