"""
What changes files goes straight to the source, and what was cached of them is dropped.
"""

from __future__ import annotations

import pytest

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

BLOCK = cached.BLOCK_SIZE
OLD = cached.noise(2 * BLOCK + 10, 8)
NEW = cached.noise(2 * BLOCK + 10, 9)


@pytest.fixture(
    params=[("always", 0), ("never", 0), ("always", 60), ("never", 60)], ids=lambda each: f"{each[0]}-{each[1]}"
)
def fs(request, make, source):
    """
    A filesystem that has a file in its cache, and keeps listings, or does not.
    """
    check, listings_expiry_time = request.param
    fs = make(check=check, listings_expiry_time=listings_expiry_time)
    source.write("d/a", OLD)
    assert fs.cat_file("d/a") == OLD
    return fs


def local(source, path):
    return (source.root / path).read_bytes()


def write(fs, _):
    with fs.open("d/a", "wb") as file:
        assert file.write(NEW) == len(NEW)


def write_text(fs, _):
    with fs.open("d/a", "w", encoding="latin-1", newline="") as file:
        file.write(NEW.decode("latin-1"))


def put(fs, path):
    fs.put(str(path), "d/a")


def pipe(fs, _):
    fs.pipe("d/a", NEW)


def pipe_several(fs, _):
    fs.pipe({"d/a": NEW, "d/b": b"b"})


def copy(fs, _):
    fs.pipe("d/b", NEW)
    fs.cp("d/b", "d/a")


def move(fs, _):
    fs.pipe("d/b", NEW)
    fs.mv("d/b", "d/a")


def move_directory(fs, _):
    fs.mkdir("e")
    fs.pipe("e/a", NEW)
    fs.rm("d", recursive=True)
    fs.mv("e", "d", recursive=True)


def remove_and_write(fs, path):
    fs.rm("d/a")
    put(fs, path)


@pytest.mark.parametrize(
    "change", [write, write_text, put, pipe, pipe_several, copy, move, move_directory, remove_and_write]
)
def test_change(fs, source, tmp_path, change):
    """What is written through the filesystem is at the source, and is what is read from then on, whatever ``check``."""
    (tmp_path / "new").write_bytes(NEW)
    change(fs, tmp_path / "new")
    assert local(source, "d/a") == NEW
    assert fs.cat_file("d/a") == NEW
    assert fs.info("d/a")["size"] == len(NEW)


def test_append(base_dir, tmp_path):
    """A file is appended to, where the source can do that."""
    (tmp_path / "a").write_bytes(OLD)
    fs = fsspec.filesystem(
        "dogpile", target_protocol="file", base_dir=base_dir, check="never", skip_instance_cache=True
    )
    assert fs.cat_file(str(tmp_path / "a")) == OLD
    with fs.open(str(tmp_path / "a"), "ab") as file:
        file.write(NEW)
    assert fs.cat_file(str(tmp_path / "a")) == OLD + NEW
    with fs.open(str(tmp_path / "a"), "r+b") as file:
        file.seek(1)
        file.write(b"xyz")
    assert fs.cat_file(str(tmp_path / "a")) == OLD[:1] + b"xyz" + OLD[4:] + NEW


def test_touch(base_dir):
    """A file is emptied, or made, by touching it."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/touched", OLD)
    fs = fsspec.filesystem("dogpile", fs=memory, base_dir=base_dir, check="never", skip_instance_cache=True)
    assert fs.cat_file("/touched") == OLD
    fs.touch("/touched", truncate=True)
    assert fs.cat_file("/touched") == b""
    memory.rm("/touched")


def test_remove(fs, source):
    """What is removed is gone at the source, and cannot be read any more."""
    fs.rm("d/a")
    assert not (source.root / "d/a").exists()
    with pytest.raises(FileNotFoundError):
        fs.cat_file("d/a")
    assert not fs.exists("d/a")
    fs.pipe("d/a", OLD)
    fs.rm_file("d/a")
    with pytest.raises(FileNotFoundError):
        fs.open("d/a")
    with pytest.raises(FileNotFoundError):
        fs.rm("d/missing")


def test_move_takes_the_old_name_away(fs):
    """What is moved cannot be read under its old name any more."""
    fs.mv("d/a", "d/b")
    assert fs.cat_file("d/b") == OLD
    with pytest.raises(FileNotFoundError):
        fs.cat_file("d/a")


def test_several(fs, source):
    """Several files are moved and removed in one call."""
    source.write("d/b", NEW)
    fs.mv(["d/a", "d/b"], ["d/c", "d/e"])
    assert (fs.cat_file("d/c"), fs.cat_file("d/e")) == (OLD, NEW)
    fs.rm(["d/c", "dogpile::slow://d/e"])
    for path in ("d/a", "d/b", "d/c", "d/e"):
        with pytest.raises(FileNotFoundError):
            fs.cat_file(path)


def test_recursive(fs, source):
    """Directories are removed with all that is in them, and what was cached of that is dropped."""
    source.write("d/e/b", NEW)
    assert fs.cat_file("d/e/b") == NEW
    fs.rm("d", recursive=True)
    for path in ("d/a", "d/e/b"):
        with pytest.raises(FileNotFoundError):
            fs.cat_file(path)
    if not fs.listings.expiry:  # Otherwise it is kept that they are gone.
        assert fs.stats().entries == 0


def test_move_over_a_directory(base_dir, tmp_path):
    """What was cached of files that lie below the target of a move is dropped."""
    for name, content in (("x/a", OLD), ("y/a", NEW)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    fs = fsspec.filesystem(
        "dogpile", target_protocol="file", base_dir=base_dir, check="never", skip_instance_cache=True
    )
    assert fs.cat_file(str(tmp_path / "x/a")) == OLD
    (tmp_path / "x/a").unlink()
    (tmp_path / "x").rmdir()
    fs.mv(str(tmp_path / "y"), str(tmp_path / "x"), recursive=True)
    assert fs.cat_file(str(tmp_path / "x/a")) == NEW


def test_directories(fs, source):
    """Directories are made and removed at the source."""
    fs.mkdir("new")
    fs.makedirs("new/deep/er", exist_ok=True)
    assert (source.root / "new/deep/er").is_dir()
    assert fs.isdir("new")
    fs.rmdir("new/deep/er")
    assert not fs.isdir("new/deep/er")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("new")


@pytest.mark.parametrize(
    "change",
    [
        lambda fs, path: fs.pipe("d/a", NEW),
        lambda fs, path: fs.put_file(str(path), "d/a"),
        lambda fs, path: fs.rm_file("d/a"),
        lambda fs, path: fs.cp_file("d/b", "d/a"),
        write,
    ],
    ids=["pipe", "put", "rm", "cp", "write"],
)
def test_failure(fs, source, tmp_path, change):
    """A change that the source refuses raises its error; what is cached is dropped, since it may have been changed."""
    (tmp_path / "new").write_bytes(NEW)
    source.write("d/b", NEW)
    source.control.fail("EIO", "write")
    with pytest.raises(OSError, match="Input/output"):
        change(fs, tmp_path / "new")
    source.control.forget_orders()
    source.asked()
    assert fs.cat_file("d/a") == OLD
    assert source.asked("read") > 0


def test_written_file_is_the_sources(fs, source):
    """The file that is written has what the source's own file has."""
    with fs.open("d/new", "wb") as file:
        assert (file.writable(), file.closed, file.tell()) == (True, False, 0)
        file.write(b"x")
        assert file.tell() == 1
    assert file.closed
    assert local(source, "d/new") == b"x"


def test_transaction(fs, source):
    """What is written in a transaction appears when that is over, all of it."""
    with fs.transaction:
        for name in ("d/a", "d/b"):
            with fs.open(name, "wb") as file:
                file.write(NEW)
        fs.pipe_file("d/c", NEW)
        assert fs.cat_file("d/a") == OLD
        assert not fs.exists("d/b")
        assert not fs.exists("d/c")
    for name in ("d/a", "d/b", "d/c"):
        assert fs.cat_file(name) == NEW == local(source, name)
    # The next one begins with nothing.
    with fs.transaction:
        pass
    fs.pipe_file("d/a", OLD)
    assert fs.cat_file("d/a") == OLD


def test_transaction_that_fails(fs, source):
    """What is written in a transaction that ends with an error is thrown away."""
    with pytest.raises(ZeroDivisionError), fs.transaction:
        with fs.open("d/a", "wb") as file:
            file.write(NEW)
        raise ZeroDivisionError
    assert fs.cat_file("d/a") == OLD == local(source, "d/a")
    fs.pipe_file("d/a", NEW)
    assert local(source, "d/a") == NEW


def test_transaction_begun_and_ended(fs, source):
    """A transaction can be begun and ended without a context."""
    fs.start_transaction()
    with fs.open("d/a", "wb") as file:
        file.write(NEW)
    assert local(source, "d/a") == OLD
    fs.end_transaction()
    assert fs.cat_file("d/a") == NEW


def test_commit_and_discard(fs, source):
    """A file that is written without being committed appears, or is thrown away, as its user says."""
    for end, expected in (("discard", OLD), ("commit", NEW)):
        file = fs.open("d/a", "wb", autocommit=False)
        file.write(NEW)
        file.close()
        assert fs.cat_file("d/a") == OLD
        getattr(file, end)()
        assert fs.cat_file("d/a") == expected == local(source, "d/a")


def test_read_in_a_transaction(fs):
    """A file can be read in a transaction."""
    with fs.transaction, fs.open("d/a") as file:
        assert file.read() == OLD


def test_forget(make, source):
    """What is known of a file can be dropped: with "never", that is how a new version is read."""
    fs = make(check="never")
    source.write("a", OLD)
    assert fs.cat_file("a") == OLD
    source.write("a", NEW)
    assert fs.cat_file("a") == OLD
    fs.forget("dogpile::slow://a")
    assert fs.stats().entries == 0
    assert fs.cat_file("a") == NEW
    fs.forget("missing")
