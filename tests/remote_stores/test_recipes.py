"""
The examples on the page on files of slow storage that need servers or large libraries: they print what they say, and
the second time they get nothing from the source but answers to questions for the version.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import warnings

import documents
import pytest
from patience import PATIENCE

from dogpile_filesystem.layout import PART

fsspec = pytest.importorskip("fsspec")
PAGE = "docs/files.md"
HOST = "https://data.example.org"
STATIONS = b"name,height\nDe Bilt,2\nVaals,323\nSchiphol,-3\n"


@pytest.fixture
def recipe(tmp_path):
    for name in ("tmp", "var/cache"):
        (tmp_path / name).mkdir(parents=True)
    return lambda title: documents.section(PAGE, title, tmp_path)


@pytest.fixture
def measured():
    """
    What was measured in a year, as a table.
    """
    pandas = pytest.importorskip("pandas")

    def year(number):
        degrees = [8.5, 11.5, 20.5, number - 1994.5]
        return pandas.DataFrame({"station": list("abab"), "degrees": degrees, "remark": ["none"] * 4})

    return {2000: year(2000), 2026: year(2026)}


@pytest.fixture
def web(http):
    """
    The HTTP server that the page names: its files are old.
    """

    def put(name, content):
        (http.directory / name).write_bytes(content)
        os.utime(http.directory / name, (1e9, 1e9))

    http.put = put
    put("stations.csv", STATIONS)
    return http


@pytest.fixture
def bucket(moto, monkeypatch):
    """
    The bucket that the page names, with the credentials in the environment.
    """
    s3fs = pytest.importorskip("s3fs")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": moto}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fs = s3fs.S3FileSystem(key="key", secret="secret", endpoint_url=moto, skip_instance_cache=True)
    fs.mkdir("my-bucket")
    yield fs
    fs.invalidate_cache()
    fs.rm("my-bucket", recursive=True)


def spent(section):
    """What all processes that used the cache of a section have spent on its source."""
    fs = fsspec.filesystem("dogpile", target_protocol="memory", base_dir=section.base_dir, skip_instance_cache=True)
    return fs.stats().total.source


def assert_second_run_is_free(section):
    """Run the example twice, each time in a new process; how many requests the second one made."""
    assert section.complaints() == ""
    first = spent(section)
    assert first.source_bytes > 0
    assert section.complaints() == ""
    second = spent(section)
    assert second.source_bytes == first.source_bytes
    return second.requests - first.requests


def at(section, http):
    section.text = section.text.replace(HOST, http.url).replace('"https"', '"http"')
    return section


def test_first_example(recipe, web):
    """The example at the top of the page: the second time, one request, which has no body."""
    pytest.importorskip("pandas")
    section = at(recipe(""), web)
    assert section.complaints() == ""
    assert web.sent() == len(STATIONS)
    web.forget()
    assert section.complaints() == ""
    assert [(each.method, each.sent) for each in web.answered()] == [("HEAD", 0)]


def test_pandas(recipe, web, measured):
    """The second time, read_csv makes one request and read_parquet two, as the page says, and with seconds none."""
    web.put("measured.parquet", measured[2026].to_parquet())
    section = at(recipe("pandas"), web)
    assert section.complaints() == ""
    assert web.sent() == len(STATIONS) + (web.directory / "measured.parquet").stat().st_size
    web.forget()
    assert section.complaints() == ""
    assert [(each.method, each.path) for each in web.answered()] == [
        ("HEAD", "/stations.csv"),
        ("HEAD", "/measured.parquet"),
        ("HEAD", "/measured.parquet"),
    ]
    section.text = section.text.replace('myapp"}', 'myapp", "check": 60}')
    assert section.complaints() == ""
    web.forget()
    assert section.complaints() == ""
    assert web.answered() == []


def put_tables(bucket, measured):
    for year, table in measured.items():
        bucket.pipe_file(f"my-bucket/measured/{year}.parquet", table.to_parquet())


def test_pyarrow(recipe, bucket, measured):
    """A table and a dataset of several files are read, the second time without their bytes."""
    put_tables(bucket, measured)
    # One file is opened for the table. For the dataset, one of two is opened for the schema, and each to read it. Each
    # opening may be preceded by a question for the size.
    assert assert_second_run_is_free(recipe("pyarrow")) <= 2 * (1 + 1 + 2)


def test_dask(recipe, bucket, measured):
    """A pattern of files is read, the second time without their bytes."""
    put_tables(bucket, measured)
    assert_second_run_is_free(recipe("dask"))


def test_zarr(recipe, bucket, tmp_path):
    """An array is read, the second time without its chunks; if it never changes, without any request for them."""
    zarr = pytest.importorskip("zarr")
    numpy = pytest.importorskip("numpy")
    values = numpy.arange(1_000_000).reshape(1000, 1000)
    zarr.create_array(f"{tmp_path}/heights.zarr", data=values, chunks=(250, 250))
    bucket.put(f"{tmp_path}/heights.zarr", "my-bucket/heights.zarr", recursive=True)
    section = recipe("zarr")
    with_questions = assert_second_run_is_free(section)
    section.text = section.text.replace('myapp"}', 'myapp", "check": "never"}')
    # It asks for metadata of the older format, which is not there: nothing is kept of files that are missing.
    assert assert_second_run_is_free(section) < with_questions


def test_xarray(recipe, bucket, tmp_path):
    """A dataset is read, the second time without its chunks."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    dataset = xarray.Dataset(
        {"degrees": (("year", "station"), [[8.0, 9.0], [11.0, 12.0]])}, coords={"year": [2000, 2026]}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.to_zarr(f"{tmp_path}/climate.zarr", consolidated=False)
    bucket.put(f"{tmp_path}/climate.zarr", "my-bucket/climate.zarr", recursive=True)
    assert_second_run_is_free(recipe("xarray"))


def test_files_that_never_change(recipe, bucket):
    """What is in the cache is read without a request, even if it did change; after forget() it is looked up."""
    path = "my-bucket/by-hash/5d41402a"
    bucket.pipe_file(path, b"hello")
    section = recipe("Files that never change")
    assert assert_second_run_is_free(section) == 0
    bucket.pipe_file(path, b"other")
    files = section.module().files
    assert files.cat(path) == b"hello"
    files.forget(path)
    assert files.cat(path) == b"other"


def test_changing_credentials(recipe, bucket):
    """With a namespace, readers with other credentials share blocks; without one, each fetches for itself."""
    bucket.pipe_file("my-bucket/report", b"report")
    section = recipe("Credentials that change")

    def bytes_fetched(hour):
        files = section.module().open_files(f"key {hour}", "secret", hour)
        assert files.cat("my-bucket/report") == b"report"
        return files.stats().process.source.source_bytes

    assert [bytes_fetched("one"), bytes_fetched("two")] == [6, 0]
    section.text = section.text.replace('        namespace="the reports of myapp",\n', "")
    assert [bytes_fetched("three"), bytes_fetched("four")] == [6, 6]


def test_offline(recipe, web):
    """While the server is down, what is there of the last known version is served and counted; all else is an error."""
    section = at(recipe("Offline"), web)
    assert section.complaints() == ""
    url = f"{web.url}/stations.csv"
    files = section.module().files
    assert files.cat(url) == STATIONS
    web.stop()
    assert files.cat(url) == STATIONS
    assert files.stats().process.source.stale_served == 1
    with pytest.raises(FileNotFoundError):
        files.cat(f"{web.url}/never-read.csv")
    # A block that is not in the cache: the source's error, and never a shorter file.
    files.store.remove(files.versions.opened(url).key(0), PART)
    with pytest.raises(OSError, match="Cannot connect"):
        files.cat(url)


def test_warming(recipe, web):
    """What the command has fetched is read without a byte from the source."""
    pytest.importorskip("rich")
    section = at(recipe("Warming a cache"), web)
    [command] = section.blocks("sh")
    program, *arguments = shlex.split(command)
    assert program == "dogpile-filesystem"
    done = subprocess.run(
        [sys.executable, "-m", "dogpile_filesystem", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert web.sent() == len(STATIONS)
    files = fsspec.filesystem("dogpile", target_protocol="http", base_dir=section.base_dir, skip_instance_cache=True)
    assert files.cat(f"{web.url}/stations.csv") == STATIONS
    assert web.sent() == len(STATIONS)
