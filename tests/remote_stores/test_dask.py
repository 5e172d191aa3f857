"""
dask writes many files at once to S3 through the cache: through, and back.
"""

from __future__ import annotations

import pytest

fsspec = pytest.importorskip("fsspec")
pandas = pytest.importorskip("pandas")

PARTS = 4


@pytest.fixture(params=["through", "back"])
def written(request, s3, cached):
    """
    The URL of a bucket behind the cache, with its options; and a check that what was written back goes there when it
    is flushed, and not before.
    """
    arguments = {"write": request.param, "max_uploads": 0} if request.param == "back" else {}
    fs = cached(s3, **arguments)
    options = {"dogpile": {"base_dir": fs.options.shared.base_dir, **arguments}, "s3": s3.options}

    def sent(count):
        fs.fs.invalidate_cache()
        if request.param == "back":
            assert fs.fs.find(s3.root) == []
            assert len(fs.unsent()) == count
            fs.flush()
            fs.fs.invalidate_cache()
        assert fs.unsent() == []
        assert len(fs.fs.find(s3.root)) == count

    return f"dogpile::s3://{s3.root}", options, sent


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # dask uses it.
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_dataframe(written, s3, form):
    """A table in several parts is written, read through the cache, and is the same at the store."""
    dataframe = pytest.importorskip("dask.dataframe")
    pytest.importorskip("pyarrow")
    url, options, sent = written
    table = pandas.DataFrame({"a": range(1000), "b": "text"})
    read, suffix = (dataframe.read_csv, "/*.csv") if form == "csv" else (dataframe.read_parquet, "")
    parts = dataframe.from_pandas(table, npartitions=PARTS)
    if form == "csv":
        parts.to_csv(f"{url}/table/*.csv", index=False, storage_options=options)
    else:
        parts.to_parquet(f"{url}/table", storage_options=options)
    for place, needed in ((f"{url}/table{suffix}", options), (f"s3://{s3.root}/table{suffix}", s3.options)):
        found = read(place, storage_options=needed).compute().reset_index(drop=True)
        assert found["a"].tolist() == table["a"].tolist()
        if place.startswith("dogpile"):
            sent(PARTS)


def test_bag(written, s3):
    """Texts in several parts are written by processes, and read back."""
    bag = pytest.importorskip("dask.bag")
    url, options, sent = written
    lines = [f"line {number}" for number in range(100)]
    bag.from_sequence(lines, npartitions=PARTS).to_textfiles(f"{url}/text/*.txt", storage_options=options)
    for place, needed in ((f"{url}/text/*.txt", options), (f"s3://{s3.root}/text/*.txt", s3.options)):
        # To start processes for these takes seconds.
        found = bag.read_text(place, storage_options=needed).compute(scheduler="threads")
        assert [line.rstrip() for line in found] == lines
        if place.startswith("dogpile"):
            sent(PARTS)


def test_array(written, s3):
    """An array in several chunks is written as zarr, and read back."""
    array = pytest.importorskip("dask.array")
    zarr = pytest.importorskip("zarr")
    url, options, sent = written
    array.arange(100, chunks=25).to_zarr(f"{url}/array.zarr", storage_options=options)
    assert array.from_zarr(f"{url}/array.zarr", storage_options=options).sum().compute() == 4950
    sent(PARTS + 1)  # The array's metadata, too.
    assert zarr.open_array(f"s3://{s3.root}/array.zarr", mode="r", storage_options=s3.options)[:].sum() == 4950
