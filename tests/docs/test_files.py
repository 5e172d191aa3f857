"""
The page on files of slow storage: its tables list everything that there is, and its examples do what they say. Those
that need servers or large libraries are tested in tests/remote_stores/test_recipes.py.
"""

from __future__ import annotations

import inspect
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import documents
import pytest
from patience import PATIENCE

fsspec = pytest.importorskip("fsspec")
from dogpile_filesystem.remote import CachedFileSystem  # noqa: E402 - the extra fsspec
from dogpile_filesystem.remote.options import OWN, SHARED  # noqa: E402

PAGE = "docs/files.md"
ARGUMENTS = "Arguments"
MOVING = "Moving from filecache, simplecache or blockcache"


@pytest.fixture
def recipe(tmp_path):
    for name in ("tmp", "var/cache"):
        (tmp_path / name).mkdir(parents=True)
    return lambda title: documents.section(PAGE, title, tmp_path)


def first_column(text):
    """All code in the first column of the tables of a text."""
    rows = [row for row in text.splitlines() if row.startswith("| `")]
    return [name for row in rows for name in re.findall("`(.*?)`", row.split("|")[1])]


def test_every_example_is_tested():
    """Each section of the page that has an example has a test, here or beside the servers."""
    tests = [Path(__file__), documents.ROOT / "tests/remote_stores/test_recipes.py"]
    tested = {title for path in tests for title in re.findall(r'recipe\("(.*?)"\)', path.read_text())}
    with_examples = {*documents.titles_with(PAGE, "python"), *documents.titles_with(PAGE, "sh")} - {"Installation"}
    assert tested | {MOVING} == with_examples


def test_arguments():
    """The page lists all arguments of the filesystem, with their defaults, and no others."""
    listed = first_column(documents.section(PAGE, ARGUMENTS, Path()).text)
    assert sorted(listed) == sorted([*SHARED, *OWN, "target_protocol", "target_options", "fs"])


def test_documented_arguments():
    """The docstring of the filesystem has the same arguments as the page."""
    documented = re.findall(r":param (\w+):", CachedFileSystem.__doc__)
    assert sorted(documented) == sorted(first_column(documents.section(PAGE, ARGUMENTS, Path()).text))


def test_options_of_other_caches():
    """The page says of each option of fsspec's own caches what it becomes."""
    cached = pytest.importorskip("fsspec.implementations.cached")
    options = set()
    for cache in (cached.CachingFileSystem, cached.WholeFileCacheFileSystem, cached.SimpleCacheFileSystem):
        options |= set(inspect.signature(cache.__init__).parameters) - {"self", "args", "kwargs"}
    # Older releases have fewer.
    assert options <= set(first_column(documents.section(PAGE, MOVING, Path()).text))


def test_moving(recipe):
    """A file is read through filecache, and through this cache, by the calls that the page says."""
    assert recipe(MOVING).complaints() == ""


def test_urls(recipe):
    """The examples with a URL and with a filesystem print what they say."""
    assert recipe("URLs").complaints() == ""


def test_statistics(recipe):
    """The example of the statistics prints what it says."""
    assert recipe("Statistics").complaints() == ""


def test_writing(recipe, tmp_path):
    """What the example writes is at the source, and nothing else, and is read from the cache."""
    assert recipe("Writing").complaints() == ""
    assert sorted(os.listdir(tmp_path / "tmp/myapp")) == ["a.txt", "b.txt", "written.bin"]


def test_listings(recipe):
    """The example of listings prints what it says."""
    assert recipe("Listings and metadata").complaints() == ""


def test_path(recipe):
    """Another program reads a local copy, and the copy is gone when it is released."""
    section = recipe("Programs that need a path")
    assert section.complaints() == ""
    module = section.module()
    assert not os.path.exists(module.path)


def test_cluster(recipe, tmp_path):
    """On each node, the filesystem of a task uses the node's own directory, which the node's tasks share."""
    section = recipe("A cluster")
    section.text = section.text.replace('"https"', '"file"')
    module = section.module()
    source = tmp_path / "b.bin"
    source.write_bytes(b"12345")
    pickled = pickle.dumps(module.files)
    program = "import pickle, sys; fs = pickle.loads(bytes.fromhex(sys.argv[1])); print(len(fs.cat(sys.argv[2])))"

    def run_on(node):
        done = subprocess.run(
            [sys.executable, "-c", program, pickled.hex(), source],
            env={**os.environ, "HOME": f"{tmp_path}/{node}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert (done.stdout, done.stderr) == ("5\n", "")
        return CachedFileSystem("file", base_dir=f"{tmp_path}/{node}/myapp-cache").stats().total.source.source_bytes

    assert [run_on(node) for node in ("one", "two", "two", "one")] == [5, 5, 5, 5]


def test_network_mount(recipe, tmp_path):
    """A file of the mount is served, parts of it too, from the cache; one outside of the mount is not."""
    pytest.importorskip("flask")
    section = recipe("A network mount behind Flask")
    mount = tmp_path / "nas"
    (mount / "films").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    content = bytes(range(256)) * 8192
    (mount / "films/a.mp4").write_bytes(content)
    section.text = section.text.replace("/mnt/nas", str(mount))
    module = section.module()
    client = module.app.test_client()

    with client.get("/media/films/a.mp4") as answer:
        assert (answer.status_code, answer.data == content, answer.mimetype) == (200, True, "video/mp4")
        etag = answer.headers["ETag"]
    (mount / "films/a.mp4").rename(tmp_path / "elsewhere")
    with client.get("/media/films/a.mp4", headers={"Range": "bytes=1000000-1000009"}) as answer:
        assert (answer.status_code, answer.data) == (206, content[1_000_000:1_000_010])
        assert answer.headers["Content-Range"] == f"bytes 1000000-1000009/{len(content)}"
    with client.get("/media/films/a.mp4", headers={"If-None-Match": etag}) as answer:
        assert answer.status_code == 304
    with client.head("/media/films/a.mp4") as answer:
        assert (answer.status_code, answer.content_length) == (200, len(content))
    for missing in ("films", "films/b.mp4", "films/a.mp4/b", "a%00b", "n" * 300, "../secret", "%2e%2e/secret"):
        assert client.get(f"/media/{missing}").status_code == 404
    assert module.files.stats().process.source.source_bytes == len(content)
