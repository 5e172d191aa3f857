"""
Writing back: what `close` accepted is seen by all readers of the cache at once, and sent later, whatever the source
does.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import pickle
import threading
import time

import pytest

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")

from dogpile_filesystem.remote import Conflict, UploadError  # noqa: E402 - it needs fsspec


def sent(fs):
    """How many files were sent, of those that are due."""
    return len(fs.uploader.run())


def paths(fs):
    return [each.path for each in fs.unsent()]


# Accepting


def test_down(fs, source):
    """A file is accepted while the source fails, and everything says that it is there."""
    source.control.fail("ConnectionError")
    fs.pipe_file("a", b"content")
    assert fs.cat_file("a") == b"content"
    assert fs.cat_ranges(["a", "a"], [0, 3], [3, 7]) == [b"con", b"tent"]
    assert fs.info("a")["size"] == 7
    assert fs.exists("a")
    assert source.files() == {}
    assert [(each.path, each.size, each.tries) for each in fs.unsent()] == [("a", 7, 0)]


def test_hangs(fs, source):
    """To write a file asks the source for nothing."""
    with source.control.holding("*"):
        fs.pipe_file("a", b"content")
        assert fs.cat_file("a") == b"content"
    assert source.control.requests() == []


def test_other_process(fs, make, source, clock):
    """Another process sees what was written and not sent, and may send it; this one sees that it was sent."""
    other = make()
    fs.pipe_file("a", b"content")
    assert other.cat_file("a") == b"content"
    assert other.ls("", detail=False) == ["a"]
    clock.move(6)
    assert sent(other) == 1
    assert source.files() == {"a": b"content"}
    assert fs.unsent() == []
    assert fs.cat_file("a") == b"content"


def test_other_namespace(fs, source, base_dir, clock, tmp_path):
    """A filesystem of another source on the same cache neither sees nor sends it."""
    (tmp_path / "second").mkdir()
    other = backed.Flaky(tmp_path / "second").make(base_dir, clock)
    fs.pipe_file("a", b"content")
    clock.move(6)
    assert other.unsent() == []
    assert not other.exists("a")
    assert sent(other) == 0


def test_reader_goes_on(fs, clock):
    """A reader of an unsent file has its version to the end, also if it is replaced, sent or removed."""
    fs.pipe_file("a", b"first")
    with fs.open("a") as replaced:
        fs.pipe_file("a", b"second")
        with fs.open("a") as removed:
            clock.move(6)
            assert sent(fs) == 1
            fs.rm("a")
            assert (replaced.read(), removed.read()) == (b"first", b"second")


def test_reader_pickled(fs):
    """A reader of an unsent file can be sent to another process."""
    fs.pipe_file("a", b"content")
    with fs.open("a") as file:
        file.seek(3)
        with pickle.loads(pickle.dumps(file)) as copied:
            assert copied.read() == b"tent"


def test_modes(fs, clock):
    """Files are appended to, sent or not; and made only where there is none."""
    fs.pipe_file("a", b"one")
    with fs.open("a", "ab") as file:
        file.write(b" two")
    assert fs.cat_file("a") == b"one two"
    with pytest.raises(FileExistsError):
        fs.open("a", "xb")
    clock.move(6)
    sent(fs)
    with fs.open("a", "a") as text:
        text.write(" three")
    assert fs.cat_file("a") == b"one two three"
    fs.rm("a")
    with fs.open("a", "xb") as file:
        file.write(b"new")
    assert fs.cat_file("a") == b"new"


def test_options(fs):
    """An option for the source that would be lost is refused."""
    with pytest.raises(TypeError, match="leave them out"):
        fs.open("a", "wb", ContentType="text/plain")


def test_transaction(fs, source, clock):
    """Files of a transaction are accepted at its end, or not at all."""
    with fs.transaction:
        fs.pipe_file("a", b"1")
        assert not fs.exists("a")
    assert fs.cat_file("a") == b"1"
    with pytest.raises(ZeroDivisionError), fs.transaction:
        fs.pipe_file("b", b"2")
        raise ZeroDivisionError
    assert paths(fs) == ["a"]


def test_put_and_touch(fs, tmp_path):
    """Local files and empty ones are accepted like others."""
    (tmp_path / "local").write_bytes(b"local")
    fs.put(str(tmp_path / "local"), "a")
    fs.touch("b")
    assert fs.cat(["a", "b"]) == {"a": b"local", "b": b""}
    assert paths(fs) == ["a", "b"]


def test_full_cache(make, caplog):
    """When unsent files fill the cache, a write waits, and then says ENOSPC. What was accepted stays, and goes on."""
    fs = make(cache_size=400_000)
    fs.pipe_file("a", b"a" * 200_000)
    with pytest.raises(OSError) as raised:
        fs.pipe_file("b", b"b" * 300_000)
    assert raised.value.errno == errno.ENOSPC
    assert paths(fs) == ["a"]
    fs.flush()
    fs.pipe_file("b", b"b" * 300_000)
    assert fs.cat_file("b") == b"b" * 300_000
    assert "no room" in caplog.text


def test_room_while_waiting(make):
    """A write that waits for room goes on as soon as something was sent."""
    fs = make(cache_size=400_000, lock_timeout=60)
    fs.pipe_file("a", b"a" * 200_000)
    fs.patience._sleep = lambda _: fs.flush()
    fs.pipe_file("b", b"b" * 300_000)
    assert paths(fs) == ["b"]


# Sending


def test_one_upload(fs, source, clock):
    """Several writes within `write_after` are one upload, of the last content, at the time of the first."""
    for content in (b"1", b"2", b"3"):
        fs.pipe_file("a", content)
        clock.move(1.9)
    assert sent(fs) == 1
    assert [each.path for each in source.control.requests("put")] == [source.control.requests("put")[0].path]
    assert source.files() == {"a": b"3"}


def test_order(fs, source, clock):
    """The oldest is sent first."""
    for name in "cab":
        fs.pipe_file(name, b"")
        clock.move(1)
    clock.move(6)
    assert sent(fs) == 3
    assert [each.path for each in source.control.changes() if each.what == "mv" and "." not in each.path] == list("cab")


def test_becomes_blocks(fs, source, clock):
    """What was sent is read from the cache."""
    fs.pipe_file("a", b"content")
    clock.move(6)
    sent(fs)
    source.control.forget_requests()
    assert fs.cat_file("a") == b"content"
    assert source.control.requests("read") == []


def test_makes_parents(fs, source):
    """Directories that the source lacks are made."""
    fs.pipe_file("x/y/a", b"content")
    fs.flush()
    assert source.files() == {"x/y/a": b"content"}


@pytest.mark.parametrize("trouble", ["lose", "truncate"])
@pytest.mark.parametrize("before", [None, b"another", b"content"])
def test_accepts_and_loses(fs, source, clock, trouble, before):
    """A source that says that it has a file, and has nothing or a part of it, gets it again."""
    if before is not None:
        source.fs.pipe_file("a", before)
    getattr(source.control, trouble)(times=1)
    fs.pipe_file("a", b"content")
    clock.move(6)
    assert sent(fs) == 1
    if trouble == "truncate":
        assert [each.tries for each in fs.unsent()] == [1]
        assert fs.cat_file("a") == b"content"
    clock.move(6)
    sent(fs)
    assert fs.unsent() == []
    assert source.files() == {"a": b"content"}
    assert fs.cat_file("a") == b"content"


def test_growing_pauses(fs, make, source, clock):
    """Tries become fewer, also if each is made by another process; and the file is sent when the source is back."""
    source.control.fail("ConnectionError", "put")
    fs.pipe_file("a", b"content")
    times = []
    for _ in range(200):
        clock.move(10)
        if sent(make()):
            times.append(clock.now)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[-1] >= 300
    assert pauses == sorted(pauses)
    assert "ConnectionError" in fs.unsent()[0].error
    source.control.forget_orders()
    clock.move(301)
    assert sent(fs) == 1
    assert source.files() == {"a": b"content"}


def test_denied(fs, source, clock, caplog):
    """What the source refuses stays listed with the reason; others go on."""
    source.control.deny("a")
    source.control.fail("PermissionError", "put", None, times=1)
    fs.pipe_file("a", b"content")
    clock.move(6)
    sent(fs)
    assert "PermissionError" in fs.unsent()[0].error
    assert "cannot send a" in caplog.text


def test_changed_while_sent(fs, make, source, clock):
    """A file that is written while it is sent is sent again: the last content stays at the source."""
    fs.pipe_file("a", b"first")
    clock.move(6)
    with source.control.holding("put"):
        thread = threading.Thread(target=sent, args=(make(),))
        thread.start()
        wait_for(source.control.unfinished)
        fs.pipe_file("a", b"second")
        assert [each.end.name for each in fs.uploader.run()] == ["HELD"]
        assert fs.cat_file("a") == b"second"
    thread.join()
    assert paths(fs) == ["a"]
    assert sent(fs) == 1
    assert source.files() == {"a": b"second"}
    assert fs.unsent() == []


def test_removed_while_sent(fs, make, source, clock):
    """A file that is removed while it is sent is removed from the source."""
    fs.pipe_file("a", b"first")
    clock.move(6)
    with source.control.holding("put"):
        thread = threading.Thread(target=sent, args=(make(),))
        thread.start()
        wait_for(source.control.unfinished)
        fs.rm("a")
        assert not fs.exists("a")
        assert fs.ls("", detail=False) == []
    thread.join()
    fs.flush()
    assert source.files() == {}
    assert fs.unsent() == []


def wait_for(condition):
    while not condition():
        time.sleep(0.001)


@pytest.mark.parametrize("policy", ["overwrite", "error"])
def test_conflict(make, source, clock, caplog, policy):
    """A file that somebody else changed meanwhile is overwritten, and that logged; or ours waits for a decision."""
    fs = make(on_conflict=policy)
    source.fs.pipe_file("a", b"old")
    fs.cat_file("a")
    fs.pipe_file("a", b"ours")
    source.fs.pipe_file("a", b"theirs")
    clock.move(6)
    sent(fs)
    if policy == "overwrite":
        assert "somebody else" in caplog.text
    else:
        assert source.files() == {"a": b"theirs"}
        assert "Conflict" in fs.unsent()[0].error
        with pytest.raises(UploadError) as raised:
            fs.flush()
        assert isinstance(raised.value.failed["a"], Conflict)
        fs.flush(on_conflict="overwrite")
    assert source.files() == {"a": b"ours"}


@pytest.mark.parametrize("policy", ["overwrite", "error"])
def test_own_upload_is_no_conflict(make, source, clock, caplog, policy):
    """After an answer that was lost, what the source has is ours: it is no conflict."""
    fs = make(on_conflict=policy)
    source.fs.pipe_file("a", b"old")
    fs.cat_file("a")
    source.control.break_off("ConnectionError", "mv", times=1)
    fs.pipe_file("a", b"ours")
    clock.move(6)
    sent(fs)
    fs.pipe_file("a", b"newer")
    clock.move(6)
    sent(fs)
    assert fs.unsent() == []
    assert source.files() == {"a": b"newer"}
    assert "somebody else" not in caplog.text


def test_opens_what_was_sent(fs, make, source, clock):
    """What this process sent a moment ago is not opened in place of what another one has sent since."""
    fs.pipe_file("a", b"first")
    fs.flush()
    fs.pipe_file("a", b"second")
    make().flush()
    assert fs.cat_file("a") == b"second"


def test_older_content_sent_late(fs, make, source, clock):
    """Nor is what this process sent, while it was written anew."""
    fs.pipe_file("a", b"first")
    clock.move(6)
    with source.control.holding("put"):
        thread = threading.Thread(target=sent, args=(fs,))
        thread.start()
        wait_for(source.control.unfinished)
        make().pipe_file("a", b"second")
    thread.join()
    make().flush()
    assert fs.cat_file("a") == b"second"


# Flushing


def test_flush(fs, source):
    """A flush sends at once, one path or all; what fails is told, and stays."""
    for name in ("a", "d/b", "d/c"):
        fs.pipe_file(name, b"content")
    fs.flush(path="d")
    assert paths(fs) == ["a"]
    source.control.fail("ConnectionError", "put")
    with pytest.raises(UploadError, match="ConnectionError") as raised:
        fs.flush()
    assert list(raised.value.failed) == ["a"]
    assert paths(fs) == ["a"]
    source.control.forget_orders()
    fs.close()
    assert fs.unsent() == []


def test_flush_timeout(fs, source):
    """A flush gives up when its time is over, whatever the source does."""
    fs.pipe_file("a", b"content")
    with source.control.holding("put"), pytest.raises(UploadError, match="in time"):
        fs.flush(timeout=0.05)
    fs.flush()
    assert source.files() == {"a": b"content"}


def test_threads(source, base_dir):
    """Threads send what is written, without being told."""
    fs = source.make(base_dir, write_after=0, max_uploads=2)
    for name in "abcdef":
        fs.pipe_file(name, b"content")
    wait_for(lambda: not fs.unsent())
    assert sorted(source.files()) == list("abcdef")


def test_taken_over(fs, source, base_dir):
    """Who opens the source sends what a process has left that is gone."""
    fs.pipe_file("a", b"content")  # It sends nothing by itself.
    other = source.make(base_dir, write="through")
    other.sender.clock = lambda: time.time() + 10
    other.uploader.start()
    wait_for(lambda: not fs.unsent())
    assert source.files() == {"a": b"content"}


READING = {
    "open": lambda fs: fs.open("old").close(),
    "cat_file": lambda fs: fs.cat_file("old"),
    "cat_ranges": lambda fs: fs.cat_ranges(["old"], 0, 1),
    "info": lambda fs: fs.info("old"),
    "ls": lambda fs: fs.ls(""),
}


@pytest.mark.parametrize("way", READING)
def test_taken_over_while_open(source, base_dir, spawn, monkeypatch, way):
    """A process that has the source open sends what a killed one has left, when it reads something a minute later."""
    source.fs.pipe_file("old", b"content")
    fs = source.make(base_dir)
    READING[way](fs)
    killed = source.make(base_dir, write_after=0, max_uploads=0)
    program = "    import signal\n    fs.pipe_file('a', b'content')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    process = spawn(backed.PROGRAM + program, backed.HELPERS, killed.to_json())
    process.communicate()
    assert process.returncode == -9
    READING[way](fs)
    assert not fs.uploader._threads
    later = time.monotonic() + 60
    monkeypatch.setattr(fs.uploader, "_monotonic", lambda: later)
    READING[way](fs)
    wait_for(lambda: source.files() == {"old": b"content", "a": b"content"})
    wait_for(lambda: not fs.uploader._threads)
    READING[way](fs)
    assert not fs.uploader._threads


def test_fork(source, base_dir):
    """A forked child sends what it writes itself."""
    fs = source.make(base_dir, write_after=0)
    fs.pipe_file("a", b"parent")
    wait_for(lambda: not fs.unsent())
    pid = os.fork()
    if not pid:
        try:
            fs.pipe_file("b", b"child")
            wait_for(lambda: not fs.unsent())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert source.files() == {"a": b"parent", "b": b"child"}


def test_end_of_process(fs, source, caplog):
    """At the end of a process one line in the log says how many files are unsent."""
    fs.pipe_file("a", b"")
    fs.pipe_file("b", b"")
    with caplog.at_level(logging.WARNING):
        fs.uploader.report_at_end()
    assert "2 files are not sent" in caplog.text


# Listings


def test_listings(fs, source):
    """Listings have what was written, lack what was removed, and show directories that only unsent files are in."""
    source.fs.makedirs("d")
    source.fs.pipe_file("d/old", b"old")
    source.fs.pipe_file("d/gone", b"gone")
    fs.pipe_file("d/new", b"new")
    fs.pipe_file("d/old", b"newer")
    fs.pipe_file("x/y/z", b"deep")
    source.control.fail("ConnectionError", "rm")
    fs.pipe_file("d/gone", b"g")
    fs.rm("d/gone")
    assert {row["name"]: row["size"] for row in fs.ls("d")} == {"d/new": 3, "d/old": 5}
    assert sorted(fs.find("")) == ["d/new", "d/old", "x/y/z"]
    assert sorted(fs.glob("d/*")) == ["d/new", "d/old"]
    assert fs.isdir("x/y")
    assert fs.isfile("x/y/z")
    assert fs.du("") == 12
    assert not fs.exists("d/gone")
    assert not fs.exists("x/q")
    assert [name for _, _, names in fs.walk("x") for name in names] == ["z"]
    with pytest.raises(FileNotFoundError):
        fs.ls("nowhere")


def test_kept_listings(make, source, clock):
    """Listings that are kept have what another process has sent, and lack what it has removed."""
    fs, other = make(listings_expiry_time=600), make(listings_expiry_time=600)
    source.fs.makedirs("d")
    source.fs.pipe_file("d/old", b"old")
    for each in (fs, other):
        assert each.ls("d", detail=False) == ["d/old"]
    fs.pipe_file("d/new", b"new")
    fs.rm("d/old")
    for each in (fs, other):
        assert each.ls("d", detail=False) == ["d/new"]
    other.flush()
    for each in (fs, other):
        assert each.ls("d", detail=False) == ["d/new"]
        assert each.info("d/new")["size"] == 3
        assert not each.exists("d/old")
    fs.pipe_file("d/new", b"removed")
    fs.rm("d/new")
    for each in (fs, other):
        assert not each.exists("d/new")
        assert each.ls("d", detail=False) == []


def test_known_version(make, source, clock):
    """With `check` in seconds, what was sent is opened then, and not the version before, however long that is valid."""
    fs = make(check=600)
    other = make(check=600)
    source.fs.pipe_file("a", b"old")
    assert (fs.cat_file("a"), other.cat_file("a")) == (b"old", b"old")
    fs.pipe_file("a", b"new")
    other.flush()
    assert (fs.cat_file("a"), other.cat_file("a")) == (b"new", b"new")


def test_unreadable_record(fs, caplog):
    """An unsent file whose record says nothing is kept, and that is told."""
    fs.store.unsent.accept(b"key", b"no record")
    assert fs.unsent() == []
    assert "cannot be read" in caplog.text
    assert fs.store.unsent.find(b"key") is not None


def test_listed_while_sent(fs, source, clock):
    """A file that is sent while a directory is listed is not missing there."""
    fs.pipe_file("a", b"content")
    ask = fs.fs.ls

    def send_after_answer(*arguments, **options):
        rows = ask(*arguments, **options)
        fs.flush()
        return rows

    fs.fs.ls = send_after_answer
    assert fs.ls("", detail=False) == ["a"]


# Removing, renaming, copying


def test_removed_before_sent(fs, source, clock):
    """What is removed before it was sent is never sent."""
    fs.pipe_file("a", b"content")
    fs.rm("a")
    assert not fs.exists("a")
    with pytest.raises(FileNotFoundError):
        fs.rm("a")
    clock.move(6)
    sent(fs)
    assert fs.unsent() == []
    assert source.control.requests("put") == []


def test_removed_with_older_version(fs, source, clock):
    """What is removed is removed at the source too, when that can be."""
    source.fs.pipe_file("a", b"old")
    source.control.fail("ConnectionError", "rm")
    fs.pipe_file("a", b"new")
    fs.rm("a")
    assert not fs.exists("a")
    with pytest.raises(FileNotFoundError):
        fs.cat_file("a")
    with pytest.raises(FileNotFoundError):
        fs.rm("a")
    assert source.files() == {"a": b"old"}
    assert [(each.path, each.removed) for each in fs.unsent()] == [("a", True)]
    source.control.forget_orders()
    clock.move(6)
    sent(fs)
    assert source.files() == {}
    assert fs.unsent() == []


def test_written_after_removal(fs, source):
    """What is written anew after it was removed is sent, and the removal is not."""
    source.control.fail("ConnectionError", "rm")
    fs.pipe_file("a", b"first")
    fs.rm("a")
    fs.pipe_file("a", b"second")
    source.control.forget_orders()
    fs.flush()
    assert source.files() == {"a": b"second"}


def test_renamed(fs, source):
    """Of a file that is renamed before it was sent, the source sees the new name only."""
    fs.pipe_file("a", b"content")
    fs.mv("a", "b")
    assert fs.find("") == ["b"]
    fs.flush()
    assert source.files() == {"b": b"content"}
    assert {each.path for each in source.control.changes() if "." not in each.path} == {"b"}


def test_copied(fs, source):
    """Of a file that is copied before it was sent, the source gets both."""
    fs.pipe_file("a", b"content")
    fs.cp_file("a", "b")
    fs.flush()
    assert source.files() == {"a": b"content", "b": b"content"}


@pytest.mark.parametrize("write", ["back", "through"])
def test_directory_copied(fs, make, source, write):
    """A directory that the source does not have yet is copied with all that is in it."""
    fs.pipe_file("d/e/a", b"content")
    other = make(write=write)
    other.cp("d", "x", recursive=True)
    assert other.find("") == ["d/e/a", "x/e/a"]
    fs.flush()
    assert source.files() == {"d/e/a": b"content", "x/e/a": b"content"}


def test_renamed_onto_unsent(fs, source):
    """A file of the source that is renamed to the name of an unsent one takes its place."""
    source.fs.pipe_file("a", b"source's")
    fs.pipe_file("b", b"unsent")
    fs.mv("a", "b")
    assert fs.cat_file("b") == b"source's"
    fs.flush()
    assert source.files() == {"b": b"source's"}


def test_directory_renamed(fs, source):
    """With a directory, what is unsent in it is renamed, what is not too, and what was removed stays removed."""
    source.fs.makedirs("d")
    for name in ("d/sent", "d/both", "d/gone"):
        source.fs.pipe_file(name, b"old")
    fs.pipe_file("d/both", b"new")
    fs.pipe_file("d/only", b"new")
    source.control.fail("ConnectionError", "rm", "d/gone", times=1)
    fs.pipe_file("d/gone", b"")
    fs.rm("d/gone")
    fs.mv("d", "e", recursive=True)
    expected = {"e/sent": b"old", "e/both": b"new", "e/only": b"new"}
    assert {path: fs.cat_file(path) for path in fs.find("")} == expected
    fs.flush()
    assert source.files() == expected


def test_directory_removed(fs, source):
    """With a directory, what is unsent in it is removed, and what is not."""
    source.fs.makedirs("d")
    source.fs.pipe_file("d/sent", b"old")
    fs.pipe_file("d/unsent", b"new")
    fs.pipe_file("other", b"stays")
    fs.rm("d", recursive=True)
    assert fs.find("") == ["other"]
    fs.flush()
    assert source.files() == {"other": b"stays"}


def test_copied_beside_many_unsent(fs, source, monkeypatch):
    """To copy a file of the source does not look at the unsent files, of which there may be thousands."""
    source.fs.pipe_file("a", b"content")
    looks = []
    monkeypatch.setattr(fs.uploader, "files", lambda *_: looks.append(1) or [])
    fs.cp_file("a", "b")
    assert source.files() == {"a": b"content", "b": b"content"}
    assert not looks


def test_rmdir(fs, source):
    """A directory that unsent files are in is not empty."""
    source.fs.makedirs("d")
    fs.pipe_file("d/a", b"")
    with pytest.raises(OSError) as raised:
        fs.rmdir("d")
    assert raised.value.errno == errno.ENOTEMPTY
    assert paths(fs) == ["d/a"]


def test_through_beside_back(fs, make, source):
    """A filesystem that writes through sends first what is unsent, so that nothing older comes after it."""
    through = make(write="through")
    fs.pipe_file("a", b"older")
    through.pipe_file("a", b"newer")
    fs.flush()
    assert source.files() == {"a": b"newer"}
    fs.pipe_file("b", b"unsent")
    source.control.fail("ConnectionError", "put")
    with pytest.raises(UploadError):
        through.pipe_file("b", b"newer")
    assert fs.cat_file("b") == b"unsent"
    source.control.forget_orders()
    through.rm("b")
    fs.flush()
    assert source.files() == {"a": b"newer"}


def test_list_of_a_directory_and_unsent_files_removed(fs, source):
    """A directory of the source goes, although a file beside it in the list was never sent."""
    source.fs.makedirs("d/e")
    source.fs.pipe_file("d/e/a", b"sent")
    fs.pipe_file("d/b", b"unsent")
    fs.rm(["d/b", "d/e"], recursive=True)
    assert fs.find("") == []
    assert source.files() == {}
