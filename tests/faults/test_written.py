"""
A process that is killed while it writes a file through the cache leaves no lasting damage.
"""

from __future__ import annotations

import os

import disks
import pytest

cached = pytest.importorskip("cached")

from dogpile_filesystem.remote.through.upload import is_temporary  # noqa: E402 - the extra fsspec

BLOCK = cached.BLOCK_SIZE
OLD, NEW = b"o" * (3 * BLOCK), b"n" * (3 * BLOCK)

PROGRAM = """
    import os, signal
    from dogpile_filesystem.remote import beside
    from dogpile_filesystem.remote.metadata import versions
    from dogpile_filesystem.remote.through import upload, written
    from dogpile_filesystem.store import Store

    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_behind(function):
        def run(*arguments, **options):
            function(*arguments, **options)
            kill()
        return run

    places = {
        "before it is written": (written.RawWrittenFile, "write", kill),
        "when it is written": (written.RawWrittenFile, "write", kill_behind(written.RawWrittenFile.write)),
        "before it is copied": (beside.shutil, "copyfileobj", kill),
        "half copied": (beside.shutil, "copyfileobj", lambda a, b, _: (b.write(a.read(70000)), b.flush(), kill())),
        "before it is renamed": (os, "replace", kill),
        "when it is renamed": (os, "replace", kill_behind(os.replace)),
        "before it is recorded": (versions.Versions, "written", kill),
        "when it is recorded": (versions.Versions, "written", kill_behind(versions.Versions.written)),
        "when a block is kept": (Store, "put_part", kill_behind(Store.put_part)),
        "when all is done": (upload.Uploads, "put", kill_behind(upload.Uploads.put)),
    }
    setattr(*places[sys.argv[4]])
    with fs.open(sys.argv[3], "wb") as file:
        file.write(b"n" * int(sys.argv[5]))
"""


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("before it is written", OLD),
        ("when it is written", OLD),
        ("before it is copied", OLD),
        ("half copied", OLD),
        ("before it is renamed", OLD),
        ("when it is renamed", NEW),
        ("before it is recorded", NEW),
        ("when it is recorded", NEW),
        ("when a block is kept", NEW),
        ("when all is done", NEW),
    ],
)
@pytest.mark.parametrize("check", ["always", "never"])
def test_kill_in_close(base_dir, spawn, tmp_path, place, expected, check):
    """
    Wherever a writer is killed: the source has the old file or the new one, whole, and so have readers of the cache.
    The next writer of the file is not kept waiting, and takes away what was left.
    """
    directory = tmp_path / "files"
    directory.mkdir()
    path = directory / "a"
    path.write_bytes(OLD)

    def make():
        return cached.CachedFileSystem(
            target_protocol="file", base_dir=base_dir, block_size=BLOCK, check=check, skip_instance_cache=True
        )

    fs = make()
    assert fs.cat_file(str(path)) == OLD
    writer = spawn(cached.PROGRAM + PROGRAM, cached.HELPERS, fs.to_json(), path, place, len(NEW))
    assert writer.wait() == -9
    assert path.read_bytes() == expected
    fs = make()
    assert fs.cat_file(str(path)) == expected
    fs.pipe_file(str(path), NEW[::-1] + b"!")
    assert fs.cat_file(str(path)) == path.read_bytes() == NEW[::-1] + b"!"
    assert not any(map(is_temporary, os.listdir(directory)))
    fs.store.prune()
    assert os.listdir(f"{base_dir}/unsent") == []


def test_full_disk(tmp_path):
    """A file that the disk of the cache has no space for is written outside of it, whatever ``cache_size`` allows."""
    with disks.tmpfs(tmp_path, "size=4m") as disk:
        base_dir = str(disk.room / "cache")
        fs = cached.CachedFileSystem(target_protocol="file", base_dir=base_dir, skip_instance_cache=True)
        path, data = tmp_path / "a", cached.noise(9 << 20)
        with fs.open(str(path), "wb") as file:
            for start in range(0, len(data), 100_000):
                file.write(data[start : start + 100_000])
        assert path.read_bytes() == data == fs.cat_file(str(path))
        assert os.listdir(f"{base_dir}/unsent") == []
