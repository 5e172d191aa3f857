"""
The storage servers of the tests answer fsspec as real ones do: the other tests of this folder rest on it.
"""

from __future__ import annotations

import os

import pytest

from dogpile_filesystem.sources import honours_ranges, is_rewritten_in_place, source_identity

fsspec = pytest.importorskip("fsspec")
CONTENT = bytes(range(256)) * 1024


@pytest.fixture
def fetch():
    """
    Reads from an HTTP server, by a filesystem of the test's own.
    """
    return fsspec.filesystem("http", skip_instance_cache=True)


def test_s3(s3):
    """S3 keeps an object, answers ranges of it, and tells its versions apart at once."""
    fs, path = fsspec.filesystem(s3.protocol, **s3.options), f"{s3.root}/a/b.bin"
    fs.pipe_file(path, CONTENT)
    before = source_identity(fs, path)[1]
    assert (before.size, before.resolution) == (len(CONTENT), 0.0)
    assert fs.cat_file(path, start=1000, end=1010) == CONTENT[1000:1010]
    # Somebody else writes: what this filesystem has listed does not know of it.
    assert fs.ls(f"{s3.root}/a", detail=False) == [path]
    fsspec.filesystem(s3.protocol, **s3.options, skip_instance_cache=True).pipe_file(path, CONTENT[::-1])
    after = source_identity(fs, path)[1]
    assert after.token != before.token
    assert not is_rewritten_in_place(fs)


def test_sftp(sftp):
    """SFTP keeps a file, answers ranges of it, and tells the time of change in seconds."""
    fs, path = fsspec.filesystem(sftp.protocol, **sftp.options), f"{sftp.root}/b.bin"
    fs.pipe_file(path, CONTENT)
    assert fs.cat_file(path, start=1000, end=1010) == CONTENT[1000:1010]
    os.utime(path, (1.5, 1.5))
    identity = source_identity(fs, path)[1]
    assert (identity.size, identity.changed, identity.resolution) == (len(CONTENT), 1.0, 1.0)
    assert is_rewritten_in_place(fs)
    assert honours_ranges(fs)


def test_http(http, fetch):
    """An HTTP server answers ranges, and counts them."""
    (http.directory / "b.bin").write_bytes(CONTENT)
    url = f"{http.url}/b.bin"
    identity = source_identity(fetch, url)[1]
    assert (identity.size, identity.resolution) == (len(CONTENT), 0.0)
    assert fetch.cat_file(url, start=1000, end=1010) == CONTENT[1000:1010]
    assert fetch.cat_file(url, start=-10) == CONTENT[-10:]
    assert [each.sent for each in http.answered("GET")] == [10, 10]
    assert fetch.ls(f"{http.url}/", detail=False) == [url]
    with pytest.raises(FileNotFoundError):
        fetch.cat_file(f"{http.url}/missing")


def test_bare_http(http, fetch):
    """A bare HTTP server tells nothing, and answers a range with the whole file."""
    (http.directory / "b.bin").write_bytes(CONTENT)
    url = f"{http.url}/b.bin"
    http.bare()
    info, identity = source_identity(fetch, url)
    assert (info["size"], identity) == (None, None)
    # To look for the length, fsspec also begins to read the file.
    assert [each.method for each in http.answered()] == ["HEAD", "GET"]
    http.forget()
    assert fetch.cat_file(url, start=1000, end=1010) == CONTENT
    assert http.sent() == len(CONTENT)
    with fetch.open(url) as file:
        assert file.read() == CONTENT
        with pytest.raises(ValueError, match="seek"):
            file.seek(1000)


@pytest.mark.parametrize(("gzip", "size"), [("asked", len(CONTENT)), ("always", None)])
def test_compressing_http(http, fetch, gzip, size):
    """An HTTP server that compresses sends fewer bytes, and the client gets all; the length may be unknown."""
    (http.directory / "b.bin").write_bytes(CONTENT)
    url = f"{http.url}/b.bin"
    http.gzip = gzip
    assert fetch.info(url)["size"] == size
    assert fetch.cat_file(url) == CONTENT
    assert 0 < http.sent() < len(CONTENT)


def test_http_etags(http, fetch):
    """A weak etag is not trusted beyond the second, and a condition on an etag is obeyed."""
    (http.directory / "b.bin").write_bytes(CONTENT)
    url = f"{http.url}/b.bin"
    etag = fetch.info(url)["ETag"]
    assert fetch.cat_file(url, headers={"If-Match": etag}) == CONTENT
    (http.directory / "b.bin").write_bytes(CONTENT[1:])
    with pytest.raises(Exception, match="412"):
        fetch.cat_file(url, headers={"If-Match": etag})
    http.etag = "weak"
    assert source_identity(fetch, url)[1].resolution == 1.0
