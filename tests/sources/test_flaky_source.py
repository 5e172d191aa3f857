"""
The flaky source of the tests does what it is told, in all processes, and nothing else.
"""

from __future__ import annotations

import errno

import pytest

pytest.importorskip("fsspec")
flaky_source = pytest.importorskip("flaky_source")


@pytest.fixture
def flaky(tmp_path):
    (tmp_path / "root").mkdir()
    return flaky_source.FlakySource(str(tmp_path / "root"), str(tmp_path / "control"), skip_instance_cache=True)


def test_puts(flaky, tmp_path):
    """Without an order, whatever is put is there, and each change is written down."""
    (tmp_path / "local").write_bytes(b"local")
    flaky.pipe_file("a", b"first")
    flaky.put_file(str(tmp_path / "local"), "a")
    with flaky.open("b", "wb") as file:
        file.write(b"written")
    flaky.mv("b", "c")
    flaky.rm_file("a")
    assert flaky.cat_file("c") == b"written"
    assert [(each.what, each.path, each.head) for each in flaky.control.changes()] == [
        ("put", "a", b"first"),
        ("put", "a", b"local"),
        ("put", "b", b"written"),
        ("mv", "b", b""),
        ("mv", "c", b"written"),
        ("rm", "a", b""),
    ]


def test_loses(flaky):
    """It accepts and loses, or truncates, so many times as it was told."""
    flaky.control.lose("a", times=1)
    flaky.pipe_file("a", b"content")
    assert not flaky.exists("a")
    flaky.control.truncate("a", times=1)
    flaky.pipe_file("a", b"content")
    assert flaky.cat_file("a") == b"con"
    flaky.pipe_file("a", b"content")
    assert flaky.cat_file("a") == b"content"


def test_breaks_off(flaky):
    """A request that breaks off did what was asked."""
    flaky.control.break_off("ConnectionError", times=1)
    with pytest.raises(ConnectionError):
        flaky.pipe_file("a", b"content")
    assert flaky.cat_file("a") == b"content"


def test_refuses(flaky):
    """It denies changes, and runs out of quota, while readers go on."""
    flaky.pipe_file("a", b"content")
    flaky.control.limit(10)
    with pytest.raises(OSError) as raised:
        flaky.pipe_file("b", b"content")
    assert raised.value.errno == errno.EDQUOT
    flaky.pipe_file("a", b"0123456789")
    flaky.control.deny()
    for change in (lambda: flaky.pipe_file("a", b""), lambda: flaky.rm_file("a"), lambda: flaky.mv("a", "b")):
        with pytest.raises(PermissionError):
            change()
    assert flaky.cat_file("a") == b"0123456789"


def test_weather(flaky):
    """In bad weather every request fails, and what it was to change stays."""
    flaky.pipe_file("a", b"content")
    flaky.control.set_weather(fail=1)
    for request in (lambda: flaky.pipe_file("a", b""), lambda: flaky.info("a"), lambda: flaky.rm_file("a")):
        with pytest.raises(ConnectionError):
            request()
    flaky.control.set_weather()
    assert flaky.cat_file("a") == b"content"


def test_lists_late(flaky):
    """A late listing is the one that it was given, until the orders are withdrawn."""
    before = flaky.ls("")
    flaky.pipe_file("a", b"content")
    flaky.control.list_late("", before)
    assert flaky.ls("", detail=False) == []
    flaky.control.forget_orders()
    assert flaky.ls("", detail=False) == ["a"]
