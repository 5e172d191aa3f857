"""
What tells one version of a file from another, by what each store tells of its files. The dicts were recorded from real
stores, as fsspec's ``info`` and ``ls`` answered them.
"""

from __future__ import annotations

import datetime
import os
import time

import pytest

from dogpile_filesystem.sources import Identity, identity_of_info, identity_of_stat

UTC = datetime.timezone.utc
#: Thursday, 26 November 2026, 09:32:00 UTC.
CHANGED = 1_795_685_520
WHOLE = datetime.datetime(2026, 11, 26, 9, 32, tzinfo=UTC)
HTTP_DATE = "Thu, 26 Nov 2026 09:32:00 GMT"
MD5 = "d7b09c2c7b7b2b8b9a8f3c1e5d6a7b80"
HALF_A_DAY = 12 * 3600

#: Each store: its protocol, a file that it tells of, another version of the same size that was written within the same
#: second, and whether the identity must tell them apart.
S3 = {
    "ETag": f'"{MD5}"',
    "LastModified": WHOLE,
    "size": 5,
    "name": "bkt/t/a.txt",
    "type": "file",
    "StorageClass": "STANDARD",
    "VersionId": "1795686488.39547",
    "ContentType": "binary/octet-stream",
}
S3_LISTED = {
    "Key": "bkt/t/a.txt",
    "LastModified": WHOLE,
    "ETag": f'"{MD5}"',
    "Size": 5,
    "StorageClass": "STANDARD",
    "type": "file",
    "size": 5,
    "name": "bkt/t/a.txt",
    "VersionId": None,
    "ChecksumAlgorithm": ["CRC32"],
}
AZURE = {
    "metadata": None,
    "creation_time": WHOLE,
    "deleted": None,
    "deleted_time": None,
    "last_modified": WHOLE,
    "content_settings": {"content_type": "application/octet-stream", "content_md5": bytearray(b"\xd7\xb0")},
    "remaining_retention_days": None,
    "archive_status": None,
    "last_accessed_on": None,
    "etag": "0x1D2C6C5A3F41A40",
    "tags": None,
    "tag_count": None,
    "name": "bkt/t/a.txt",
    "size": 5,
    "type": "file",
}
GCS = {
    "kind": "storage#object",
    "id": "bkt/t/a.txt/1795685520123456",
    "name": "bkt/t/a.txt",
    "bucket": "bkt",
    "generation": "1795685520123456",
    "metageneration": "1",
    "contentType": "application/octet-stream",
    "timeCreated": "2026-11-26T09:32:00.123456Z",
    "updated": "2026-11-26T09:32:00.123456Z",
    "storageClass": "STANDARD",
    "size": 5,
    "md5Hash": "17CcLHt7K4uajzweXWp7gA==",
    "crc32c": "mnG7TA==",
    "etag": "CMDBrL7T7JQDEAE=",
    "type": "file",
    "ctime": datetime.datetime(2026, 11, 26, 9, 32, 0, 123456, tzinfo=UTC),
    "mtime": datetime.datetime(2026, 11, 26, 9, 32, 0, 123456, tzinfo=UTC),
}
SFTP = {
    "size": 5,
    "type": "file",
    "uid": 0,
    "gid": 0,
    "time": WHOLE + datetime.timedelta(hours=1),
    "mtime": WHOLE,
    "name": "/data/t/a.txt",
}
SSHFS = {**SFTP, "permissions": 0o100644}
WEBDAV = {
    "name": "t/a.txt",
    "href": "/t/a.txt",
    "size": 5,
    "created": WHOLE,
    "modified": WHOLE,
    "content_language": None,
    "content_type": "text/plain",
    "etag": "271614-1795685520-5",
    "type": "file",
    "display_name": "a.txt",
}
FTP = {
    "modify": "20261126093200",
    "perm": "radfwMT",
    "size": 5,
    "type": "file",
    "unique": "801g424fe",
    "name": "/t/a.txt",
}
FTP_LISTED = {
    "modify": "Nov 26 09:32",
    "unix.owner": "root",
    "unix.group": "root",
    "unix.mode": "-rw-r--r--",
    "size": 5,
    "type": "file",
    "name": "/t/a.txt",
}
HTTP = {
    "name": "http://127.0.0.1/t/a.txt",
    "size": 5,
    "mimetype": "application/octet-stream",
    "url": "http://127.0.0.1/t/a.txt",
    "ETag": '"424fe-18eb9a0c5d3f1a40-5"',
    "Last-Modified": HTTP_DATE,
    "type": "file",
}
HTTP_BARE = {
    "name": "http://127.0.0.1/t/a.txt",
    "size": None,
    "mimetype": "application/octet-stream",
    "url": "http://127.0.0.1/t/a.txt",
    "type": "file",
}
HTTP_LISTED = {"name": "http://127.0.0.1/t/a.txt", "size": None, "type": "file"}
LOCAL = {
    "name": "/data/t/a.txt",
    "size": 5,
    "type": "file",
    "created": CHANGED + 0.3125,
    "islink": False,
    "mode": 0o100644,
    "uid": 0,
    "gid": 0,
    "mtime": CHANGED + 0.25,
    "ino": 271614,
    "nlink": 1,
}
MEMORY = {
    "name": "/bkt/t/a.txt",
    "size": 5,
    "type": "file",
    "created": datetime.datetime(2026, 11, 26, 9, 32, 0, 123456, tzinfo=UTC),
}
SWIFT = {
    "name": "t/a.txt",
    "hash": MD5,
    "bytes": 5,
    "content_type": "application/octet-stream",
    "last_modified": "2026-11-26T09:32:00.123456",
}
SWIFT_HEAD = {
    "etag": MD5,
    "content-length": "5",
    "last-modified": "Thu, 26 Nov 2026 09:32:01 GMT",
    "x-timestamp": "1795685520.12346",
}
S3_PROTOCOLS, AZURE_PROTOCOLS, GCS_PROTOCOLS = ("s3", "s3a"), ("abfs", "az", "abfss"), ("gs", "gcs")
SFTP_PROTOCOLS, FILE_PROTOCOLS = ("sftp", "ssh"), ("file", "local")


@pytest.mark.parametrize(
    ("info", "protocol", "expected"),
    [
        (S3, S3_PROTOCOLS, Identity(f"etag:{MD5}:5", 5, CHANGED, 0.0)),
        (S3_LISTED, S3_PROTOCOLS, Identity(f"etag:{MD5}:5", 5, CHANGED, 0.0)),
        (AZURE, AZURE_PROTOCOLS, Identity("etag:0x1D2C6C5A3F41A40:5", 5, CHANGED, 0.0)),
        (GCS, GCS_PROTOCOLS, Identity("generation:1795685520123456:5", 5, CHANGED + 0.123456, 0.0)),
        (SFTP, SFTP_PROTOCOLS, Identity(f"time:{CHANGED}.000000:5", 5, CHANGED, 1.0)),
        (SSHFS, SFTP_PROTOCOLS, Identity(f"time:{CHANGED}.000000:5", 5, CHANGED, 1.0)),
        (
            WEBDAV,
            ("webdav", "dav"),
            Identity(f"time:{CHANGED}.000000:5:271614-1795685520-5", 5, CHANGED, 1.0),
        ),
        (FTP, "ftp", Identity(f"time:{CHANGED}.000000:5:801g424fe", 5, CHANGED, 1.0)),
        (FTP_LISTED, "ftp", Identity("time:Nov 26 09:32:5", 5, CHANGED + HALF_A_DAY, 60.0)),
        (HTTP, ("http", "https"), Identity("etag:424fe-18eb9a0c5d3f1a40-5:5", 5, CHANGED, 0.0)),
        (HTTP_BARE, ("http", "https"), None),
        (HTTP_LISTED, ("http", "https"), None),
        (
            LOCAL,
            FILE_PROTOCOLS,
            Identity(f"time:{CHANGED}.250000:5:271614:{CHANGED}.3125", 5, CHANGED + 0.25, 0.02),
        ),
        (MEMORY, "memory", Identity(f"time:{CHANGED}.123456:5", 5, CHANGED + 0.123456, 0.0)),
        (SWIFT, "swift", Identity(f"etag:{MD5}:5", 5, CHANGED + 0.123456, 0.0)),
        (SWIFT_HEAD, "swift", Identity(f"etag:{MD5}:5", 5, CHANGED + 1, 0.0)),
        ({"name": "bkt/t", "size": 0, "type": "directory", "StorageClass": "DIRECTORY"}, S3_PROTOCOLS, None),
        (
            {"name": "a", "size": 5, "type": "file", "sha": "8baef1b4"},
            "github",
            Identity("etag:8baef1b4:5", 5, None, 0.0),
        ),
        ({}, "", None),
    ],
    ids=[
        *("s3", "s3-listed", "azure", "gcs", "sftp", "sshfs", "webdav", "ftp-mlsd", "ftp-list", "http", "http-bare"),
        *("http-listed", "local", "memory", "swift", "swift-head", "s3-directory", "github", "nothing"),
    ],
)
def test_stores(info, protocol, expected):
    """Each store's best field is the token, always with the size, and the resolution is that of the field."""
    assert identity_of_info(info, protocol, clock=lambda: CHANGED + 30) == expected


def test_listing_and_look_up_agree():
    """A row of a listing gives the token that a look-up of the file gives, where both tell enough."""
    for row, found, protocol in ((S3_LISTED, S3, "s3"), (SWIFT, SWIFT_HEAD, "swift")):
        assert identity_of_info(row, protocol).token == identity_of_info(found, protocol).token
    listed = {**MEMORY, "created": MEMORY["created"].timestamp()}
    assert identity_of_info(listed, "memory") == identity_of_info(MEMORY, "memory")


@pytest.mark.parametrize(
    ("info", "protocol", "change"),
    [
        (S3, "s3", {"ETag": '"another"'}),
        (S3, "s3", {"size": 6}),
        (GCS, "gs", {"generation": "1795685520123457"}),
        (SFTP, "sftp", {"mtime": WHOLE + datetime.timedelta(seconds=1)}),
        (SFTP, "sftp", {"size": 6}),
        (WEBDAV, "webdav", {"etag": "271615-1795685520-5"}),
        (FTP, "ftp", {"unique": "801g424ff"}),
        (FTP_LISTED, "ftp", {"size": 6}),
        (HTTP, "http", {"ETag": '"another"'}),
        (LOCAL, "file", {"ino": 271615}),
        (LOCAL, "file", {"created": CHANGED + 0.5}),
        (MEMORY, "memory", {"created": MEMORY["created"] + datetime.timedelta(microseconds=1)}),
    ],
)
def test_change(info, protocol, change):
    """Another version has another token, by any field that tells it."""
    assert identity_of_info({**info, **change}, protocol).token != identity_of_info(info, protocol).token


@pytest.mark.parametrize(
    ("info", "protocol", "change"),
    [
        (S3, "s3", {"LastModified": WHOLE + datetime.timedelta(days=1), "VersionId": None, "StorageClass": "GLACIER"}),
        (GCS, "gs", {"metageneration": "2", "etag": "CMDBrL7T7JQDEAI=", "updated": "2026-12-26T09:32:00Z"}),
        (SFTP, "sftp", {"time": WHOLE + datetime.timedelta(days=1), "uid": 1}),
        (HTTP, "http", {"url": "http://mirror/t/a.txt", "Last-Modified": "Fri, 27 Nov 2026 09:32:00 GMT"}),
        (LOCAL, "file", {"nlink": 2}),
    ],
)
def test_no_change(info, protocol, change):
    """What says nothing of the content is no part of the token."""
    assert identity_of_info({**info, **change}, protocol).token == identity_of_info(info, protocol).token


@pytest.mark.parametrize(
    ("info", "protocol", "resolution"),
    [
        ({**HTTP, "ETag": f'W/"{MD5}"'}, "http", 1.0),
        ({**HTTP, "ETag": f'"{CHANGED:x}-5"'}, "http", 1.0),
        ({**HTTP, "ETag": f'"{CHANGED}.0-5-3405"'}, "http", 1.0),
        ({"etag": "abc", "size": 5}, "unknown", 0.0),
        ({"etag": "abc", "size": 5, "mtime": CHANGED + 0.5}, "unknown", 0.0),
        ({"etag": "abc", "size": 5, "mtime": CHANGED}, "unknown", 1.0),
        ({"etag": "abc", "size": 5, "mtime": "yesterday"}, "unknown", 1.0),
        ({"etag": "abc", "size": 5, "mtime": CHANGED}, ("unknown", "s3"), 0.0),
        ({"etag": "abc", "size": 5}, "webdav", 1.0),
        ({"etag": "abc", "hash": MD5, "size": 5}, "webdav", 0.0),
    ],
    ids=[
        *("weak", "nginx", "werkzeug", "unknown", "unknown-fraction", "unknown-second", "unknown-text"),
        *("known", "webdav", "hash"),
    ],
)
def test_doubtful_etag(info, protocol, resolution):
    """An etag that is weak, made of a whole second, or of a source of the kind that does so, has its resolution."""
    assert identity_of_info(info, protocol).resolution == resolution


def test_doubtful_etag_is_part_of_the_token():
    """An etag that may miss a change is compared nevertheless."""
    info = {**HTTP, "ETag": 'W/"a"'}
    assert identity_of_info(info, "http").token != identity_of_info({**info, "ETag": 'W/"b"'}, "http").token
    bare = {"ETag": 'W/"a"', "size": 5}
    assert identity_of_info(bare, "http").token != identity_of_info({**bare, "ETag": 'W/"b"'}, "http").token


@pytest.mark.parametrize("size", [None, "", "many"])
def test_no_size(size):
    """A size that is not told, or no number, is unknown."""
    assert identity_of_info({"etag": "abc", "size": size}).size is None


@pytest.mark.parametrize(
    ("age", "resolution", "settled"),
    [
        *((0, 0.0, True), (-100, 0.0, True)),
        *((-100, 1.0, False), (0, 1.0, False), (1.5, 1.0, False), (2.5, 1.0, True)),
        *((0.03, 0.02, False), (0.05, 0.02, True)),
        *((100, 60.0, False), (121, 60.0, True)),
    ],
)
def test_settled(age, resolution, settled):
    """A version is settled once it is older than twice the resolution, and at once if its token tells everything."""
    assert Identity("a", 5, CHANGED, resolution).is_settled(CHANGED + age) is settled


def test_never_settled():
    """A version without a time of change is settled only if its token tells everything."""
    assert Identity("a", 5, None, 0.0).is_settled(CHANGED)
    assert not Identity("a", 5, None, 1.0).is_settled(CHANGED)


def test_stat(tmp_path):
    """A local file has a new identity after every write, even one that sets the time of change back."""
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    seen = {identity_of_stat(os.stat(path)).token}
    first = os.stat(path)
    until_next_tick(tmp_path)
    path.write_bytes(b"54321")
    os.utime(path, ns=(first.st_atime_ns, first.st_mtime_ns))
    seen.add(identity_of_stat(os.stat(path)).token)
    until_next_tick(tmp_path)
    other = tmp_path / "b"
    other.write_bytes(b"abcde")
    os.utime(other, ns=(first.st_atime_ns, first.st_mtime_ns))
    os.replace(other, path)
    found = identity_of_stat(os.stat(path))
    seen.add(found.token)
    assert len(seen) == 3
    assert (found.size, found.resolution) == (5, 0.02)
    assert found.changed == pytest.approx(os.stat(path).st_ctime)


def test_stat_of_whole_seconds(tmp_path):
    """A local filesystem that keeps whole seconds gets their resolution."""
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    # What a filesystem of whole seconds tells.
    found = StatOfWholeSeconds(os.stat(path))
    assert identity_of_stat(found).resolution == 1.0


class StatOfWholeSeconds:
    def __init__(self, found):
        self.st_ino, self.st_size = found.st_ino, found.st_size
        self.st_mtime_ns = self.st_ctime_ns = found.st_ctime_ns // 10**9 * 10**9


def until_next_tick(directory):
    """Wait until the filesystem gives new files another time: some milliseconds."""
    probe = directory / "probe"
    probe.touch()
    before = os.stat(probe).st_ctime_ns
    while os.stat(probe).st_ctime_ns == before:
        time.sleep(0.001)
        os.utime(probe)
    probe.unlink()
