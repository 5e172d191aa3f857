"""
The progress of copies from a real server, on the bars of tqdm.
"""

from __future__ import annotations

import io

import fsspec
import pytest

from dogpile_filesystem.remote import CachedFileSystem

tqdm = pytest.importorskip("tqdm")

SIZES = {"a.bin": 3_000_000, "b.bin": 10, "deep/c.bin": 100_000}


@pytest.fixture
def fs(http, base_dir):
    for name, size in SIZES.items():
        path = http.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    fs = CachedFileSystem(target_protocol="http", base_dir=base_dir, block_size="64KiB", skip_instance_cache=True)
    yield fs
    fs.release()


@pytest.fixture
def bars():
    """The bars that are shown."""
    return []


@pytest.fixture
def bar(bars):
    """Makes a callback that shows a bar."""

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    return lambda: fsspec.callbacks.TqdmCallback(tqdm_kwargs={"file": io.StringIO()}, tqdm_cls=Bar)


@pytest.mark.parametrize("is_warm", [False, True])
def test_bytes_of_a_file(fs, http, bar, bars, tmp_path, is_warm):
    """The bar of one file counts its bytes, whether they come from the source or from the cache."""
    if is_warm:
        fs.cat_file(f"{http.url}/a.bin")
    with bar() as callback:
        fs.get_file(f"{http.url}/a.bin", tmp_path / "copy", callback=callback)
    with bar() as callback:
        fs.open_local(f"{http.url}/a.bin", callback=callback)
    assert [(shown.n, shown.total) for shown in bars] == [(SIZES["a.bin"], SIZES["a.bin"])] * 2


def test_files_of_a_directory(fs, http, bar, bars, tmp_path):
    """The bar of several files counts the files."""
    with bar() as callback:
        fs.get([f"{http.url}/{name}" for name in SIZES], [f"{tmp_path}/{name}" for name in SIZES], callback=callback)
    with bar() as callback:
        copies = fs.open_local([f"{http.url}/{name}" for name in SIZES], callback=callback)
    assert [(shown.n, shown.total) for shown in bars] == [(len(SIZES), len(SIZES))] * 2
    assert len(copies) == len(SIZES)
