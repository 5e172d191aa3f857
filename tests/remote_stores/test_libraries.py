"""
Libraries that read through the protocol from an HTTP server, which counts what it is asked: the values are right, and
what was read once is not sent again.
"""

from __future__ import annotations

import os

import pytest

fsspec = pytest.importorskip("fsspec")
numpy = pytest.importorskip("numpy")
pandas = pytest.importorskip("pandas")
ROWS = 200_000
#: The libraries also look for files that are not there. Nothing is kept of those.
NOT_FOUND = 404


@pytest.fixture
def table():
    """
    A table, of which a file takes several blocks.
    """
    numbers = numpy.arange(ROWS)
    hashed = (numbers * 2_654_435_761) % 4_294_967_296
    return pandas.DataFrame({"number": numbers, "hashed": hashed, "name": [f"name of {each}" for each in hashed]})


class Reading:
    """
    Reads through caches that count: the first time from the source, the second time from the cache.

    :ivar options: of the protocol, with the default ``check``.
    """

    def __init__(self, http, base_dir):
        self._http = http
        self.options = {"base_dir": base_dir}

    def put(self, name, write):
        """Have a file or a directory written, and make all its files old."""
        path = f"{self._http.directory}/{name}"
        write(path)
        below = [f"{root}/{file}" for root, _, files in os.walk(path) for file in files]
        for file in below or [path]:
            os.utime(file, (1e9, 1e9))
        return f"{self._http.url}/{name}"

    def filesystem(self, **arguments):
        return fsspec.filesystem(
            "dogpile", target_protocol="http", skip_instance_cache=True, **self.options, **arguments
        )

    def both(self, read, passed_on=0):
        """
        Call ``read(options)`` with an empty and with a warm cache, and twice more with ``check="never"``.

        :param passed_on: how many questions of the library itself are passed on to the source.
        :return: what it read each time; bytes that the source sent the first time; and how many questions for a version
         it got the second time.
        """
        found = [read(self.options)]
        sent = self._http.sent()
        self._http.forget()
        found.append(read(self.options))
        answered = [each for each in self._http.answered() if each.status != NOT_FOUND]
        assert {(each.method, each.sent) for each in answered} <= {("HEAD", 0)}
        found.append(read({**self.options, "check": "never"}))
        self._http.forget()
        found.append(read({**self.options, "check": "never"}))
        assert [each.method for each in self._http.answered() if each.status != NOT_FOUND] == ["HEAD"] * passed_on
        self._http.forget()
        return found, sent, len(answered)


@pytest.fixture
def reading(http, base_dir):
    return Reading(http, base_dir)


def size(http, name):
    return os.path.getsize(f"{http.directory}/{name}")


def test_pandas_csv(http, reading, table):
    """read_csv: opens the file once, and reads it to its end."""
    url = reading.put("t.csv", lambda path: table.to_csv(path, index=False))
    found, sent, asked = reading.both(
        lambda options: pandas.read_csv(f"dogpile::{url}", storage_options={"dogpile": options})
    )
    assert [each.equals(table) for each in found] == [True] * 4
    assert (sent, asked) == (size(http, "t.csv"), 1)


def test_pandas_csv_compressed(http, reading, table):
    """read_csv of a compressed file, which is cached as the source has it. pandas infers nothing from a chained URL."""
    url = reading.put("t.csv.gz", lambda path: table.to_csv(path, index=False))
    found, sent, asked = reading.both(
        lambda options: pandas.read_csv(f"dogpile::{url}", storage_options={"dogpile": options}, compression="gzip")
    )
    assert [each.equals(table) for each in found] == [True] * 4
    assert (sent, asked) == (size(http, "t.csv.gz"), 1)


def test_pandas_parquet(http, reading, table):
    """read_parquet: opens the file twice, for the schema and for the data, and reads from its end first."""
    url = reading.put("t.parquet", table.to_parquet)
    found, sent, asked = reading.both(
        lambda options: pandas.read_parquet(f"dogpile::{url}", storage_options={"dogpile": options})
    )
    assert [each.equals(table) for each in found] == [True] * 4
    assert (sent, asked) == (size(http, "t.parquet"), 2)


def test_one_column(http, reading, table):
    """ParquetFile.read of one column, of a file that the filesystem opened: only its blocks are fetched."""
    parquet = pytest.importorskip("pyarrow.parquet")
    url = reading.put("t.parquet", lambda path: table.to_parquet(path, compression=None))

    def read(options):
        fs = reading.filesystem(block_size="64KiB", check=options.get("check", "always"))
        with fs.open(url) as file:
            return parquet.ParquetFile(file).read(["hashed"]).to_pandas()

    found, sent, asked = reading.both(read)
    assert [each.equals(table[["hashed"]]) for each in found] == [True] * 4
    assert sent < size(http, "t.parquet") // 2
    assert asked == 1


def test_pyarrow_table(http, reading, table):
    """read_table with a filesystem: asks for the size, and opens the file."""
    parquet = pytest.importorskip("pyarrow.parquet")
    url = reading.put("t.parquet", table.to_parquet)
    found, sent, asked = reading.both(
        lambda options: parquet.read_table(url, filesystem=reading.filesystem(check=options.get("check", "always")))
    )
    assert [each.to_pandas().equals(table) for each in found] == [True] * 4
    assert sent == size(http, "t.parquet")
    assert asked <= 3


def test_pyarrow_dataset(http, reading, table):
    """A dataset of a list of files, and a filter: opens each file for its schema and for its data."""
    dataset = pytest.importorskip("pyarrow.dataset")
    half = ROWS // 2
    urls = [
        reading.put("1.parquet", table[:half].to_parquet),
        reading.put("2.parquet", table[half:].to_parquet),
    ]

    def read(options):
        fs = reading.filesystem(check=options.get("check", "always"))
        files = dataset.dataset(urls, filesystem=fs, format="parquet")
        return files.to_table(columns=["number"], filter=dataset.field("number") >= half - 10)["number"].to_pylist()

    found, sent, asked = reading.both(read)
    assert found == [list(range(half - 10, ROWS))] * 4
    assert sent <= size(http, "1.parquet") + size(http, "2.parquet")
    assert asked <= 6


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_csv(http, reading, table, scheduler):
    """dask.dataframe.read_csv in pieces: each is a task of a thread or a process, which opens the file and seeks."""
    dask = pytest.importorskip("dask")
    dataframe = pytest.importorskip("dask.dataframe")
    url = reading.put("t.csv", lambda path: table.to_csv(path, index=False))

    def read(options):
        with dask.config.set(scheduler=scheduler, num_workers=2):
            pieces = dataframe.read_csv(f"dogpile::{url}", storage_options={"dogpile": options}, blocksize="1MiB")
            return pieces.compute().reset_index(drop=True)

    found, sent, _ = reading.both(read)
    # dask has text in a type of pyarrow's.
    assert [each.astype({"name": object}).equals(table.astype({"name": object})) for each in found] == [True] * 4
    assert sent == size(http, "t.csv")


def test_dask_parquet(http, reading, table):
    """
    dask.dataframe.read_parquet: asks for the file's checksum, which is the source's, and opens the file for its schema
    and for each group of rows.
    """
    dataframe = pytest.importorskip("dask.dataframe")
    url = reading.put("t.parquet", lambda path: table.to_parquet(path, row_group_size=50_000))
    found, sent, _ = reading.both(
        lambda options: (
            dataframe.read_parquet(f"dogpile::{url}", storage_options={"dogpile": options})["hashed"].sum().compute()
        ),
        passed_on=1,
    )
    assert found == [table["hashed"].sum()] * 4
    assert sent <= size(http, "t.parquet")


def test_zarr(http, reading):
    """zarr.open_array, and a slice: reads the metadata, and of each chunk in the slice the whole file, by cat_file."""
    zarr = pytest.importorskip("zarr")
    values = numpy.arange(1_000_000).reshape(1000, 1000)
    url = reading.put("a.zarr", lambda path: zarr.create_array(path, data=values, chunks=(250, 250)))

    def read(options):
        array = zarr.open_array(f"dogpile::{url}", mode="r", storage_options={"dogpile": options})
        return array[100:600, 700:]

    found, _, asked = reading.both(read)
    assert [(each == values[100:600, 700:]).all() for each in found] == [True] * 4
    # The metadata, and three rows of two chunks.
    assert asked == 1 + 3 * 2


def test_sharded_zarr(http, reading):
    """zarr with shards: parts of a shard are read by cat_file with a start and an end, negative for its index."""
    zarr = pytest.importorskip("zarr")
    values = numpy.arange(1_000_000).reshape(1000, 1000)
    url = reading.put(
        "a.zarr",
        lambda path: zarr.create_array(path, data=values, chunks=(50, 50), shards=(500, 500), compressors=None),
    )

    def read(options):
        array = zarr.open_array(f"dogpile::{url}", mode="r", storage_options={"dogpile": options})
        return array[490:510, 3]

    found, _, _ = reading.both(read)
    assert [(each == values[490:510, 3]).all() for each in found] == [True] * 4


def test_xarray(http, reading):
    """xarray.open_zarr, a selection and a mean: as zarr, of several arrays below one group."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    values = numpy.arange(200_000.0).reshape(20, 10_000)
    dataset = xarray.Dataset({"t": (("year", "station"), values)}, coords={"year": numpy.arange(2000, 2020)})
    # With the metadata of all arrays in one file: a listing over HTTP is no listing of a store.
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        url = reading.put("x.zarr", lambda path: dataset.to_zarr(path, consolidated=True))

    def read(options):
        opened = xarray.open_zarr(f"dogpile::{url}", storage_options={"dogpile": options}, consolidated=True)
        return float(opened["t"].sel(year=2007).mean())

    found, _, _ = reading.both(read)
    assert found == [float(values[7].mean())] * 4
