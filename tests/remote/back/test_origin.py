"""
What is kept of a source with an unsent file, so that it can be made again: all of it, but no secret.
"""

from __future__ import annotations

import pytest

fsspec = pytest.importorskip("fsspec")

from dogpile_filesystem.remote.back.origin import describe  # noqa: E402 - it needs fsspec

LOCAL = {"skip_instance_cache": True, "use_listings_cache": False}


def kept(**options):
    """What is kept of a source with these options, and the names of what is not."""
    found = describe(fsspec.filesystem("file", **LOCAL, **options))
    return {name: value for name, value in found["options"].items() if name not in LOCAL}, found["left_out"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("anon", True),
        ("port", 2022),
        ("host", "example.org"),
        ("endpoint_url", "http://localhost:9000"),
        ("client_kwargs", {"endpoint_url": "http://localhost:9000", "region_name": "eu-west-1"}),
        ("timeout", 2.5),
        ("nothing", None),
        ("mirrors", ["a", "b"]),
        ("username", "me"),
    ],
)
def test_kept(name, value):
    """What is no secret is kept as it is."""
    assert kept(**{name: value}) == ({name: value}, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", "x"),
        ("secret", "x"),
        ("key", "x"),
        ("token", "x"),
        ("sas_token", "x"),
        ("account_key", "x"),
        ("connection_string", "x"),
        ("credentials", {"a": 1}),
        ("passphrase", "x"),
        ("headers", {"X-Mine": "x"}),
        ("client_kwargs", {"region_name": "eu", "aws_secret_access_key": "x"}),
        ("nested", [{"deep": {"auth": "x"}}]),
        ("proxy", "http://me:hunter2@example.org"),
        ("mirrors", ["https://example.org/?token=x"]),
        ("extra", "AccountName=a;AccountKey=x"),
        ("extra", "Bearer x"),
        ("extra", "-----BEGIN PRIVATE KEY-----"),
        ("thing", object()),
        ("thing", {1: 2}),
        ("data", b"x"),
        ("long", "x" * 2000),
    ],
)
def test_left_out(name, value):
    """What is a secret, or cannot be kept, is named, and nothing of it is kept."""
    assert kept(**{name: value, "port": 1}) == ({"port": 1}, [name])


def test_protocol():
    """The source is made again by a protocol, whatever other names that has."""
    for protocol in ("file", "memory"):
        source = fsspec.filesystem(protocol, skip_instance_cache=True)
        said = describe(source)
        assert type(fsspec.filesystem(said["protocol"], **said["options"])) is type(source)


def test_positional():
    """An option that was passed without its name has it nevertheless."""
    local = fsspec.get_filesystem_class("file")
    assert describe(local(True, skip_instance_cache=True))["options"]["auto_mkdir"] is True


def test_many_names():
    """However many options there are, what is kept stays small."""
    said = describe(fsspec.filesystem("file", **LOCAL, **{f"secret_{number}": 1 for number in range(1000)}))
    assert len(str(said)) < 3000
