"""
Files written back to real storage servers.
"""

from __future__ import annotations

import inspect
import os
import random

import pytest

fsspec = pytest.importorskip("fsspec")

from fsspec.tests import abstract  # noqa: E402 - after what may be missing

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


@pytest.mark.parametrize("store", ["s3", "sftp"])
def test_life(store, back, request):
    """Files are written, replaced, renamed, copied and removed, seen at once by other readers, and sent by a flush."""
    storage = request.getfixturevalue(store)
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


def test_s3_conflict(s3, back):
    """A change by somebody else is noticed by its etag; then a person decides, or both are kept."""
    fs, path = back(s3, on_conflict="error"), f"{s3.root}/report.csv"
    fs.fs.pipe_file(path, b"old!!")
    fs.cat_file(path)
    fs.pipe_file(path, b"ours!")
    fs.fs.pipe_file(path, b"their")
    with pytest.raises(UploadError) as raised:
        fs.flush()
    assert isinstance(raised.value.failed[path], Conflict)
    assert stored(fs, s3.root) == {"report.csv": b"their"}
    assert fs.cat_file(path) == b"ours!"
    fs.flush(on_conflict="keep")
    found = stored(fs, s3.root)
    [beside] = set(found) - {"report.csv"}
    assert beside.startswith("report (conflict ")
    assert found == {"report.csv": b"their", beside: b"ours!"}
    assert fs.cat_file(path) == b"their"
    assert fs.cat_file(f"{s3.root}/{beside}") == b"ours!"


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


class BackOverS3(abstract.AbstractFixtures):
    """Nothing is sent: what is read is what is unsent."""

    @pytest.fixture
    def fs(self, s3, back):
        return back(s3)

    @pytest.fixture
    def fs_path(self, s3):
        return s3.root

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self):
        return False


class TestOpenBackOverS3(abstract.AbstractOpenTests, BackOverS3):
    """
    Open, written back over S3.
    """


class TestPipeBackOverS3(abstract.AbstractPipeTests, BackOverS3):
    """
    Pipe, written back over S3.
    """


class TestPutBackOverS3(abstract.AbstractPutTests, BackOverS3):
    """
    Put, written back over S3.
    """
