"""
Losses that users of other caches that write back have reported, each put to this one.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")

from dogpile_filesystem.remote import UploadError  # noqa: E402 - it needs fsspec

BIG = b"content!" * (3 * backed.cached.BLOCK_SIZE // 8)


@pytest.fixture
def run(spawn, make):
    """
    Runs a program that has a filesystem ``fs`` that sends nothing by itself, and ends by a kill of its own.
    """

    def run(program):
        process = spawn(backed.PROGRAM + program, backed.HELPERS, make().to_json())
        process.communicate()
        assert process.returncode == -9

    return run


KILL = """
    import signal
    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
"""
WRITTEN = """
    with fs.open("d/a", "wb") as file:
        for _ in range(3):
            file.write(b"content!" * (fs.options.block_size // 8))
"""


def test_never_sent_after_restart(run, make, source):
    """A file whose process was killed right after it was closed is read and listed by the next one, which sends it."""
    run(KILL + WRITTEN + "    kill()\n")
    fs = make()
    assert fs.cat_file("d/a") == BIG
    assert fs.find("") == ["d/a"]
    fs.flush()
    assert source.files() == {"d/a": BIG}
    assert make().cat_file("d/a") == BIG


def test_recovered_upload_is_removed(run, make, source):
    """A file whose process was killed while it sent it is read whole by the next one, and gone once it is removed."""
    for place in ("before", "behind"):
        put = "kill" if place == "before" else "lambda *a, **o: (put(*a, **o), kill())"
        run(f"{KILL}{WRITTEN}    put = fs.uploads.put_held\n    fs.uploads.put_held = {put}\n    fs.flush()\n")
        fs = make()
        assert fs.cat_file("d/a") == BIG
        assert fs.info("d/a")["size"] == len(BIG)
        fs.rm("d/a")
        fs.flush()
        assert not fs.exists("d/a")
        assert (fs.unsent(), source.files()) == ([], {})
        assert not make().exists("d/a")


def test_last_failed_try(make, source, clock):
    """No number of failed tries, and no kind of failure, has a file given up."""
    fs = make()
    fs.pipe_file("a", b"content")
    for error in ("ConnectionError", "PermissionError", "EDQUOT", "EINVAL", "FileNotFoundError"):
        source.control.fail(error, "put")
        for _ in range(20):
            clock.now += 100_000
            fs.uploader.run()
        assert fs.cat_file("a") == b"content"
        assert [each.path for each in make().unsent()] == ["a"]
        source.control.forget_orders()
    fs.flush()
    assert source.files() == {"a": b"content"}


def test_two_sources_on_one_directory(make, base_dir, tmp_path, source, clock):
    """Of two sources on one directory, each gets its own file of the same name, and is not asked for the other's."""
    (tmp_path / "other").mkdir()
    other_source = backed.Flaky(tmp_path / "other")
    fs, other = make(), other_source.make(base_dir, clock)
    fs.pipe_file("a", b"one")
    other.pipe_file("a", b"the other")
    assert (fs.cat_file("a"), other.cat_file("a")) == (b"one", b"the other")
    fs.rm("a")
    assert other.cat_file("a") == b"the other"
    fs.pipe_file("a", b"one again")
    fs.close()
    assert [each.path for each in other.unsent()] == ["a"]
    other.close()
    assert (source.files(), other_source.files()) == ({"a": b"one again"}, {"a": b"the other"})


def test_one_directory_in_two_processes(run, make, source):
    """What two processes write on one directory, neither takes for a leftover of the other."""
    fs = make()
    with fs.open("open", "wb") as file:
        file.write(BIG)
        file.flush()
        run(f"{KILL}{WRITTEN}    fs.unsent()\n    fs.store.prune()\n    fs.store.clear()\n    kill()\n")
        assert [each.path for each in make().unsent()] == ["d/a"]
        file.write(b"end")
    fs.flush()
    assert source.files() == {"open": BIG + b"end", "d/a": BIG}


def test_start_with_many(make, source):
    """To start with many unsent files asks the source for nothing, and writes nothing."""
    fs = make()
    for number in range(300):
        fs.touch(f"a{number}")
    source.control.forget_requests()
    before = os.stat(f"{fs.store.base_dir}/unsent").st_mtime_ns
    with source.control.holding("info"), source.control.holding("put"):
        assert len(make().unsent()) == 300
    assert source.control.requests() == []
    assert os.stat(f"{fs.store.base_dir}/unsent").st_mtime_ns == before


@pytest.mark.parametrize("listings_expiry_time", [0, 600])
def test_listed_while_sent(make, source, monkeypatch, listings_expiry_time):
    """A file is listed before, while and after it is sent, by each filesystem of the cache."""
    fs, other = (make(listings_expiry_time=listings_expiry_time) for _ in range(2))
    source.fs.makedirs("d")
    assert other.ls("d") == []
    seen = []

    def look():
        for each in (fs, other):
            row = each.ls("d", detail=False), each.find(""), each.exists("d/a"), each.info("d/a")["size"]
            seen.append(row)

    put, remove = fs.uploads.put_held, type(fs.store.unsent).remove

    def looking(function):
        def call(*arguments):
            look()
            found = function(*arguments)
            look()
            return found

        return call

    fs.pipe_file("d/a", BIG)
    look()
    monkeypatch.setattr(fs.uploads, "put_held", looking(put))
    monkeypatch.setattr(type(fs.store.unsent), "remove", looking(remove))
    fs.flush()
    look()
    assert source.files() == {"d/a": BIG}
    assert len(seen) == 12
    assert {str(each) for each in seen} == {str((["d/a"], ["d/a"], True, len(BIG)))}


@pytest.mark.parametrize("write", ["through", "back"])
def test_failed_upload_read_as_sent(make, source, write):
    """What the source did not take is not served as if it had: it raises at `close`, or is listed as unsent."""
    source.fs.pipe_file("a", b"old")
    fs = make(write=write)
    assert fs.cat_file("a") == b"old"
    source.control.fail("ConnectionError", "put")
    if write == "through":
        with pytest.raises(ConnectionError):
            fs.pipe_file("a", b"new")
        assert (fs.cat_file("a"), make().cat_file("a")) == (b"old", b"old")
        return
    fs.pipe_file("a", b"new")
    with pytest.raises(UploadError):
        fs.flush()
    assert [each.path for each in make().unsent()] == ["a"]
    assert make().cat_file("a") == b"new"


def test_cache_full_of_reads(make, source):
    """Files that are read, however many, evict no unsent one; nor does clearing the cache."""
    fs = make(cache_size=8 * backed.cached.BLOCK_SIZE)
    fs.pipe_file("mine", BIG)
    for number in range(20):
        source.fs.pipe_file(f"theirs{number}", bytes([number]) * backed.cached.BLOCK_SIZE)
        assert fs.cat_file(f"theirs{number}") == bytes([number]) * backed.cached.BLOCK_SIZE
    fs.store.clear()
    fs.invalidate_cache()
    assert fs.cat_file("mine") == BIG
    fs.flush()
    assert source.files()["mine"] == BIG


def test_renamed_directory_is_not_sent_to_its_old_name(make, source):
    """A directory that is renamed while its files are unsent comes to the source by its new name only."""
    fs = make()
    for name in ("a", "b/c"):
        fs.pipe_file(f"old/{name}", name.encode())
    fs.mv("old", "new", recursive=True)
    fs.flush()
    assert source.files() == {"new/a": b"a", "new/b/c": b"b/c"}
    assert not fs.exists("old")


def test_source_down_at_start(make, source):
    """A process that starts while the source is down reads, writes and removes what is unsent."""
    make().pipe_file("a", b"first")
    source.control.fail("ConnectionError")
    fs = make()
    assert fs.cat_file("a") == b"first"
    fs.pipe_file("a", b"second")
    fs.pipe_file("b", b"gone")
    fs.rm_file("b")
    source.control.forget_orders()
    fs.flush()
    assert source.files() == {"a": b"second"}
