"""
Trouble: what is counted, what is logged, and how often.
"""

from __future__ import annotations

import logging
import os

import pytest
from dogpile.cache import make_region

from dogpile_filesystem import failures as failures_module
from dogpile_filesystem.failures import Failures, log_error


@pytest.fixture
def make_failures(tmp_path, clock):
    return lambda name="cache": Failures(str(tmp_path / name), clock)


def test_once_a_minute(make_failures, clock, caplog):
    """A cause is logged once a minute for a directory, whoever reports it, and each reporter counts its own."""
    one, other = make_failures(), make_failures()
    for number in range(3):
        for _ in range(5):
            one.report("ENOSPC", "a value of %d bytes was not stored", 7)
            other.report("ENOSPC", "a value of %d bytes was not stored", 8)
        assert len(caplog.records) == number + 1
        clock.move(60)
    assert one.counts == other.counts == {"ENOSPC": 15}
    assert "a value of 7 bytes was not stored" in caplog.text


def test_each_cause_and_each_directory(make_failures, caplog):
    """Another cause, and the same cause in another directory, are logged too."""
    make_failures().report("ENOSPC", "full")
    make_failures().report("EIO", "broken")
    make_failures("another").report("ENOSPC", "full")
    assert len(caplog.records) == 3


def test_stores_one_after_the_other(make_failures, caplog):
    """Stores that come and go on one directory do not log a cause each time."""
    for _ in range(10):
        make_failures().report("ENOSPC", "full")
    assert len(caplog.records) == 1


def test_two_regions(tmp_path, caplog):
    """Two regions on one directory log a cause once, and each counts its own."""
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "dogpile_filesystem.failures"):
        regions = [
            make_region().configure("paylogic.filesystem", arguments={"base_dir": str(tmp_path / "file" / "cache")})
            for _ in range(2)
        ]
        for region in regions:
            region.set("k", "value")
    assert len(caplog.records) == 1
    assert all(region.backend.stats().process.failures["ENOTDIR"] > 0 for region in regions)


def test_reporting(make_failures, caplog):
    """In the context an OSError is counted and logged with advice, and ends the block; others are raised."""
    failures = make_failures()
    done = []
    with failures.reporting("cannot prune the cache"):
        done.append("before")
        raise OSError(28, os.strerror(28))
        done.append("after")
    assert done == ["before"]
    assert failures.counts == {"ENOSPC": 1}
    assert "cannot prune the cache: [Errno 28] No space left on device: free some space" in caplog.text
    with failures.reporting("cannot prune the cache"):
        done.append("without trouble")
    assert failures.counts == {"ENOSPC": 1}
    with pytest.raises(ValueError, match="not of the filesystem"), failures.reporting("cannot prune the cache"):
        raise ValueError("not of the filesystem")


def test_log_error(tmp_path, caplog):
    """An error that nobody counts is logged once a minute as well."""
    for _ in range(3):
        log_error(str(tmp_path), OSError(5, "I/O error"), "cannot unlock")
    assert len(caplog.records) == 1


def test_memory(make_failures, clock, monkeypatch):
    """What was logged in many directories more than a minute ago is forgotten."""
    monkeypatch.setattr(failures_module, "_logged_at", {})
    for number in range(5000):
        make_failures(f"{number}").report("ENOSPC", "full")
        clock.move(1)
    assert len(failures_module._logged_at) <= 1001
