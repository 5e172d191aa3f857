"""
Errors at each call of an operation: nothing raises, no reader gets a stale value, and nothing is left behind.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os

import cases
import errno_cases
import injection
import pytest
from dogpile.cache import make_region

from dogpile_filesystem.failures import INTERVAL, Failures

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")


@pytest.fixture
def region(base_dir):
    return make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})


@pytest.fixture
def package_messages(caplog):
    """
    The messages that the package has logged.
    """
    caplog.set_level(logging.DEBUG, "dogpile_filesystem")
    return lambda: [record.message for record in caplog.records if record.name.startswith("dogpile_filesystem")]


@pytest.mark.parametrize("name", errno_cases.OPERATIONS)
def test_errno_at_each_call(scratch, record_property, name):
    """
    If any errno, or a short read or write, meets an operation at any call, once or from there on, nothing raises, no
    read returns an outdated value, and each failure is counted under its errno. Once the trouble is over everything
    works, no descriptor is left, and after one prune the ledger equals the disk.
    """
    found = cases.run_cases(errno_cases.__file__, name, scratch)
    record_property("cases", found["cases"])
    record_property("faults", found["struck"])
    print(f"{name}: {found['cases']} cases, {found['struck']} faults")
    assert not found["wrong"], cases.summary(found["wrong"])
    assert found["struck"] >= found["cases"] >= 5


def _unlocks(call):
    return call.name == "lockf" and call.args[1] == fcntl.LOCK_UN


def _use(region):
    for number in range(20):
        region.set(f"key {number}", "value")
        region.get("old")
        region.get_or_create(f"created {number}", lambda: "value")
        region.delete("old")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE], ids=errno.errorcode.get)
def test_logged_once(region, package_messages, code):
    """Each cause of lasting trouble is logged once a minute, however often it occurs and is counted."""
    region.set("old", "value")
    with injection.Faults(injection.fail(code), 1, lasting=True, only=injection.can_fail_with(code)):
        _use(region)
    counts = region.backend.store.failures.counts
    assert counts[errno.errorcode[code]] >= 20
    assert 1 <= len(package_messages()) <= len(counts)


def test_failed_unlock_logged_once(region, package_messages):
    """A lock that cannot be released is logged once a minute, and the value is stored all the same."""
    region.set("old", "value")
    with injection.Faults(injection.fail(errno.EIO), 1, lasting=True, only=_unlocks) as context:
        _use(region)
    assert len(context.struck) >= 20
    assert len(package_messages()) == 1
    assert region.get("key 19") == "value"


def test_logged_again(caplog, clock):
    """Each cause is logged again after a minute, independently of the others."""
    failures = Failures("somewhere", clock)
    for seconds in (0, INTERVAL - 1, 1):
        clock.move(seconds)
        failures.report_error(OSError(errno.EIO, "broken"), "cannot read")
        failures.report_error(OSError(errno.ENOSPC, "full"), "cannot write")
    assert [record.message.partition("[")[2][:5] for record in caplog.records] == ["Errno"] * 4
    assert failures.counts == {"EIO": 3, "ENOSPC": 3}
