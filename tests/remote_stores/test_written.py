"""
Files written through the cache to real storage servers.
"""

from __future__ import annotations

import os
import random

import pytest

fsspec = pytest.importorskip("fsspec")

from fsspec.tests import abstract  # noqa: E402 - after what may be missing
from s3_suites import OverS3  # noqa: E402 - likewise

NEW = random.Random(1).randbytes(3_000_000)


def test_s3(s3, cached):
    """What is written to S3 is read without a request for its bytes; an exclusive file is refused by the server."""
    fs, path = cached(s3, check="never"), f"{s3.root}/a.bin"
    with fs.open(path, "wb", ContentType="text/x-own") as file:
        file.write(NEW)
    assert fs.fs.info(path)["ContentType"] == "text/x-own"
    assert fs.cat_file(path) == NEW
    with fs.open(path, "ab") as file:
        file.write(b"more")
    assert fs.cat_file(path) == NEW + b"more"
    assert fs.stats().process.source.source_bytes == 0
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")
    new = fs.open(f"{s3.root}/x", "xb")
    fs.fs.pipe_file(f"{s3.root}/x", b"theirs")
    with pytest.raises(FileExistsError):
        new.close()
    assert fs.cat_file(f"{s3.root}/x") == b"theirs"


def test_s3_foreign_change_behind_a_put(s3, cached, monkeypatch):
    """What somebody else puts in the place of an object, just after it was put, is not taken for it."""
    fs, path = cached(s3), f"{s3.root}/a.bin"
    put = fs.fs.put_file

    def put_file(lpath, rpath, **options):
        put(lpath, rpath, **options)
        fs.fs.pipe_file(path, NEW[::-1])

    monkeypatch.setattr(fs.fs, "put_file", put_file)
    fs.pipe_file(path, NEW)
    assert fs.cat_file(path) == NEW[::-1]


def test_s3_transaction(s3, cached):
    """Objects of a transaction appear at its end; of one that fails, none does."""
    fs = cached(s3)
    with fs.transaction:
        fs.pipe({f"{s3.root}/a": b"a", f"{s3.root}/b": b"b"})
        assert not fs.exists(f"{s3.root}/a")
    assert fs.cat([f"{s3.root}/a", f"{s3.root}/b"]) == {f"{s3.root}/a": b"a", f"{s3.root}/b": b"b"}
    with pytest.raises(ZeroDivisionError), fs.transaction:
        fs.pipe_file(f"{s3.root}/a", b"c")
        raise ZeroDivisionError
    assert fs.cat_file(f"{s3.root}/a") == b"a"


def test_sftp(sftp, cached, spawn):
    """Over SFTP a file is replaced at once: nobody ever meets a part of it, or none; and nothing is left beside it."""
    fs, path = cached(sftp), f"{sftp.root}/a"
    size = 1 << 20
    fs.pipe_file(path, b"\0" * size)
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
    for number in (*range(1, 30), 255):
        with fs.open(path, "wb") as file:
            file.write(bytes([number]) * size)
    assert reader.stdout.readline().strip() == "0"
    assert os.listdir(sftp.root) == ["a"]
    assert fs.cat_file(path) == b"\xff" * size
    with fs.open(path, "ab") as file:
        file.write(b"more")
    assert fs.cat_file(path, start=-5) == b"\xffmore"


@pytest.mark.parametrize("store", ["ftp", "webdav"])
def test_replaced(store, cached, request):
    """Over FTP and WebDAV a file is written, replaced and appended to, and nothing is left beside it."""
    storage = request.getfixturevalue(store)
    fs, path = cached(storage), f"{storage.root}/d/a"
    fs.pipe_file(path, b"first")
    fs.pipe_file(path, NEW)
    with fs.open(path, "ab") as file:
        file.write(b"more")
    assert fs.cat_file(path) == NEW + b"more"
    assert os.listdir(storage.directory / "d") == ["a"]
    assert (storage.directory / "d" / "a").read_bytes() == NEW + b"more"


def test_libraries(s3, cached):
    """pandas and pyarrow write through the protocol, and read from the cache what they wrote."""
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    fs = cached(s3, check="never")
    options = {"dogpile": {"base_dir": fs.options.shared.base_dir}, "s3": s3.options}
    table = pandas.DataFrame({"a": range(1000), "b": "text"})
    url = f"dogpile::s3://{s3.root}"
    table.to_csv(f"{url}/a.csv", index=False, storage_options=options)
    table.to_parquet(f"{url}/a.parquet", storage_options=options)
    assert pandas.read_csv(f"{url}/a.csv", storage_options=options).equals(table)
    assert pandas.read_parquet(f"{url}/a.parquet", storage_options=options).equals(table)
    parquet.write_table(
        parquet.read_table(f"{s3.root}/a.parquet", filesystem=fs), f"{s3.root}/b.parquet", filesystem=fs
    )
    assert parquet.read_table(f"{s3.root}/b.parquet", filesystem=fs).num_rows == 1000


def test_zarr(s3, cached):
    """zarr writes an array through the protocol, and reads it back."""
    zarr = pytest.importorskip("zarr")
    options = {"dogpile": {"base_dir": cached(s3).options.shared.base_dir}, "s3": s3.options}
    url = f"dogpile::s3://{s3.root}/a.zarr"
    array = zarr.create_array(url, shape=(10, 10), chunks=(5, 5), dtype="i4", storage_options=options)
    array[:] = 7
    assert zarr.open_array(url, mode="r", storage_options=options)[:].sum() == 700


@pytest.fixture
def cached_s3(s3, cached):
    return cached(s3)


class TestCopyOverS3(abstract.AbstractCopyTests, OverS3):
    """
    Copies over S3.
    """


class TestGetOverS3(abstract.AbstractGetTests, OverS3):
    """
    Copies from S3.
    """


class TestOpenOverS3(abstract.AbstractOpenTests, OverS3):
    """
    Objects, opened.
    """


class TestPipeOverS3(abstract.AbstractPipeTests, OverS3):
    """
    Bytes, written to S3.
    """


class TestPutOverS3(abstract.AbstractPutTests, OverS3):
    """
    Copies to S3.
    """
