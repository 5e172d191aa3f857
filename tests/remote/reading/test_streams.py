"""
Sources without a length or without ranges: a file is read through once, in order, whoever reads it and wherever.
"""

from __future__ import annotations

import gc
import os
import pickle
import threading
from hashlib import sha256

import pytest
from forked import Child
from http_store import http_store
from serving import wait_for

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from dogpile_filesystem.remote import SourceChanged  # noqa: E402 - after those that may be missing
from dogpile_filesystem.remote.reading import stream  # noqa: E402 - likewise
from dogpile_filesystem.remote.reading.passage import Passage  # noqa: E402 - likewise

BLOCK = cached.BLOCK_SIZE
CONTENT = cached.noise(10 * BLOCK + 1234, 3)
NEW = cached.noise(10 * BLOCK + 1234, 4)
SIZE = len(CONTENT)


@pytest.fixture
def fs(make, source):
    source.control.hide_length()
    source.write("a", CONTENT)
    return make()


def streams(source):
    """How often the file was read through since the last time that this was called, when all streams are over."""
    wait_for(lambda: not source.control.unfinished())
    return source.asked("stream")


def test_read(fs, source):
    """A file of unknown length is read in order, from one request; and then from the cache."""
    with fs.open("a") as file:
        assert b"".join(iter(lambda: file.read(50_000), b"")) == CONTENT
        assert file.read(10) == b""
        assert file.size == SIZE
    assert streams(source) == 1
    with fs.open("a") as file:
        assert file.read() == CONTENT
        assert file.read() == b""
    assert fs.cat_file("a") == CONTENT
    assert streams(source) == 0


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_lengths(fs, source, length):
    """A file ends where it ends, also at the end of a block, and its length is known then: cold and warm."""
    source.write("b", CONTENT[:length])
    for _ in range(2):
        with fs.open("b") as file:
            assert file.read(length + 1) == CONTENT[:length]
            assert file.read(1) == b""
            assert (file.size, file.seek(0, os.SEEK_END)) == (length, length)
    assert streams(source) == 1
    with fs.open("b") as file:
        assert file.size == length
    assert streams(source) == 0


def test_seek(fs, source):
    """A reader that seeks back and forward waits for what it has not, and reads the rest from the cache."""
    with fs.open("a") as file:
        file.seek(5 * BLOCK + 3)
        assert file.read(10) == CONTENT[5 * BLOCK + 3 : 5 * BLOCK + 13]
        file.seek(7)
        assert file.read(10) == CONTENT[7:17]
        file.seek(-10, os.SEEK_END)
        assert file.read(20) == CONTENT[-10:]
        file.seek(SIZE + BLOCK)
        assert file.read(1) == b""
        assert file.size == SIZE
    assert streams(source) == 1


@pytest.mark.parametrize(
    ("start", "end"),
    [(None, None), (0, 10), (None, 5), (-10, None), (-10, -5), (BLOCK, 3 * BLOCK), (SIZE, None)],
)
def test_cat_file(fs, source, start, end):
    """A part of a file of unknown length is what Python's slices say, cold and warm."""
    for _ in range(2):
        assert fs.cat_file("a", start, end) == CONTENT[start:end]
    assert streams(source) == 1


def test_end_far_behind(fs):
    """A part that is said to end far behind the file takes no more memory than the file has bytes."""
    assert fs.cat_file("a", 0, 1 << 60) == CONTENT
    assert fs.cat_ranges(["a", "a"], [0, 5], [1, 1 << 60]) == [CONTENT[:1], CONTENT[5:]]


def test_many_readers(fs, make, source):
    """Readers in many threads, at different places, share one request."""
    other, found = make(), []

    def read(fs, start):
        with fs.open("a") as file:
            file.seek(start)
            found.append(file.read() == CONTENT[start:])

    threads = [
        threading.Thread(target=read, args=(each, number * BLOCK + 7)) for each in (fs, other) for number in range(8)
    ]
    with source.control.holding("stream"):
        for thread in threads:
            thread.start()
        wait_for(source.control.unfinished)
    for thread in threads:
        thread.join()
    assert found == [True] * 16
    assert streams(source) == 1


def test_stream_ends_as_a_reader_looks(fs, make, source, monkeypatch):
    """A reader whose block comes between its look and its own request does not have the file read once more."""
    other, looks = make(), []
    has_part = fs.store.has_part

    def look_early(key):
        found = has_part(key)
        looks.append(found)
        if len(looks) == 1:
            assert other.cat_file("a") == CONTENT
        return found

    monkeypatch.setattr(fs.store, "has_part", look_early)
    with fs.open("a") as file:
        assert file.read() == CONTENT
    assert looks[0] is None
    assert streams(source) == 1


READER = """
    with fs.open("a") as file:
        file.seek(int(sys.argv[3]))
        print("reading", flush=True)
        data = file.read()
    from hashlib import sha256
    print(sha256(data).hexdigest(), flush=True)
"""


def test_many_processes(fs, source, start):
    """Readers in many processes, at different places, share one request."""
    with source.control.holding("stream"):
        readers = [start(fs, READER, number * BLOCK + 7) for number in range(3)]
        assert [reader.stdout.readline() for reader in readers] == ["reading\n"] * 3
        wait_for(source.control.unfinished)
    for number, reader in enumerate(readers):
        assert reader.stdout.readline().strip() == sha256(CONTENT[number * BLOCK + 7 :]).hexdigest()
    assert streams(source) == 1


def test_killed_process(fs, source, start):
    """When the process that reads a file through is killed, the next reader begins anew, at once."""
    with source.control.holding("stream"):
        reader = start(fs, READER, 0)
        assert reader.stdout.readline() == "reading\n"
        wait_for(source.control.unfinished)
        reader.kill()
        reader.wait()
    assert fs.cat_file("a") == CONTENT


def test_forked_child(fs, source):
    """A forked child does not wait for a thread that only its parent has, and gets all bytes, as the parent does."""
    with source.control.holding("stream"):
        file = fs.open("a")
        thread = threading.Thread(target=file.read, args=(1,))
        thread.start()
        wait_for(source.control.unfinished)
        child = Child(lambda: fs.cat_file("a"))
    assert child.result() == CONTENT
    thread.join()
    assert file.read() == CONTENT[1:]
    assert streams(source) == 1


def test_open_file_in_forked_child(make, source):
    """A child that goes on with an open file that was read past the cache takes no bytes away from its parent."""
    source.control.hide_length()
    source.write("a", CONTENT)
    fs = make(cache_size=BLOCK)
    with fs.open("a") as file:
        assert file.read(10) == CONTENT[:10]
        assert Child(file.read).result() == CONTENT[10:]
        assert file.read() == CONTENT[10:]


def test_source_fails_in_the_middle(fs, source, monkeypatch):
    """An error of the source reaches the reader that comes to it, what came before is kept, and later all comes."""
    read_on, blocks = fs.source.read_on, {}

    def fail(file, length):
        blocks[file] = blocks.get(file, 0) + 1
        if is_broken and blocks[file] > 3:
            raise ConnectionError("broken")
        return read_on(file, length)

    is_broken = True
    monkeypatch.setattr(fs.source, "read_on", fail)
    with fs.open("a") as file:
        assert file.read(3 * BLOCK) == CONTENT[: 3 * BLOCK]
        with pytest.raises(ConnectionError, match="broken"):
            file.read(1)
        is_broken = False
        assert file.read(1) == CONTENT[3 * BLOCK : 3 * BLOCK + 1]
        file.seek(0)
        assert file.read() == CONTENT


def test_open_fails(fs, source):
    """A file that cannot be opened at the source raises what the source raises, and can be opened later."""
    source.control.fail("EIO", "stream", times=1)
    with fs.open("a") as file:
        with pytest.raises(OSError, match="Input/output"):
            file.read(1)
        assert file.read() == CONTENT


def test_change_before_anything_was_read(fs, source):
    """A reader that has read nothing gets the version that the source has by then."""
    with fs.open("a") as file:
        source.write("a", NEW)
        assert file.read() == NEW
    fs.forget("a")
    source.control.replace("a", CONTENT, "stream")
    with fs.open("a") as file:
        file.seek(3)
        assert file.read() == CONTENT[3:]


def test_change_while_it_is_read(make, source):
    """A reader that has read something gets an error, never bytes of another version."""
    source.control.hide_length()
    source.write("a", CONTENT)
    fs = make()
    with fs.open("a") as file:
        assert file.identity
        source.write("a", NEW)
        with pytest.raises(SourceChanged):
            file.read()
    assert fs.cat_file("a") == NEW


def test_rewritten_in_place(make, source, clock):
    """A file that is rewritten while it comes is noticed behind each block, by readers past the cache too."""
    source.control.hide_length()
    for arguments in ({}, {"cache_size": 2 * BLOCK}):
        source.write("a", CONTENT)
        fs = make(**arguments)
        with fs.open("a") as file:
            assert file.read(10) == CONTENT[:10]
            with open(source.root / "a", "r+b") as rewritten:
                rewritten.write(NEW)
            found = []
            try:
                while data := file.read(BLOCK):
                    found.append(data)
            except SourceChanged:
                pass
            read = b"".join(found)
            assert read == CONTENT[10 : 10 + len(read)]
        clock.move(1)
        assert fs.cat_file("a") == NEW


def test_size_while_another_thread_reads(make, source, monkeypatch):
    """The length of a file that cannot be kept is asked by one thread while another one reads: both are right."""
    source.control.hide_length()
    source.write("a", CONTENT)
    file, sizes = make(cache_size=4096).open("a"), []
    original, threads = Passage.next, []

    def ask_for_size():
        sizes.append(file.size)

    def next_block(passage):
        data = original(passage)
        if passage.position == 2 * BLOCK and not threads:
            threads.append(threading.Thread(target=ask_for_size))
            threads[0].start()
            threads[0].join()
        return data

    monkeypatch.setattr(Passage, "next", next_block)
    with file:
        assert b"".join(iter(lambda: file.read(5000), b"")) == CONTENT
    assert sizes == [SIZE]


@pytest.mark.parametrize("cache_size", [4096, 2 * BLOCK, 6 * BLOCK])
def test_no_room(make, source, cache_size, usage_on_disk):
    """A file that does not fit is read right, as a whole, in parts, backwards; its length is right too."""
    source.control.hide_length()
    source.write("a", CONTENT)
    fs = make(cache_size=cache_size)
    assert fs.cat_file("a") == CONTENT
    with fs.open("a") as file:
        file.seek(5 * BLOCK + 3)
        assert file.read(10) == CONTENT[5 * BLOCK + 3 : 5 * BLOCK + 13]
        file.seek(7)
        assert file.read(10) == CONTENT[7:17]
        file.seek(2 * SIZE)
        assert file.read(1) == b""
        assert file.size == SIZE
        file.seek(-5, os.SEEK_END)
        assert file.read() == CONTENT[-5:]
    # The ledger may have more in it for a moment, while room is being made.
    assert usage_on_disk().size <= cache_size


def test_stream_ends_where_nothing_is_kept(make, source):
    """Where no block can be kept, the file is not read through for nothing: each reader reads it once for itself."""
    source.control.hide_length()
    source.write("a", CONTENT)
    fs = make(cache_size=4096)
    assert fs.cat_file("a") == CONTENT
    wait_for(lambda: not source.control.unfinished())
    sent = [each.answered for each in source.control.requests("stream")]
    assert sorted(sent) == [BLOCK, SIZE]


def test_hanging_process(make, source, start):
    """A reader does not wait for ever for a process that hangs: it reads the file through for itself."""
    source.control.hide_length()
    source.write("a", CONTENT)
    fs = make(lock_timeout=0.05)
    with source.control.holding("stream", times=1):
        reader = start(fs, READER, 0)
        assert reader.stdout.readline() == "reading\n"
        wait_for(source.control.unfinished)
        assert fs.cat_file("a") == CONTENT


def test_hanging_thread(make, source):
    """Nor for a thread of its own process that hangs."""
    source.control.hide_length()
    source.write("a", CONTENT)
    fs = make(lock_timeout=0.05)
    with source.control.holding("stream", times=1):
        thread = threading.Thread(target=fs.cat_file, args=("a",))
        thread.start()
        wait_for(source.control.unfinished)
        assert fs.cat_file("a") == CONTENT
    thread.join()


def test_no_thread(make, source, monkeypatch):
    """Where no thread can be begun, as when the interpreter ends, the reader reads the file for itself."""
    source.control.hide_length()
    source.write("a", CONTENT)
    fs = make()

    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(stream.threading.Thread, "start", refuse)
        assert fs.cat_file("a") == CONTENT
    # The mutex is free again.
    source.control.forget_requests()
    assert fs.cat_file("a") == CONTENT
    assert fs.stats().entries == 12


def test_lost_blocks(fs, source):
    """Blocks that are lost from the cache come again."""
    fs.cat_file("a")
    fs.store.clear()
    with fs.open("a") as file:
        assert file.read(3 * BLOCK) == CONTENT[: 3 * BLOCK]
        wait_for(lambda: not source.control.unfinished())
        fs.store.clear()
        assert file.read() == CONTENT[3 * BLOCK :]


def test_counts(fs, counts):
    """Openings, blocks and bytes of streams are counted as those of other files."""
    with fs.open("a") as file:
        file.read()
    found = counts(fs)
    assert found["open_misses"] == 1
    assert (found["block_misses"], found["source_bytes"], found["cache_bytes"]) == (11, SIZE, SIZE)
    with fs.open("a") as file:
        file.read()
    found = counts(fs)
    assert (found["open_hits"], found["open_misses"], found["cache_bytes"]) == (1, 1, 2 * SIZE)


def test_old_blocks_are_removed(fs, source, clock):
    """When the source has a new version, the blocks of the one before leave the cache."""
    fs.cat_file("a")
    assert fs.stats().entries == 12
    source.write("a", b"new")
    clock.move(1)
    assert fs.cat_file("a") == b"new"
    assert fs.stats().entries == 2


def test_pickle(fs):
    """An open file of unknown length can be pickled."""
    with fs.open("a") as file:
        assert file.read(10) == CONTENT[:10]
        assert pickle.loads(pickle.dumps(file)).read() == CONTENT[10:]


def test_get(fs, tmp_path):
    """A file of unknown length is copied to the local disk; the callback is told no size."""
    callback = fsspec.Callback()
    fs.get_file("a", tmp_path / "copy", callback=callback)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert (callback.size, callback.value) == (None, SIZE)
    with open(fs.open_local("a"), "rb") as file:
        assert file.read() == CONTENT


def test_no_thread_stays(fs):
    """The threads of streams end with them."""
    fs.cat_file("a")
    wait_for(lambda: not [each for each in threading.enumerate() if "stream" in each.name])
    gc.collect()
    assert not stream._streams


# Over HTTP


@pytest.fixture
def http(tmp_path):
    directory = tmp_path / "http"
    directory.mkdir()
    (directory / "a").write_bytes(CONTENT)
    with http_store(directory) as store:
        yield store


@pytest.fixture
def web(base_dir):
    def make(**arguments):
        arguments = {"base_dir": base_dir, "block_size": BLOCK, **arguments}
        return fsspec.filesystem("dogpile", target_protocol="http", skip_instance_cache=True, **arguments)

    return make


def use(fs, url, size):
    assert fs.cat_file(url, BLOCK - 5, BLOCK + 5) == CONTENT[BLOCK - 5 : BLOCK + 5]
    assert fs.cat_file(url) == CONTENT
    with fs.open(url) as file:
        file.seek(5 * BLOCK)
        assert file.read(10) == CONTENT[5 * BLOCK : 5 * BLOCK + 10]
        file.seek(3)
        assert file.read() == CONTENT[3:]
    assert fs.info(url)["size"] == size


@pytest.mark.parametrize("gzip", [None, "always"])
def test_http_without_length(http, web, gzip):
    """A web server that tells an etag, but no length, is asked for the file once."""
    http.length, http.gzip = False, gzip
    fs = web()
    use(fs, f"{http.url}/a", None)
    whole = [each for each in http.answered("GET") if each.sent >= (1 if gzip else SIZE)]
    assert len(whole) <= 1 or fs.stats().process.source.source_bytes == SIZE
    assert fs.stats().process.source.source_bytes == SIZE


def test_http_without_ranges(http, web):
    """A web server that answers each range with the whole file is asked for it once."""
    http.ranges = False
    use(web(), f"{http.url}/a", SIZE)
    assert http.sent() == SIZE


def test_http_that_refuses_ranges(http, web, monkeypatch):
    """A file of a web server that says that it answers no ranges is read through, in order."""
    http.ranges = False
    fs = web()
    info = fs.fs.info
    monkeypatch.setattr(fs.fs, "info", lambda path: {**info(path), "partial": False})
    use(fs, f"{http.url}/a", SIZE)
    assert http.sent() == SIZE


def test_bare_http(http, web):
    """A web server that tells nothing is read through each time with "always", and once in so many seconds."""
    http.bare()
    url = f"{http.url}/a"
    fs = web()
    assert fs.cat_file(url) == CONTENT
    assert fs.cat_file(url, 5, 10) == CONTENT[5:10]
    assert fs.stats().entries == 0
    fs = web(check=3600)
    use(fs, url, None)
    http.forget()
    use(fs, url, None)
    assert http.answered() == []
