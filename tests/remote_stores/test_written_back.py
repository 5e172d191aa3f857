"""
Files written back to real storage servers.
"""

from __future__ import annotations

import inspect
import os
import random

import pytest
from forked import Child

fsspec = pytest.importorskip("fsspec")

from fsspec.tests import abstract  # noqa: E402 - after what may be missing
from s3_suites import OverS3  # noqa: E402 - likewise

from dogpile_filesystem.remote import Conflict, UploadError  # noqa: E402 - likewise

NEW = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def back(cached):
    """
    Makes filesystems that write back. Only what the test flushes is sent.
    """
    return lambda storage, **arguments: cached(storage, **{"write": "back", "max_uploads": 0, **arguments})


def stored(fs, root):
    """What the store has, without the cache."""
    fs.fs.invalidate_cache()
    return {path.rpartition("/")[2]: fs.fs.cat_file(path) for path in fs.fs.find(root)}


@pytest.fixture(params=["s3", "sftp", "ftp", "webdav"])
def storage(request):
    """
    A place on each kind of store.
    """
    return request.getfixturevalue(request.param)


def test_life(storage, back):
    """Files are written, replaced, renamed, copied and removed, seen at once by other readers, and sent by a flush."""
    fs, other, root = back(storage), back(storage), storage.root
    fs.pipe_file(f"{root}/old", b"old")
    fs.flush()
    assert stored(fs, root) == {"old": b"old"}
    fs.pipe_file(f"{root}/a", b"first")
    fs.pipe_file(f"{root}/a", NEW)
    with fs.open(f"{root}/a", "ab") as file:
        file.write(b"more")
    fs.pipe_file(f"{root}/b", b"b")
    fs.mv(f"{root}/b", f"{root}/c")
    fs.cp_file(f"{root}/c", f"{root}/d")
    fs.pipe_file(f"{root}/never", b"")
    fs.rm(f"{root}/never")
    fs.pipe_file(f"{root}/old", b"newer")
    fs.rm(f"{root}/old")
    expected = {"a": NEW + b"more", "c": b"b", "d": b"b"}
    assert {path.rpartition("/")[2] for path in other.ls(root, detail=False)} == set(expected)
    assert other.cat_file(f"{root}/a") == expected["a"]
    other.flush()
    assert fs.unsent() == []
    assert stored(fs, root) == expected
    assert fs.cat_file(f"{root}/a", start=-5) == NEW[-1:] + b"more"


def test_s3_is_read_from_the_cache(s3, back):
    """What was sent to S3 is read from the cache."""
    fs, path = back(s3, check="never"), f"{s3.root}/a.bin"
    fs.pipe_file(path, NEW)
    fs.flush()
    assert fs.cat_file(path) == NEW
    assert fs.stats().process.source.source_bytes == 0


def test_s3_threads(s3, cached):
    """Threads send what is written, without being told; `close` waits for them."""
    fs = cached(s3, write="back", write_after=0)
    expected = {f"{number}": bytes([number]) * 1000 for number in range(20)}
    fs.pipe({f"{s3.root}/d/{name}": content for name, content in expected.items()})
    fs.close()
    assert stored(fs, s3.root) == expected


def conflict(storage, fs):
    """Write a file, which somebody else changes before it is sent; its path."""
    path = f"{storage.root}/report.csv"
    fs.fs.pipe_file(path, b"old")
    if storage.directory is not None:
        # Where times have whole seconds, a version is known once it is older than that.
        os.utime(storage.directory / "report.csv", (1e9, 1e9))
    fs.cat_file(path)
    fs.pipe_file(path, b"ours!")
    fs.fs.pipe_file(path, b"theirs")
    return path


def test_conflict_is_an_error(storage, back):
    """A change by somebody else is noticed by what the store tells of the version; then a person decides."""
    fs = back(storage, on_conflict="error")
    path = conflict(storage, fs)
    with pytest.raises(UploadError) as raised:
        fs.flush()
    assert isinstance(raised.value.failed[path], Conflict)
    assert stored(fs, storage.root) == {"report.csv": b"theirs"}
    assert fs.cat_file(path) == b"ours!"
    fs.flush(on_conflict="keep")
    assert sorted(stored(fs, storage.root).values()) == [b"ours!", b"theirs"]


def test_conflict_is_kept(storage, back):
    """With "keep", both versions are at the store, and are read under their names."""
    fs = back(storage, on_conflict="keep")
    path = conflict(storage, fs)
    fs.flush()
    found = stored(fs, storage.root)
    [beside] = set(found) - {"report.csv"}
    assert beside.startswith("report (conflict ")
    assert found == {"report.csv": b"theirs", beside: b"ours!"}
    assert fs.cat_file(path) == b"theirs"
    assert fs.cat_file(f"{storage.root}/{beside}") == b"ours!"


def test_conflict_is_overwritten(storage, back, caplog):
    """With "overwrite", ours is at the store alone, and the conflict is in the log."""
    fs = back(storage, on_conflict="overwrite")
    conflict(storage, fs)
    fs.flush()
    assert stored(fs, storage.root) == {"report.csv": b"ours!"}
    assert "which somebody else changed since it was written here" in caplog.text


def test_another_process(storage, back):
    """A second process reads what is unsent, and sends it."""
    fs, root = back(storage), storage.root
    fs.pipe_file(f"{root}/d/a", NEW)
    fs.fs.pipe_file(f"{root}/b", b"b")
    fs.rm_file(f"{root}/b")

    def child():
        seen = fs.cat_file(f"{root}/d/a"), fs.exists(f"{root}/b")
        fs.flush()
        return seen

    assert Child(child).result() == (NEW, False)
    assert fs.unsent() == []
    assert stored(fs, root) == {"a": NEW}


def test_s3_name_that_is_taken_meanwhile(s3, back, monkeypatch):
    """S3 itself refuses to replace what somebody else makes under the name just before ours."""
    fs, path = back(s3, on_conflict="keep"), f"{s3.root}/report.csv"
    fs.fs.pipe_file(path, b"old")
    fs.cat_file(path)
    fs.pipe_file(path, b"ours")
    fs.fs.pipe_file(path, b"theirs")
    put = fs.fs.put_file

    def put_file(lpath, rpath, **options):
        monkeypatch.undo()
        fs.fs.pipe_file(rpath, b"another")
        put(lpath, rpath, **options)

    # Its signature says that it can be told that the file must be new.
    put_file.__signature__ = inspect.signature(put)
    monkeypatch.setattr(fs.fs, "put_file", put_file)
    fs.flush()
    assert sorted(stored(fs, s3.root).values()) == [b"another", b"ours", b"theirs"]


def test_sftp_is_never_partial(sftp, back, spawn):
    """Over SFTP nobody ever meets a part of a file that is sent, or none; and nothing is left beside it."""
    fs, path = back(sftp), f"{sftp.root}/a"
    size = 1 << 20
    fs.pipe_file(path, b"\0" * size)
    fs.flush()
    reader = spawn(
        """
        import sys
        print("ready", flush=True)
        wrong = 0
        data = b"\\0"
        while data[:1] != b"\\xff":
            with open(sys.argv[1], "rb") as file:
                data = file.read()
            wrong += len(data) != int(sys.argv[2]) or len(set(data)) != 1
        print(wrong, flush=True)
        """,
        path,
        str(size),
    )
    assert reader.stdout.readline().strip() == "ready"
    for number in (*range(1, 10), 255):
        fs.pipe_file(path, bytes([number]) * size)
        fs.flush()
    assert reader.stdout.readline().strip() == "0"
    assert os.listdir(sftp.root) == ["a"]


def test_libraries(s3, back):
    """pandas, pyarrow and zarr write through the protocol, read what is unsent, and find it at the store after that."""
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    zarr = pytest.importorskip("zarr")
    fs = back(s3)
    arguments = {"base_dir": fs.options.shared.base_dir, "write": "back", "max_uploads": 0}
    options = {"dogpile": arguments, "s3": {**s3.options, "skip_instance_cache": True}}
    table = pandas.DataFrame({"a": range(1000), "b": "text"})
    url = f"dogpile::s3://{s3.root}"
    table.to_csv(f"{url}/a.csv", index=False, storage_options=options)
    assert pandas.read_csv(f"{url}/a.csv", storage_options=options).equals(table)
    table.to_parquet(f"{url}/a.parquet", storage_options=options)
    parquet.write_table(
        parquet.read_table(f"{s3.root}/a.parquet", filesystem=fs), f"{s3.root}/b.parquet", filesystem=fs
    )
    array = zarr.create_array(f"{url}/a.zarr", shape=(10, 10), chunks=(5, 5), dtype="i4", storage_options=options)
    array[:] = 7
    assert zarr.open_array(f"{url}/a.zarr", mode="r", storage_options=options)[:].sum() == 700
    assert stored(fs, s3.root) == {}
    fs.flush()
    assert pandas.read_csv(f"s3://{s3.root}/a.csv", storage_options=s3.options).equals(table)
    assert parquet.read_table(f"{s3.root}/b.parquet", filesystem=fs.fs).num_rows == 1000
    assert zarr.open_array(f"s3://{s3.root}/a.zarr", mode="r", storage_options=s3.options)[:].sum() == 700


@pytest.fixture
def cached_s3(s3, back):
    """
    A filesystem for the suites, which does not send what is written.
    """
    fs, path = back(s3), f"{s3.root}/probe"
    fs.pipe_file(path, b"probe")
    assert fs.cat_file(path) == b"probe"
    assert stored(fs, s3.root) == {}
    fs.rm_file(path)
    return fs


class TestCopyBackOverS3(abstract.AbstractCopyTests, OverS3):
    """
    Copies, written back over S3.
    """


class TestGetBackOverS3(abstract.AbstractGetTests, OverS3):
    """
    Copies from what is unsent.
    """


class TestOpenBackOverS3(abstract.AbstractOpenTests, OverS3):
    """
    Open, written back over S3.
    """


class TestPipeBackOverS3(abstract.AbstractPipeTests, OverS3):
    """
    Pipe, written back over S3.
    """


class TestPutBackOverS3(abstract.AbstractPutTests, OverS3):
    """
    Put, written back over S3.
    """
