"""
Files that are opened for writing: whole at the source when they are closed, and read from the cache then.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import pickle
import shutil
import stat
import threading

import pytest

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402 - after those that may be missing

from dogpile_filesystem.remote import beside  # noqa: E402 - likewise
from dogpile_filesystem.remote.source import SourceChanged  # noqa: E402 - likewise
from dogpile_filesystem.remote.through import local_writer  # noqa: E402 - likewise
from dogpile_filesystem.remote.through.upload import is_temporary  # noqa: E402 - likewise
from dogpile_filesystem.store import Draft, NoRoom  # noqa: E402 - likewise

BLOCK = cached.BLOCK_SIZE
OLD = cached.noise(2 * BLOCK + 10, 8)
NEW = cached.noise(3 * BLOCK + 7, 9)


@pytest.fixture
def fs(make, source):
    """
    A filesystem that has a file in its cache.
    """
    fs = make()
    source.write("d/a", OLD)
    assert fs.cat_file("d/a") == OLD
    return fs


@pytest.fixture
def make_over(base_dir):
    """
    Makes filesystems over other sources than the slow one.
    """

    def make_over(protocol, **arguments):
        return cached.CachedFileSystem(
            target_protocol=protocol,
            base_dir=base_dir,
            block_size=BLOCK,
            skip_instance_cache=True,
            **arguments,
        )

    return make_over


@pytest.fixture
def local(make_over):
    return make_over("file")


@pytest.fixture
def memory(make_over):
    fs = make_over("memory")
    MemoryFileSystem.store.clear()
    yield fs
    MemoryFileSystem.store.clear()


def fetched(fs):
    return fs.stats().process.source.source_bytes


def write(fs, path, data, mode="wb", **options):
    with fs.open(path, mode, **options) as file:
        file.write(data)


def left(fs):
    """Bytes in the shard of unsent files: what drafts take."""
    unsent = f"{fs.options.shared.base_dir}/unsent"
    return sorted(os.listdir(unsent)) if os.path.isdir(unsent) else []


# Read back


@pytest.mark.parametrize("check", ["always", "never", 60])
def test_read_back(make, source, check):
    """What was written is read without asking the source for its bytes, also by another process."""
    fs, other = make(check=check), make(check=check)
    source.write("a", OLD)
    assert other.cat_file("a") == OLD
    before = fetched(fs)
    write(fs, "a", NEW)
    source.asked()
    assert fs.cat_file("a") == NEW
    assert source.asked() == 0
    assert other.cat_file("a") == NEW
    assert source.asked("read") == 0
    assert fetched(fs) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda fs, path: fs.pipe_file("a", NEW),
        lambda fs, path: fs.put_file(path, "a"),
        lambda fs, path: fs.put(path, "a"),
        lambda fs, path: write(fs, "a", NEW, "xb"),
        lambda fs, path: write(fs, "a", NEW, "ab"),
    ],
    ids=["pipe", "put_file", "put", "xb", "ab"],
)
def test_read_back_after_each_way_of_writing(make, source, tmp_path, change):
    """However a file was written, it is read from the cache."""
    fs = make()
    (tmp_path / "new").write_bytes(NEW)
    change(fs, str(tmp_path / "new"))
    source.asked()
    assert fs.cat_file("a") == NEW
    assert source.asked("read") == 0
    assert left(fs) == []


def test_empty(make, source):
    """A file that nothing is written to is empty at the source."""
    fs = make()
    fs.open("a", "wb").close()
    assert (source.root / "a").read_bytes() == b"" == fs.cat_file("a")


def test_old_reader(fs, source):
    """A reader that has the old version open reads on in it, when the file is written."""
    with fs.open("d/a") as file:
        assert file.read(10) == OLD[:10]
        write(fs, "d/a", NEW)
        assert fs.cat_file("d/a") == NEW
        assert file.read() == OLD[10:]


def test_old_blocks_go(fs):
    """Of all the versions that were written, the cache has the last one and the one before."""
    for seed in range(4):
        write(fs, "d/a", cached.noise(2 * BLOCK, seed))
    # Two blocks of each, and the record.
    assert fs.stats().entries == 5
    fs.rm("d/a")
    assert fs.stats().entries == 0


def test_unsettled(make, source):
    """Where times have whole seconds, what was just written is not kept: the next change may not show."""
    seconds = cached.Files(source.root.parent, identity="second")
    fs = make(seconds)
    fs.pipe_file("a", OLD)
    seconds.asked()
    assert fs.cat_file("a") == OLD
    assert seconds.asked("read") > 0


# Modes


def test_append(memory):
    """What is appended follows what the file had, which is read through the cache; a missing file is made."""
    write(memory, "/a", OLD, "ab")
    with memory.open("/a", "ab") as file:
        assert file.tell() == len(OLD)
        file.write(NEW)
    assert memory.fs.cat_file("/a") == OLD + NEW == memory.cat_file("/a")
    assert fetched(memory) == 0


def test_append_to_another_version(fs, source):
    """Nothing is appended when somebody else has written the file meanwhile: what they wrote stays."""
    file = fs.open("d/a", "ab")
    file.write(b"more")
    source.write("d/a", NEW)
    with pytest.raises(SourceChanged):
        file.close()
    assert fs.cat_file("d/a") == NEW
    file = fs.open("d/b", "ab")
    source.write("d/b", OLD)
    with pytest.raises(FileExistsError):
        file.close()
    assert fs.cat_file("d/b") == OLD


@pytest.mark.parametrize("over", ["slow", "memory", "file"])
def test_exclusive(make, make_over, tmp_path, over):
    """A file that must be new raises if the source has it: when it is opened, and once more when it is closed."""
    fs, path = (make(), "a") if over == "slow" else (make_over(over), f"{tmp_path}/x")
    file = fs.open(path, "xb")
    file.write(NEW)
    write(fs, path, OLD, "xb")
    with pytest.raises(FileExistsError):
        file.close()
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")
    with pytest.raises(FileExistsError):
        fs.pipe_file(path, NEW, mode="create")
    assert fs.cat_file(path) == OLD
    assert left(fs) == []
    if over != "slow":
        fs.rm(path)


def test_exclusive_at_the_last_moment(local, tmp_path, monkeypatch):
    """A file that somebody else makes while an exclusive one is sent stays theirs."""
    copy = shutil.copyfileobj

    def copy_beside(*arguments):
        copy(*arguments)
        (tmp_path / "x").write_bytes(OLD)

    monkeypatch.setattr(beside.shutil, "copyfileobj", copy_beside)
    with pytest.raises(FileExistsError):
        write(local, str(tmp_path / "x"), NEW, "xb")
    assert (tmp_path / "x").read_bytes() == OLD
    assert not any(map(is_temporary, os.listdir(tmp_path)))


def test_other_modes(fs, make_over):
    """A mode that nobody can serve raises, and says what to do."""
    for mode in ("r+b", "a+b"):
        with pytest.raises(ValueError, match="pass 'wb', 'ab' or 'xb'"):
            fs.open("d/a", mode)
    with fs.transaction, pytest.raises(ValueError, match="in a transaction"):
        fs.open("d/a", "r+b")
    with pytest.raises(NotImplementedError):
        make_over("http").open("http://127.0.0.1:9/a", "wb")


def test_text(fs):
    """Text is written and appended, compressed if wanted."""
    with fs.open("d/t", "w", encoding="utf-16") as file:
        file.write("ä\n")
    with fs.open("d/t", "a", encoding="utf-16") as file:
        file.write("ö\n")
    assert fs.read_text("d/t", encoding="utf-16") == "ä\nö\n"
    with fs.open("d/t.gz", "wt", compression="gzip") as file:
        file.write("ü")
    with fs.open("d/t.gz", "rt", compression="gzip") as file:
        assert file.read() == "ü"


def test_collected(fs):
    """A file that nobody closed is sent when it is collected, all of it, in whatever order that finalizes its parts."""
    file = fs.open("d/a", "wb")
    file.write(NEW[:1000])
    file.raw.__del__()  # As the collector calls it.
    file.itself = [file, file.raw]
    del file
    gc.collect()
    assert fs.cat_file("d/a") == NEW[:1000]


def test_seek(fs):
    """A file that is being written can be written again in places, and cut off, as a local one."""
    with fs.open("d/a", "wb") as file:
        file.write(NEW)
        file.seek(1)
        file.write(b"xyz")
        file.truncate(10)
        file.seek(0, io.SEEK_END)
        file.write(b"end")
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
    assert fs.cat_file("d/a") == NEW[:1] + b"xyz" + NEW[4:10] + b"end"


# Failures


def test_closed_twice(fs, source):
    """To close a file twice is no error, and sends it once."""
    file = fs.open("d/a", "wb")
    file.write(NEW)
    file.close()
    source.asked()
    file.close()
    file.commit()
    file.discard()
    assert source.asked() == 0
    assert fs.cat_file("d/a") == NEW


def test_failed_close(fs, source):
    """A file that the source refuses raises its error once; nothing of it is cached, or left on the disk."""
    file = fs.open("d/a", "wb")
    file.write(NEW)
    source.control.fail("EIO", "write")
    with pytest.raises(OSError, match="Input/output"):
        file.close()
    assert file.closed
    file.close()
    source.control.forget_orders()
    assert fs.cat_file("d/a") == OLD
    assert left(fs) == []


def test_truncating_source(fs, monkeypatch):
    """A source that has less than it was sent is noticed."""
    monkeypatch.setattr(fs.source.fs, "put_file", lambda lpath, rpath, **_: fs.source.fs.pipe_file(rpath, NEW[:100]))
    with pytest.raises(OSError, match="100 of the"):
        write(fs, "d/a", NEW)
    assert fs.cat_file("d/a") == NEW[:100]


def test_losing_source(fs, monkeypatch):
    """A source that says yes and does nothing is noticed, whether or not there was a file of the same length."""
    monkeypatch.setattr(fs.source.fs, "put_file", lambda *_, **__: None)
    with pytest.raises(FileNotFoundError):
        write(fs, "d/b", NEW)
    with pytest.raises(OSError, match="what it had before"):
        write(fs, "d/a", OLD[::-1])
    assert fs.cat_file("d/a") == OLD
    write(fs, "d/a", OLD)


def test_file_that_changes_while_it_is_put(fs, tmp_path, monkeypatch):
    """Of a local file that changes while it is put, nothing is kept: nobody knows what the source got."""
    path = tmp_path / "changing"
    path.write_bytes(NEW)
    put = fs.source.fs.put_file

    def change(lpath, rpath, **options):
        put(lpath, rpath, **options)
        path.write_bytes(NEW[::-1])

    monkeypatch.setattr(fs.source.fs, "put_file", change)
    fs.put_file(str(path), "d/a")
    assert fs.cat_file("d/a") == NEW


def test_foreign_change_behind_a_put(local, tmp_path, monkeypatch):
    """What somebody else puts in the place of a file, just after it was put, is not taken for it."""
    path = tmp_path / "a"
    replaced = os.replace

    def replace(old, new):
        replaced(old, new)
        (tmp_path / "b").write_bytes(NEW[::-1])
        replaced(tmp_path / "b", new)

    monkeypatch.setattr(beside.os, "replace", replace)
    write(local, str(path), NEW)
    assert local.cat_file(str(path)) == NEW[::-1]


def test_error_within_the_block(fs, source):
    """A file whose block is left by an exception is sent as far as it was written, unless it is to be committed."""
    with pytest.raises(ZeroDivisionError), fs.open("d/b", "wb") as file:
        file.write(b"begun")
        raise ZeroDivisionError
    assert fs.cat_file("d/b") == b"begun"
    with pytest.raises(ZeroDivisionError), fs.open("d/a", "wb", autocommit=False) as file:
        file.write(b"begun")
        raise ZeroDivisionError
    file.discard()
    assert fs.cat_file("d/a") == OLD == (source.root / "d/a").read_bytes()


def test_pipe_of_no_bytes(fs):
    """What cannot be written leaves the file as it was."""
    with pytest.raises(TypeError):
        fs.pipe_file("d/a", "text")
    assert fs.cat_file("d/a") == OLD
    assert left(fs) == []


def test_pickle(fs):
    """A file that is being written cannot be pickled, and says so; its filesystem can."""
    with fs.open("d/a", "wb") as file, pytest.raises(TypeError, match="open for writing"):
        pickle.dumps(file)
    pickle.loads(pickle.dumps(fs)).release()


def test_forked_child(fs, source):
    """A forked child sends nothing of a file that its parent is writing, and cannot write to it."""
    file = fs.open("d/a", "wb")
    file.write(b"parent")
    pid = os.fork()
    if not pid:
        code = 1
        try:
            try:
                file.close()
            except PermissionError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert (source.root / "d/a").read_bytes() == OLD
    file.close()
    assert fs.cat_file("d/a") == b"parent"


# No room


@pytest.mark.parametrize("trouble", [NoRoom(), OSError(errno.EIO, "broken")])
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_no_room(fs, monkeypatch, trouble, mode):
    """A file that finds no room in the cache, at first or later, is written outside of it."""
    expected = NEW if mode == "wb" else OLD + NEW
    grow = Draft.reserve

    def reserve(self, size):
        if size > BLOCK:
            raise trouble
        grow(self, size)

    monkeypatch.setattr(Draft, "reserve", reserve)
    monkeypatch.setattr(local_writer, "_BUFFER", 1000)
    with fs.open("d/a", mode) as file:
        for start in range(0, len(NEW), 1000):
            file.write(NEW[start : start + 1000])
    assert fs.cat_file("d/a") == expected
    assert left(fs) == []

    def refuse(*_):
        raise trouble

    monkeypatch.setattr(type(fs.store.unsent), "draft", refuse)
    write(fs, "d/a", OLD)
    assert fs.cat_file("d/a") == OLD


def test_small_cache(make, source):
    """A file that is larger than the cache is written all the same."""
    fs = make(cache_size=4 * BLOCK)
    data = cached.noise(9 * BLOCK)
    write(fs, "a", data)
    assert (source.root / "a").read_bytes() == data == fs.cat_file("a")
    assert fs.stats().size <= 4 * BLOCK


# Places that are rewritten in place


def test_mode_and_links(local, tmp_path):
    """A local file that is replaced keeps its mode, and a symbolic link leads where it led."""
    (tmp_path / "a").write_bytes(OLD)
    (tmp_path / "a").chmod(0o640)
    (tmp_path / "link").symlink_to("a")
    write(local, str(tmp_path / "link"), NEW)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_bytes() == NEW
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert not any(map(is_temporary, os.listdir(tmp_path)))


@pytest.mark.parametrize("over", ["file", "memory"])
def test_leftover(make_over, tmp_path, over):
    """What a killed upload left beside a file is not listed, and the next upload of the file takes it away."""
    fs, directory = make_over(over), str(tmp_path / "x")
    fs.makedirs(directory, exist_ok=True)
    path = f"{directory}/a"
    left_over = beside.temporary_path(path, beside.token_of(fs.store.directory.base_dir, path))
    fs.fs.pipe_file(left_over, b"half")
    fs.fs.pipe_file(f"{directory}/b", b"b")
    for listed in (
        fs.ls(directory, detail=False),
        fs.find(directory),
        fs.glob(f"{directory}/*"),
        list(fs.find(directory, detail=True)),
    ):
        assert [os.path.basename(each) for each in listed] == ["b"]
    assert [list(files) for _, _, files in fs.walk(directory)] == [["b"]]
    assert fs.fs.exists(left_over)
    write(fs, path, NEW)
    assert not fs.fs.exists(left_over)
    assert fs.cat_file(path) == NEW
    fs.rm(directory, recursive=True)


def test_failed_put_leaves_nothing_beside(memory, monkeypatch):
    """An upload that fails leaves nothing beside the file, which is what it was."""
    memory.pipe_file("/d/a", OLD)

    def refuse(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(memory.source.fs, "mv", refuse)
    with pytest.raises(OSError, match="broken"):
        memory.pipe_file("/d/a", NEW)
    assert memory.fs.ls("/d", detail=False) == ["/d/a"]
    assert memory.cat_file("/d/a") == OLD


def test_names():
    """A temporary name fits into what filesystems take, and no other name looks like one."""
    path = "d/" + "ä" * 127
    temporary = beside.temporary_path(path, "0" * 16)
    assert len(os.path.basename(temporary).encode()) <= 255
    assert is_temporary(temporary)
    assert not any(map(is_temporary, ("d/a", ".a.dogpile-part", "a.0000000000000000.dogpile-part", "")))


def test_zip(make_over, tmp_path):
    """Files are written into an archive, which can neither rename nor be asked for what was written."""
    fs = make_over("zip", target_options={"fo": str(tmp_path / "a.zip"), "mode": "w"})
    write(fs, "a", NEW)
    fs.pipe_file("b", OLD)
    fs.fs.close()
    read = fsspec.filesystem("zip", fo=str(tmp_path / "a.zip"))
    assert (read.cat_file("a"), read.cat_file("b")) == (NEW, OLD)


def test_copy_is_whole(local, tmp_path, monkeypatch):
    """A copy at the source appears when it is whole."""
    (tmp_path / "a").write_bytes(NEW)
    (tmp_path / "b").write_bytes(OLD)
    seen = []
    copy = shutil.copyfileobj

    def look(*arguments):
        copy(*arguments)
        seen.append((tmp_path / "b").read_bytes())

    monkeypatch.setattr(beside.shutil, "copyfileobj", look)
    local.cp_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert seen == [OLD]
    assert local.cat_file(str(tmp_path / "b")) == NEW


# Transactions


def test_transaction_sends_at_its_end(fs, source):
    """In a transaction nothing is sent before its end, whatever way it is written."""
    (source.root.parent / "new").write_bytes(NEW)
    with fs.transaction:
        write(fs, "d/a", NEW)
        fs.pipe_file("d/b", NEW)
        fs.put_file(str(source.root.parent / "new"), "d/c")
        assert os.listdir(source.root / "d") == ["a"]
        assert (source.root / "d/a").read_bytes() == OLD
    for name in "abc":
        assert (source.root / "d" / name).read_bytes() == NEW
    assert left(fs) == []


def test_transaction_that_fails_at_its_end(fs, source):
    """When a file of a transaction fails, those before it stay, those behind it are thrown away, and it is over."""
    source.control.fail("EIO", "write", "d/b")
    with pytest.raises(OSError, match="Input/output"), fs.transaction:
        for name in ("d/a", "d/b", "d/c"):
            write(fs, name, NEW)
    source.control.forget_orders()
    assert fs.cat_file("d/a") == NEW
    assert not fs.exists("d/b")
    assert not fs.exists("d/c")
    assert left(fs) == []
    write(fs, "d/c", NEW)
    assert (source.root / "d/c").read_bytes() == NEW


# Another process


def test_reader_in_another_process(local, spawn, tmp_path):
    """A reader of the source never meets a part of a file, nor a missing one, while it is rewritten."""
    path = str(tmp_path / "a")
    size = 4 * BLOCK
    local.pipe_file(path, b"\0" * size)
    reader = spawn(
        """
        import sys
        print("ready", flush=True)
        wrong = reads = 0
        seen = set()
        while len(seen) < 40:
            with open(sys.argv[1], "rb") as file:
                data = file.read()
            wrong += len(data) != int(sys.argv[2]) or len(set(data)) != 1
            seen.add(data[:1])
            if data[:1] == b"\\xff":
                break
        print(wrong, flush=True)
        """,
        path,
        str(size),
    )
    assert reader.stdout.readline().strip() == "ready"
    for number in (*range(1, 30), 255):
        local.pipe_file(path, bytes([number]) * size)
    assert reader.stdout.readline().strip() == "0"


def test_writers_at_once(local, tmp_path):
    """Writers of one file do not disturb each other: each is done without an error, and the file is one of theirs."""
    path, errors = str(tmp_path / "a"), []

    def run(number):
        try:
            for _ in range(5):
                local.pipe_file(path, bytes([number]) * 2 * BLOCK)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    data = local.cat_file(path)
    assert (len(data), len(set(data))) == (2 * BLOCK, 1)
    assert data == (tmp_path / "a").read_bytes()


def test_listings(make, source, monkeypatch):
    """What is written is listed at once, where listings are kept; of what failed, the source is asked again."""
    fs, other = make(listings_expiry_time=1000), make(listings_expiry_time=1000)
    source.write("d/a", OLD)
    assert [row["name"] for row in other.ls("d")] == ["d/a"]
    fs.pipe_file("d/b", NEW)
    assert [(row["name"], row["size"]) for row in other.ls("d")] == [("d/a", len(OLD)), ("d/b", len(NEW))]
    put = fs.source.fs.put_file

    def put_and_fail(*arguments, **options):
        put(*arguments, **options)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fs.source.fs, "put_file", put_and_fail)
    with pytest.raises(OSError, match="broken"):
        fs.pipe_file("d/c", NEW)
    assert other.exists("d/c")
