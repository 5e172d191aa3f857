"""
What is read through the cache is what lies at the source, in every way of reading, cold and warm.
"""

from __future__ import annotations

import builtins
import errno
import gzip
import multiprocessing
import os
import pickle
import stat
import threading
import zipfile
from pathlib import Path

import cases
import pytest
from forked import Child
from http_store import http_store
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from fsspec.callbacks import NoOpCallback  # noqa: E402 - after those that may be missing

from dogpile_filesystem.layout import PART  # noqa: E402 - likewise
from dogpile_filesystem.remote import beside  # noqa: E402 - likewise

BLOCK = cached.BLOCK_SIZE
#: Ten blocks and a part of one.
CONTENT = cached.noise(10 * BLOCK + 1234)
SIZE = len(CONTENT)
LINES = b"".join(b"line %d\n" % number for number in range(20_000))


@pytest.fixture(params=["cold", "warm"])
def path(request, source, fs):
    """
    A file at the source: not in the cache, or all of it.
    """
    source.write("a/b.bin", CONTENT)
    source.write("a/lines.txt", LINES)
    source.write("a/empty", b"")
    if request.param == "warm":
        for name in ("a/b.bin", "a/lines.txt", "a/empty"):
            fs.cat_file(name)
    return "a/b.bin"


def test_read(fs, path):
    """A file is read to its end, as a whole or in pieces of any size."""
    with fs.open(path) as file:
        assert file.read() == CONTENT
        assert file.read() == b""
    with fs.open(path, "rb") as file:
        assert b"".join(iter(lambda: file.read(100_000), b"")) == CONTENT
    with fs.open(path) as file:
        assert (file.read(10), file.read(0), file.read(5)) == (CONTENT[:10], b"", CONTENT[10:15])
        assert file.read1(7) == CONTENT[15:22]
        assert file.peek(1)[:1] == CONTENT[22:23]
        assert file.read() == CONTENT[22:]


def test_readinto(fs, path):
    """A file is read into buffers of the caller's, of any kind, and says how much it read."""
    with fs.open(path) as file:
        buffer = bytearray(3 * BLOCK)
        assert file.readinto(buffer) == len(buffer)
        assert buffer == CONTENT[: 3 * BLOCK]
        file.seek(-10, os.SEEK_END)
        assert file.readinto(memoryview(buffer)) == 10
        assert buffer[:10] == CONTENT[-10:]
        assert file.readinto(buffer) == 0


def test_seek_and_tell(fs, path):
    """A position is set from the beginning, from where it is, and from the end, also beyond it."""
    with fs.open(path) as file:
        assert file.seek(5 * BLOCK - 3) == file.tell() == 5 * BLOCK - 3
        assert file.read(6) == CONTENT[5 * BLOCK - 3 : 5 * BLOCK + 3]
        assert file.seek(-6, os.SEEK_CUR) == 5 * BLOCK - 3
        assert file.seek(-4, os.SEEK_END) == SIZE - 4
        assert file.read(100) == CONTENT[-4:]
        assert file.seek(100, os.SEEK_END) == SIZE + 100
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 9)
        with pytest.raises(ValueError, match="before the beginning"):
            file.raw.seek(-1)


def test_lines(fs, path):
    """A file is read line by line, in binary and in text."""
    with fs.open("a/lines.txt") as file:
        assert file.readline() == b"line 0\n"
        assert next(file) == b"line 1\n"
        assert b"".join(file) == LINES[len(b"line 0\nline 1\n") :]
    with fs.open("a/lines.txt", "rb") as file:
        assert file.readlines() == LINES.splitlines(keepends=True)
    with fs.open("a/lines.txt", "r", encoding="ascii") as file:
        assert file.read() == LINES.decode()
    with fs.open("a/lines.txt", "rt") as file:
        assert file.readline() == "line 0\n"
    assert fs.read_text("a/lines.txt") == LINES.decode()


def test_compressed(fs, source):
    """A compressed file is read by fsspec's own argument."""
    source.write("lines.gz", gzip.compress(LINES))
    with fs.open("lines.gz", compression="infer") as file:
        assert file.read() == LINES


def test_empty(fs, path):
    """A file of zero length has no bytes, in every way of reading."""
    with fs.open("a/empty") as file:
        assert (file.size, file.read(), file.read(10), file.seek(0, os.SEEK_END)) == (0, b"", b"", 0)
    assert fs.cat_file("a/empty") == fs.cat_file("a/empty", -5, 10) == b""
    assert fs.cat_ranges(["a/empty"], 0, 100) == [b""]
    assert list(fs.open("a/empty")) == []


def test_closed(fs, path):
    """A closed file refuses to be read, as any file does, and may be closed again."""
    file = fs.open(path)
    raw = file.raw
    file.close()
    file.close()
    for use in (file.read, file.tell, lambda: file.seek(0), lambda: raw.seek(0), lambda: raw.readinto(bytearray(1))):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_cannot_be_written(fs, path):
    """A file that is open for reading says that it is, and refuses to be written."""
    with fs.open(path) as file:
        assert (file.readable(), file.seekable(), file.writable(), file.mode, file.name) == (
            True,
            True,
            False,
            "rb",
            path,
        )
        with pytest.raises(OSError, match="write"):
            file.write(b"x")


def test_attributes(fs, path):
    """An open file has the attributes that users of fsspec know, and the identity of its version."""
    with fs.open(path) as file:
        assert (file.size, file.path, file.fs) == (SIZE, path, fs)
        assert file.info() == file.details == fs.info(path)
        assert file.identity.startswith("etag:")
        assert file.full_name == f"dogpile::slow://{path}"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, None),
        (0, 10),
        (BLOCK - 5, BLOCK + 5),
        (None, 100),
        (100, None),
        (-100, None),
        (-100, -50),
        (None, -SIZE + 7),
        (SIZE - 1, SIZE + 100),
        (SIZE, SIZE + 1),
        (SIZE + 10, None),
        (-2 * SIZE, 5),
        (10, 5),
        (3, 3),
        (2 * BLOCK, 3 * BLOCK),
    ],
)
def test_cat_file(fs, path, start, end):
    """A part of a file is what Python's slices say, as far as these are what fsspec says."""
    assert fs.cat_file(path, start, end) == CONTENT[start:end]
    assert fs.cat_file(path, start=start, end=end) == CONTENT[start:end]


def test_cat(fs, path):
    """Several files are read at once, by a list or a pattern; an error is raised, returned or left out as asked."""
    assert fs.cat(path) == CONTENT
    assert fs.cat(["a/b.bin", "a/empty"]) == {"a/b.bin": CONTENT, "a/empty": b""}
    assert fs.cat("a/*") == {"a/b.bin": CONTENT, "a/empty": b"", "a/lines.txt": LINES}
    with pytest.raises(FileNotFoundError):
        fs.cat("a/missing")
    assert list(fs.cat(["a/empty", "a/missing"], on_error="omit")) == ["a/empty"]
    assert isinstance(fs.cat(["a/empty", "a/missing"], on_error="return")["a/missing"], FileNotFoundError)


def test_cat_ranges(fs, path):
    """Many ranges of several files come in their order, and each file is looked up once."""
    paths = [path, "a/lines.txt", path, "a/missing", path]
    found = fs.cat_ranges(paths, [0, 5, -10, 0, BLOCK - 1], [10, 12, None, 9, 3 * BLOCK])
    assert found[:3] == [CONTENT[:10], LINES[5:12], CONTENT[-10:]]
    assert isinstance(found[3], FileNotFoundError)
    assert found[4] == CONTENT[BLOCK - 1 : 3 * BLOCK]
    assert fs.cat_ranges([path, path], 7, 9) == [CONTENT[7:9]] * 2
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(paths, 0, 10, on_error="raise")
    with pytest.raises(ValueError, match="pass as many as paths"):
        fs.cat_ranges([path], [1, 2], [3, 4])
    with pytest.raises(TypeError, match="pass a list"):
        fs.cat_ranges(path, 0, 1)


def test_cat_ranges_looks_once(fs, path, source, clock):
    """A thousand ranges of one file take one look at its version."""
    fs.cat_file(path)
    clock.move(1)
    source.control.forget_requests()
    starts = [number * 600 for number in range(1000)]
    assert fs.cat_ranges([path] * 1000, starts, [start + 50 for start in starts]) == [
        CONTENT[start : start + 50] for start in starts
    ]
    assert source.asked() == 1


def test_error_in_a_range(make, source):
    """An error of the source in one range leaves the others as they are."""
    source.write("a", CONTENT)
    fs = make()
    fs.cat_file("a", 0, 10)
    source.control.fail("EIO", "read", times=1)
    found = fs.cat_ranges(["a", "a", "a"], [0, BLOCK, 0], [5, BLOCK + 5, 3])
    assert (found[0], found[2]) == (CONTENT[:5], CONTENT[:3])
    assert isinstance(found[1], OSError)


def test_head_tail_and_block(fs, path):
    """The beginning and the end of a file are read, and blocks that end where a line does."""
    assert fs.head(path, 100) == CONTENT[:100]
    assert fs.tail(path, 100) == CONTENT[-100:]
    assert fs.tail(path, 2 * SIZE) == CONTENT
    assert fs.read_block(path, 10, 20) == CONTENT[10:30]
    block = fs.read_block("a/lines.txt", 3, 10, delimiter=b"\n")
    assert block == b"line 1\n"
    assert fs.read_bytes(path, 5, 7) == CONTENT[5:7]


def test_only_what_is_read(make, source):
    """A small read fetches one block, and a read in order asks for more each time."""
    source.write("a", CONTENT)
    fs = make()
    assert fs.cat_file("a", 5 * BLOCK + 7, 5 * BLOCK + 9) == CONTENT[5 * BLOCK + 7 : 5 * BLOCK + 9]
    assert [(each.start, each.asked) for each in source.control.requests("read")] == [(5 * BLOCK, BLOCK)]
    source.control.forget_requests()
    with fs.open("a") as file:
        assert b"".join(iter(lambda: file.read(BLOCK), b"")) == CONTENT
    # One block, then four; the fifth is there.
    asked = [(each.start // BLOCK, -(-each.asked // BLOCK)) for each in source.control.requests("read")]
    assert asked == [(0, 1), (1, 4), (6, 5)]
    source.control.forget_requests()
    assert fs.cat_file("a") == CONTENT
    assert source.asked("read") == 0


def test_whole_answers(make, source):
    """A source that answers every range with the whole file is read right, and all of that is kept."""
    source.write("a", CONTENT)
    source.control.answer_whole()
    fs = make()
    assert fs.cat_file("a", 3 * BLOCK + 1, 3 * BLOCK + 5) == CONTENT[3 * BLOCK + 1 : 3 * BLOCK + 5]
    assert fs.cat_file("a") == CONTENT
    assert source.asked("read") == 1


def test_counts(make, source, counts, clock):
    """Each opening is counted once, when it is closed: as a hit, as partial or as a miss."""
    source.write("a", CONTENT)
    fs = make()
    with fs.open("a") as file:
        file.read(10)
    assert counts(fs) == {
        "open_misses": 1, "block_misses": 1, "source_bytes": BLOCK, "requests": 3,
    }  # fmt: skip
    with fs.open("a") as file:
        file.read()
    found = counts(fs)
    assert (found["open_misses"], found["open_partials"], found["source_bytes"]) == (1, 1, SIZE)
    with fs.open("a") as file:
        file.read()
    fs.cat_file("a", 5, 10)
    found = counts(fs)
    assert (found["open_hits"], found["open_partials"], found["open_misses"]) == (2, 1, 1)
    with fs.open("a"):
        pass  # Nothing was read: there is nothing to count.
    assert fs.stats().process.source.opens == 4
    assert fs.stats().total.source.opens == 4


def test_get(fs, path, tmp_path):
    """Files and directories are copied to the local disk, and a callback is told how far it is."""
    callback = fsspec.Callback()
    fs.get_file(path, tmp_path / "new" / "b.bin", callback=callback)
    assert (tmp_path / "new" / "b.bin").read_bytes() == CONTENT
    assert (callback.size, callback.value) == (SIZE, SIZE)
    fs.get("a", str(tmp_path / "all"), recursive=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()} == {
        "b.bin": CONTENT,
        "lines.txt": LINES,
        "empty": b"",
    }
    with open(tmp_path / "outfile", "wb") as outfile:
        fs.get_file(path, outfile)
    assert (tmp_path / "outfile").read_bytes() == CONTENT


def test_get_through_link_and_over_file(fs, path, tmp_path):
    """A copy replaces the file that a symbolic link leads to, and the link stays."""
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    fs.get_file(path, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_bytes() == CONTENT


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_get_over_a_file(make, source, tmp_path, mode):
    """A copy that replaces a file has its mode, also while it is made: nobody else gets to read a private one."""
    source.write("a", CONTENT)
    target, modes = tmp_path / "target", set()
    target.write_bytes(b"old")
    target.chmod(mode)

    class Watched(NoOpCallback):
        def relative_update(self, inc=1):
            modes.update(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(".*.part"))

    make().get_file("a", target, callback=Watched())
    assert modes == {mode}
    assert target.read_bytes() == CONTENT
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_get_to_a_long_name(make, source, tmp_path):
    """A copy may have the longest name that a file can have."""
    source.write("a", CONTENT)
    target = tmp_path / ("n" * 255)
    make().get_file("a", target)
    assert target.read_bytes() == CONTENT


def test_get_where_no_file_can_be_made(make, source, tmp_path, monkeypatch):
    """A file that can be written in a directory that cannot is written in place; and a new one raises."""
    source.write("a", CONTENT)
    (tmp_path / "target").write_bytes(b"old")
    fs = make()
    fs.cat_file("a")
    opened = builtins.open

    def refuse(file, mode="r", *args, **kwargs):
        if "x" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr(beside, "open", refuse, raising=False)
    fs.get_file("a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == CONTENT
    with pytest.raises(PermissionError):
        fs.get_file("a", tmp_path / "new")


def test_get_that_fails(make, source, tmp_path):
    """A copy that fails leaves nothing under its name, and the file that was there."""
    source.write("a", CONTENT)
    (tmp_path / "target").write_bytes(b"old")
    fs = make()
    source.control.fail("EIO", "read")
    with pytest.raises(OSError, match="Input/output"):
        fs.get_file("a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_what_the_source_says(fs, path, source):
    """Listings, patterns and the rest are those of the source."""
    assert fs.ls("a", detail=False) == fs.find("a") == ["a/b.bin", "a/empty", "a/lines.txt"]
    assert fs.ls("a")[0]["size"] == SIZE
    assert fs.glob("a/*.bin") == [path]
    assert [each[2] for each in fs.walk("a")] == [["b.bin", "empty", "lines.txt"]]
    assert (fs.exists(path), fs.exists("a/missing"), fs.isfile(path), fs.isdir("a"), fs.size(path)) == (
        True, False, True, True, SIZE,
    )  # fmt: skip
    assert fs.du("a") == SIZE + len(LINES)
    assert fs.info(path) == source.fs.info(path)
    assert fs.ukey(path) == source.fs.ukey(path)
    assert fs.checksum(path) == source.fs.checksum(path)
    with pytest.raises(NotImplementedError):
        fs.sign(path)
    with pytest.raises(FileNotFoundError):
        fs.info("a/missing")
    with pytest.raises(FileNotFoundError):
        fs.open("a/missing")
    with pytest.raises(IsADirectoryError):
        fs.open("a")


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_pickle(fs, path, method):
    """A filesystem and an open file can be sent to another process, where the file is at the same position."""
    with fs.open(path) as file:
        file.seek(BLOCK + 5)
        context = multiprocessing.get_context(method)
        mine, theirs = context.Pipe()
        process = context.Process(target=cached.send_back, args=(theirs, pickle.dumps((fs, file)), "a/b.bin"))
        process.start()
        theirs.close()  # A process that fails is noticed at once.
        assert mine.poll(PATIENCE)
        assert mine.recv() == (BLOCK + 5, CONTENT[BLOCK + 5 :], CONTENT)
        process.join()


def test_fork(fs, path):
    """A forked child goes on with the filesystem and with the open files of its parent."""
    with fs.open(path) as file:
        assert file.read(10) == CONTENT[:10]
        child = Child(lambda: (file.read(), fs.cat_file("a/lines.txt"), fs.open(path).read(3)))
        assert child.result() == (CONTENT[10:], LINES, CONTENT[:3])
        assert file.read() == CONTENT[10:]


def test_equality(fs, make, path):
    """Filesystems with the same arguments are equal, and so are files of one version, with their hashes."""
    other, copy = make(), pickle.loads(pickle.dumps(fs))
    assert fs == other
    assert copy == pickle.loads(pickle.dumps(other))
    assert hash(fs) == hash(other)
    assert fs != make(check="never")
    with fs.open(path) as first, other.open(path) as second, fs.open("a/lines.txt") as third:
        assert first == second != third
        assert hash(first) == hash(second)
        assert first != 5


def test_json(fs, path):
    """A filesystem is made again from its JSON."""
    again = fsspec.AbstractFileSystem.from_json(fs.to_json())
    assert isinstance(again, cached.CachedFileSystem)
    assert again.options == fs.options
    assert again.cat_file(path) == CONTENT


@pytest.fixture
def memory():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/chained/a.bin", CONTENT)
    yield memory
    memory.rm("/chained", recursive=True)


def test_url_chaining(memory, base_dir, tmp_path):
    """A URL that begins with the protocol is read through the cache, also inside of another one."""
    options = {"base_dir": base_dir, "block_size": BLOCK}
    with fsspec.open("dogpile::memory://chained/a.bin", dogpile=options) as file:
        assert isinstance(file, cached.CachedFile)
        assert file.read() == CONTENT
        fs = file.fs
    assert fs.stats().process.source.source_bytes == SIZE
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("x.csv", LINES)
    url = f"zip://x.csv::dogpile::file://{tmp_path}/z.zip"
    with fsspec.open(url, dogpile=options) as file:
        assert file.read() == LINES
    found, path = fsspec.core.url_to_fs("dogpile::memory://chained/a.bin", dogpile=options)
    assert (type(found).__name__, path) == ("CachedFileSystem", "/chained/a.bin")
    assert found.unstrip_protocol(path) == "dogpile::memory:///chained/a.bin"
    files = fsspec.open_files("dogpile::memory://chained/*", dogpile=options)
    assert [file.path for file in files] == ["/chained/a.bin"]


def test_given_source(memory, base_dir):
    """The source may be a filesystem, of which a URL may have the prefix."""
    fs = fsspec.filesystem("dogpile", fs=memory, base_dir=base_dir, skip_instance_cache=True)
    for path in (
        "/chained/a.bin",
        "memory://chained/a.bin",
        "dogpile::memory://chained/a.bin",
        "dogpile://chained/a.bin",
    ):
        assert fs.cat_file(path) == CONTENT
    assert fs.stats().process.source.source_bytes == SIZE
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file("/chained/a.bin") == CONTENT
    assert again.stats().process.source.source_bytes == 0


def test_asynchronous_source_from_sync_code(tmp_path, base_dir):
    """A source that is asynchronous inside works from synchronous code, in threads and in a forked child."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(CONTENT)
    with http_store(tmp_path / "files") as http:
        fs = fsspec.filesystem(
            "dogpile", target_protocol="http", base_dir=base_dir, block_size=BLOCK, skip_instance_cache=True
        )
        found = []
        threads = [threading.Thread(target=lambda: found.append(fs.cat_file(f"{http.url}/a"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [CONTENT] * 4
        assert http.sent() == SIZE
        fs.forget(f"{http.url}/a")
        assert Child(lambda: fs.cat_file(f"{http.url}/a")).result() == CONTENT


def test_threads_share_a_file(fs, path):
    """Threads that share an open file get every byte once."""
    found = []
    with fs.open(path) as file:

        def read():
            while data := file.read(10_000):
                found.append(data)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted(CONTENT[start : start + 10_000] for start in range(0, SIZE, 10_000))


MOVES = st.one_of(
    st.tuples(st.just("seek"), st.integers(0, SIZE + 100)),
    st.tuples(st.just("seek_back"), st.integers(0, SIZE)),
    st.tuples(st.just("read"), st.integers(0, 3 * BLOCK)),
    st.tuples(st.just("readinto"), st.integers(1, 3 * BLOCK)),
    st.tuples(st.just("readline"), st.just(0)),
    st.tuples(st.just("readall"), st.just(0)),
    st.tuples(st.just("cat"), st.integers(-SIZE, SIZE)),
    st.tuples(st.just("lose"), st.integers(0, 10)),
    st.tuples(st.just("damage"), st.integers(0, 10)),
)


class Model:
    """
    An open file of the cache beside its content and a position; blocks get lost, and damaged, at any time.
    """

    def __init__(self, fs, file, base_dir):
        self.fs, self.file, self.base_dir, self.position = fs, file, base_dir, 0

    def key(self, number):
        return self.file.raw.version.key(number)

    def seek(self, to):
        self.position = self.file.seek(to)
        assert self.position == to

    def seek_back(self, by):
        self.position = self.file.seek(-by, os.SEEK_END)
        assert self.position == SIZE - by

    def read(self, length):
        self.expect(self.file.read(length), CONTENT[self.position : self.position + length])

    def readinto(self, length):
        buffer = bytearray(length)
        done = self.file.readinto(buffer)
        self.expect(bytes(buffer[:done]), CONTENT[self.position : self.position + length])

    def readline(self, _):
        rest = CONTENT[self.position :]
        self.expect(self.file.readline(), rest[: rest.find(b"\n") + 1] if b"\n" in rest else rest)

    def readall(self, _):
        self.expect(self.file.read(), CONTENT[self.position :])

    def expect(self, found, expected):
        assert found == expected
        self.position += len(expected)
        assert self.file.tell() == self.position

    def cat(self, start):
        assert self.fs.cat_file("a", start, start + 2 * BLOCK or None) == CONTENT[start : start + 2 * BLOCK or None]

    def lose(self, number):
        self.fs.store.remove(self.key(number), PART)

    def damage(self, number):
        where = cached.part_path(self.base_dir, self.key(number))
        if os.path.exists(where):
            with open(where, "r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(b"damaged")


@given(st.lists(MOVES, max_size=30))
def test_model(moves):
    """Whatever is read in whatever order, and whatever is lost from the cache meanwhile, the bytes are right."""
    with cases.scratch() as directory:
        source = cached.Files(Path(directory))
        source.write("a", CONTENT)
        base_dir = f"{directory}/cache"
        fs = cached.CachedFileSystem(fs=source.fs, base_dir=base_dir, block_size=BLOCK, skip_instance_cache=True)
        with fs.open("a") as file:
            model = Model(fs, file, base_dir)
            for name, number in moves:
                getattr(model, name)(number)


def test_broken_link(base_dir, tmp_path):
    """That there is a symbolic link which leads nowhere is said as the source says it."""
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    fs = cached.CachedFileSystem(target_protocol="file", base_dir=base_dir, skip_instance_cache=True)
    assert fs.lexists(str(link))
    assert not fs.exists(str(link))
