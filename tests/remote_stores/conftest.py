"""
Real storage servers, one of a kind for all tests, and in each test an empty place there.
"""

from __future__ import annotations

import itertools

import pytest
import storage_servers
import swift_server
from http_store import http_store
from storage_servers import Storage

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items):
    """
    Which patterns mean what is tested over memory and local files. Over S3, a server takes minutes for the same.
    """
    for item in items:
        if "OverS3" in item.nodeid and "glob_edge_cases" in item.name:
            item.add_marker(pytest.mark.time_intensive)


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    with storage_servers.moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    with storage_servers.sshd(tmp_path_factory.mktemp("sshd")) as options:
        yield options


@pytest.fixture(scope="session")
def ftpd(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ftpd")
    with storage_servers.ftpd(directory) as options:
        yield directory / "root", options


@pytest.fixture(scope="session")
def webdav_server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("webdav")
    with storage_servers.webdav(directory) as url:
        yield directory / "root", url


@pytest.fixture
def s3(moto):
    """
    A bucket of S3.
    """
    s3fs = pytest.importorskip("s3fs")
    bucket = f"bucket-{next(_numbers)}"
    options = {"key": "key", "secret": "secret", "endpoint_url": moto}
    s3fs.S3FileSystem(**options).mkdir(bucket)
    return Storage("s3", options, bucket)


@pytest.fixture
def sftp(sshd, tmp_path):
    """
    A directory on an SFTP server, by fsspec's own filesystem.
    """
    pytest.importorskip("paramiko")
    fsspec = pytest.importorskip("fsspec")
    sftp = pytest.importorskip("fsspec.implementations.sftp")
    # Where the package sshfs is installed, the protocol is its own, with other arguments.
    fsspec.register_implementation("sftp", sftp.SFTPFileSystem, clobber=True)
    directory = tmp_path / "sftp"
    directory.mkdir()
    yield Storage("sftp", sshd, str(directory), directory)
    # One made by the test would keep its connection beyond the server's end.
    for made in sftp.SFTPFileSystem._cache.values():
        made.client.close()
    sftp.SFTPFileSystem.clear_instance_cache()


@pytest.fixture
def ftp(ftpd):
    """
    A directory on an FTP server.
    """
    root, options = ftpd
    directory = root / f"d{next(_numbers)}"
    directory.mkdir()
    return Storage("ftp", options, f"/{directory.name}", directory)


@pytest.fixture
def webdav(webdav_server):
    """
    A directory on a WebDAV server.
    """
    pytest.importorskip("webdav4")
    root, url = webdav_server
    directory = root / f"d{next(_numbers)}"
    directory.mkdir()
    # Its client keeps connections that nobody closes.
    return Storage("webdav", {"base_url": url, "headers": {"Connection": "close"}}, directory.name, directory)


@pytest.fixture
def http(tmp_path):
    """
    An HTTP server of a directory, whose manners can be switched.
    """
    pytest.importorskip("aiohttp")
    directory = tmp_path / "http"
    directory.mkdir()
    with http_store(directory) as store:
        yield store


@pytest.fixture
def cached(base_dir):
    """
    Makes filesystems that cache a store in the test's directory. They know of each other as little as those of two
    processes do.
    """
    fsspec = pytest.importorskip("fsspec")

    def make(storage, **arguments):
        return fsspec.filesystem(
            "dogpile",
            target_protocol=storage.protocol,
            target_options={**storage.options, "skip_instance_cache": True},
            base_dir=base_dir,
            skip_instance_cache=True,
            **arguments,
        )

    return make


@pytest.fixture(scope="session")
def swift(tmp_path_factory):
    """
    A Swift of four servers.
    """
    with swift_server.swift(tmp_path_factory.mktemp("swift")) as running:
        yield running


@pytest.fixture(scope="session")
def keystone(swift):
    """
    The URL of a Keystone in front of the Swift.
    """
    with swift_server.keystone(swift) as url:
        yield url
