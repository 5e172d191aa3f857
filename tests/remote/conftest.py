"""
The fixtures of the tests of the cached filesystem: a slow source, and filesystems that cache it by a clock that stands.
"""

from __future__ import annotations

import time

import pytest

pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")


@pytest.fixture
def source(tmp_path):
    """
    A slow source, which takes no time.
    """
    return cached.Files(tmp_path)


@pytest.fixture
def make(base_dir, source, clock):
    """
    Makes filesystems on one directory, which know of each other as little as those of two processes do. Their clock
    stands until it is moved.
    """
    clock.now = time.time()
    made = []

    def make(target=source, **arguments):
        arguments = {"base_dir": base_dir, "block_size": cached.BLOCK_SIZE, **arguments}
        fs = cached.CachedFileSystem(
            target_protocol="slow", target_options=target.options, **arguments, skip_instance_cache=True
        )
        fs.versions._clock = fs.versions._monotonic = fs.source._clock = clock
        fs.listings._clock = fs.listings._kept._judge.clock = clock
        fs.source._sleep = clock.move
        made.append(fs)
        return fs

    yield make
    for fs in made:
        fs.release()


@pytest.fixture
def fs(make):
    return make()


@pytest.fixture
def start(spawn):
    """
    Starts a program that has a filesystem ``fs`` like this one.
    """
    return lambda fs, program, *arguments: spawn(cached.PROGRAM + program, cached.HELPERS, fs.to_json(), *arguments)


@pytest.fixture
def counts():
    """
    The counts of a filesystem that are not zero, without the times.
    """

    def counts(fs):
        found = fs.stats().process.source
        return {
            name: getattr(found, name) for name in found.__slots__ if name != "request_seconds" and getattr(found, name)
        }

    return counts
