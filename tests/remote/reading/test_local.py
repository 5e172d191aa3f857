"""
Local copies of whole files: where they lie, how long they stay, and that they count towards the bound.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading

import pytest
from forked import Child
from http_store import http_store
from serving import wait_for

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from dogpile_filesystem.layout import charge  # noqa: E402 - after those that may be missing
from dogpile_filesystem.remote import SourceChanged  # noqa: E402

BLOCK = cached.BLOCK_SIZE
CONTENT = cached.noise(4 * BLOCK + 10, 6)
NEW = cached.noise(4 * BLOCK + 10, 7)
SIZE = len(CONTENT)


def content(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """
    The system's directory for temporary files, of this test alone.
    """
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_copy(fs, source, base_dir):
    """A copy has the content, lies in the cache, and is the same one for all who ask."""
    source.write("a", CONTENT)
    path = fs.open_local("a")
    assert path.startswith(base_dir)
    assert content(path) == CONTENT
    assert fs.open_local("a") == path
    assert source.control.totals().bytes == SIZE


def test_callback(fs, source):
    """A callback is told how far it is."""
    source.write("a", CONTENT)
    callback = fsspec.Callback()
    fs.open_local("a", callback=callback)
    assert (callback.size, callback.value) == (SIZE, SIZE)


def test_several(fs, source):
    """A list of paths, or a pattern, gives a list of copies."""
    for name in ("x/a", "x/b"):
        source.write(name, name.encode())
    assert [content(path) for path in fs.open_local(["x/a", "x/b"])] == [b"x/a", b"x/b"]
    assert [content(path) for path in fs.open_local("x/*")] == [b"x/a", b"x/b"]
    assert [content(path) for path in fs.open_local(["x/b"])] == [b"x/b"]
    with pytest.raises(FileNotFoundError):
        fs.open_local("x/missing")


def test_question_mark(base_dir, tmp_path):
    """The copy of a URL with parameters is one path, not a list."""
    pytest.importorskip("aiohttp")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a").write_bytes(CONTENT)
    with http_store(tmp_path / "files") as http:
        fs = cached.CachedFileSystem("http", base_dir=base_dir, skip_instance_cache=True)
        assert content(fs.open_local(f"{http.url}/a?station=1")) == CONTENT
        fs.release()


def test_release(fs, source):
    """A released copy is gone, with its bytes, and can be made again."""
    source.write("a", CONTENT)
    path = fs.open_local("a")
    before = fs.stats().size
    fs.release()
    assert not os.path.exists(path)
    assert before - fs.stats().size == charge(SIZE)
    fs.release()
    assert content(fs.open_local("a")) == CONTENT


def test_until_the_filesystem_goes(make, source):
    """The copies go with the filesystem."""
    source.write("a", CONTENT)
    fs = cached.CachedFileSystem(**make().storage_options, skip_instance_cache=True)
    path = fs.open_local("a")
    del fs
    gc.collect()
    assert not os.path.exists(path)


def test_without_the_garbage_collector(make, source):
    """The copies go as soon as nobody has the filesystem any more: it is no part of a cycle."""
    source.write("a", CONTENT)
    fs = cached.CachedFileSystem(**make().storage_options, skip_instance_cache=True)
    gc.disable()
    try:
        path = fs.open_local("a")
        fs.glob("*")
        del fs
        assert not os.path.exists(path)
    finally:
        gc.enable()


EXITING = """
    print(fs.open_local("a"), flush=True)
    sys.stdin.readline()
"""


def test_until_the_process_ends(fs, source, start):
    """The copies go with the process."""
    source.write("a", CONTENT)
    process = start(fs, EXITING)
    path = process.stdout.readline().strip()
    assert content(path) == CONTENT
    process.communicate("\n")
    assert process.returncode == 0
    assert not os.path.exists(path)


def test_killed_process(fs, source, start):
    """The copy of a living process stays, also through a visit; that of a killed one goes with the next visit."""
    source.write("a", CONTENT)
    process = start(fs, EXITING)
    path = process.stdout.readline().strip()
    used = fs.stats().size
    fs.store.prune()
    assert content(path) == CONTENT
    assert fs.stats().size == used
    process.kill()
    process.wait()
    assert content(path) == CONTENT
    fs.store.prune()
    assert not os.path.exists(path)
    assert used - fs.stats().size == charge(SIZE)


def test_forked_child(fs, source):
    """A child makes copies of its own, and neither it nor its end lets go of those of its parent."""
    source.write("a", CONTENT)
    path = fs.open_local("a")

    def work():
        mine = fs.open_local("a")
        assert content(mine) == CONTENT
        fs.release()
        assert not os.path.exists(mine)
        return mine

    assert Child(work).result() != path
    assert content(path) == CONTENT


def test_fork_while_a_copy_is_made(fs, source):
    """A child does not wait for a thread that only its parent has."""
    source.write("a", CONTENT)
    source.write("b", NEW)
    with source.control.holding("read", "a"):
        thread = threading.Thread(target=fs.open_local, args=("a",))
        thread.start()
        wait_for(source.control.unfinished)
        assert Child(lambda: content(fs.open_local("b"))).result() == NEW
    thread.join()


def test_threads(fs, source):
    """Threads that want one copy share it, and those that want another one do not wait for it."""
    source.write("a", CONTENT)
    source.write("b", NEW)
    paths = []
    with source.control.holding("read", "a"):
        threads = [threading.Thread(target=lambda: paths.append(fs.open_local("a"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(source.control.unfinished)
        assert content(fs.open_local("b")) == NEW
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert content(paths[0]) == CONTENT


def test_release_while_a_copy_is_made(fs, source):
    """A copy that is made while others are released is there when it is handed out."""
    source.write("a", CONTENT)
    paths = []
    with source.control.holding("read"):
        thread = threading.Thread(target=lambda: paths.append(fs.open_local("a")))
        thread.start()
        wait_for(source.control.unfinished)
        releasing = threading.Thread(target=fs.release)
        releasing.start()
    thread.join()
    releasing.join()
    fs.release()
    assert not os.path.exists(paths[0])
    assert content(fs.open_local("a")) == CONTENT


def test_counts_and_is_not_evicted(make, source, usage_on_disk):
    """A copy counts towards the bound, and what is cached is evicted around it."""
    source.write("a", CONTENT)
    bound = charge(SIZE) + 4 * BLOCK
    fs = make(cache_size=bound)
    path = fs.open_local("a")
    for number in range(10):
        source.write(f"b{number}", NEW)
        assert fs.cat_file(f"b{number}") == NEW
        assert charge(SIZE) <= usage_on_disk().size <= bound
        assert usage_on_disk().size == fs.stats().size
    assert content(path) == CONTENT


@pytest.mark.time_intensive
def test_no_room(make, source, temporary, caplog):
    """Where there is no room for a copy in the cache, it lies in the system's directory for temporary files."""
    source.write("a", CONTENT)
    source.write("b", NEW)
    fs = make(cache_size=charge(SIZE) + BLOCK)
    for _ in range(2):
        first, second = fs.open_local(["a", "b"])
        assert (content(first), content(second)) == (CONTENT, NEW)
        assert [os.path.dirname(first) == str(temporary), os.path.dirname(second) == str(temporary)] == [False, True]
        fs.release()
        assert os.listdir(temporary) == []
    small = make(cache_size=BLOCK)
    path = small.open_local("a")
    assert (content(path), os.path.dirname(path)) == (CONTENT, str(temporary))
    assert "raise cache_size" in caplog.text


def test_deleted_copy(fs, source):
    """A copy that somebody deleted is made again."""
    source.write("a", CONTENT)
    os.unlink(fs.open_local("a"))
    assert content(fs.open_local("a")) == CONTENT
    fs.store.clear()
    assert content(fs.open_local("a")) == CONTENT
    fs.release()
    fs.store.prune()


def test_new_version(fs, source, clock):
    """A new version gets a copy of its own; that of the version before stays until it is released."""
    source.write("a", CONTENT)
    old = fs.open_local("a")
    source.write("a", NEW)
    clock.move(1)
    assert content(fs.open_local("a")) == NEW
    assert content(old) == CONTENT
    fs.release()
    assert not os.path.exists(old)


def test_changed_while_it_is_copied(fs, source):
    """A file that changes while it is copied is copied anew, and no copy is a mix."""
    source.write("a", CONTENT)
    source.control.replace("a", NEW)
    assert content(fs.open_local("a")) == NEW
    for number in range(20):
        source.control.replace("b", bytes([number]) * BLOCK)
    source.write("b", CONTENT)
    with pytest.raises(SourceChanged):
        fs.open_local("b")


def test_source_fails(fs, source):
    """A copy that fails raises what the source raises, and leaves nothing."""
    source.write("a", CONTENT)
    source.control.fail("EIO", "read", times=1)
    before = fs.stats().size
    with pytest.raises(OSError, match="Input/output"):
        fs.open_local("a")
    assert fs.stats().size - before <= BLOCK
    assert content(fs.open_local("a")) == CONTENT


def test_without_identity(make, tmp_path):
    """A file whose source tells no version is copied each time; the copies before stay until they are released."""
    source = cached.Files(tmp_path, identity="none")
    source.write("a", CONTENT)
    fs = make(source)
    old = fs.open_local("a")
    source.write("a", NEW)
    new = fs.open_local("a")
    assert (content(old), content(new)) == (CONTENT, NEW)
    fs.release()
    assert not os.path.exists(old)
    assert not os.path.exists(new)
