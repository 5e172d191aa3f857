"""
Arguments: which forms are accepted, and which are refused with a helpful error.
"""

from __future__ import annotations

import datetime
import os
import warnings
from pathlib import Path

import pytest

from dogpile_filesystem.arguments import _KNOWN, Arguments
from dogpile_filesystem.store.access import Access


def parse(**arguments):
    return Arguments.parse({"base_dir": "/nonexistent/cache", **arguments})


def test_defaults():
    """
    Without arguments: 1 GiB, no other bound, no expiry, creators excluded without a timeout, files copied, and values
    pickled by dogpile.
    """
    sizes = 1 << 30, None, None
    expected = Arguments("/nonexistent/cache", *sizes, True, None, False, 0, False, False, None, Access(), ())
    assert parse() == expected


@pytest.mark.parametrize(
    ("dir_mode", "file_mode", "modes"),
    [
        (None, None, (0o700, 0o600)),
        ("2770", None, (0o2770, 0o660)),
        ("0o2770", "0660", (0o2770, 0o660)),
        (0o750, 0o640, (0o750, 0o640)),
        (0o755, None, (0o755, 0o644)),
    ],
    ids=repr,
)
def test_modes(dir_mode, file_mode, modes):
    """Modes are numbers or octal strings, and files get the mode of directories without the bits a file cannot use."""
    access = parse(dir_mode=dir_mode, file_mode=file_mode).access
    assert (access.dir_mode, access.file_mode) == modes


@pytest.mark.parametrize("mode", [770, "rwx", 0o4700, 0o570, "0o777"], ids=repr)
def test_wrong_modes(mode):
    """A mode that is not octal, locks out its owner, or opens the directory to everybody is refused."""
    with pytest.raises(ValueError, match="dir_mode"):
        parse(dir_mode=mode)


def test_signing_keys():
    """A signing key is bytes, a string or a list of them, and the same secret always makes the same key."""
    key = parse(signing_key="secret").signing_keys
    assert key == parse(signing_key=b"secret").signing_keys == parse(signing_key=["secret"]).signing_keys
    assert parse(signing_key=["new", b"secret"]).signing_keys[1:] == key
    assert parse(signing_key=None).signing_keys == parse(signing_key="").signing_keys == ()


@pytest.mark.parametrize("secret", [b"", [], ["a", ""], 5, ["a", 5], {"a"}], ids=repr)
def test_wrong_signing_keys(secret):
    """A secret that is empty or of the wrong type is refused, and the error never shows it."""
    with pytest.raises((TypeError, ValueError), match="signing_key"):
        parse(signing_key=secret)
    assert "hidden" not in repr(parse(signing_key="hidden"))


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (4096, 4096),
        (1e6, 1_000_000),
        ("4096", 4096),
        ("512MiB", 512 << 20),
        ("10GB", 10**10),
        (" 4.5 kib ", 4608),
        ("2TiB", 2 << 40),
        ("4096b", 4096),
        (None, None),
        ("None", None),
    ],
    ids=repr,
)
def test_cache_size(value, size):
    """A size is a number of bytes, or a string with a unit of powers of 1000 or 1024."""
    assert parse(cache_size=value).cache_size == size


@pytest.mark.parametrize(
    ("value", "size"),
    [(0, 0), ("0", 0), (0.0, 0), (None, 0), ("none", 0), ("", 0), (1, 1), ("64MiB", 64 << 20), (5000, 5000)],
    ids=repr,
)
def test_memory_size(value, size):
    """A size of the memory is that of a cache; 0 and None are none, which is the default."""
    assert parse(memory_size=value).memory_size == size


@pytest.mark.parametrize("value", [-1, "-1", "much", True, False, [], float("nan"), "64 M"], ids=repr)
def test_wrong_memory_size(value):
    """Anything else is refused, and the error says what to pass."""
    with pytest.raises((TypeError, ValueError), match=r"memory_size=.* or 0 or None for none"):
        parse(memory_size=value)


@pytest.mark.parametrize(("value", "count"), [(3, 3), ("3", 3), (None, None), ("none", None)], ids=repr)
def test_max_entries(value, count):
    """A number of entries is a whole number, or None."""
    assert parse(max_entries=value).max_entries == count


@pytest.mark.parametrize("name", ["expiration_time", "lock_timeout"])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [(5, 5.0), (0.5, 0.5), ("2.5", 2.5), (datetime.timedelta(minutes=1), 60.0), (None, None), ("none", None)],
    ids=repr,
)
def test_seconds(name, value, seconds):
    """A time is a number of seconds or a timedelta."""
    assert getattr(parse(**{name: value}), name) == seconds


@pytest.mark.parametrize("name", ["distributed_lock", "file_movable", "large_values"])
@pytest.mark.parametrize(
    ("value", "flag"),
    [(True, True), ("true", True), ("Yes", True), (1, True), (False, False), ("off", False)],
    ids=repr,
)
def test_flags(name, value, flag):
    """A flag is a boolean, or a word for it."""
    assert getattr(parse(**{name: value}), name) is flag


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("cache_size", 0, ValueError),
        ("cache_size", -1, ValueError),
        ("cache_size", float("nan"), ValueError),
        ("cache_size", "12 parsecs", ValueError),
        ("cache_size", "GiB", ValueError),
        ("cache_size", True, TypeError),
        ("cache_size", [1], TypeError),
        ("expiration_time", 10**400, ValueError),
        ("lock_timeout", 1e11, ValueError),
        ("max_entries", 0, ValueError),
        ("max_entries", "many", ValueError),
        ("max_entries", 1.5, TypeError),
        ("max_entries", True, TypeError),
        ("expiration_time", 0, ValueError),
        ("expiration_time", datetime.timedelta(0), ValueError),
        ("expiration_time", float("inf"), ValueError),
        ("expiration_time", "soon", ValueError),
        ("expiration_time", True, TypeError),
        ("lock_timeout", -1, ValueError),
        ("lock_timeout", b"1", TypeError),
        ("distributed_lock", "maybe", ValueError),
        ("distributed_lock", 2, ValueError),
        ("file_movable", None, TypeError),
        ("large_values", "huge", ValueError),
        ("base_dir", "", ValueError),
        ("base_dir", "a\0b", ValueError),
        ("base_dir", __file__, ValueError),
        ("base_dir", 5, TypeError),
        ("base_dir", None, TypeError),
    ],
)
def test_refused(name, value, error):
    """
    A value that is out of range or of the wrong type is refused with its name, the value and what to pass instead.
    """
    with pytest.raises(error, match=name) as caught:
        parse(**{name: value})
    assert repr(value) in str(caught.value)
    assert "pass " in str(caught.value)


def test_base_dir(monkeypatch, tmp_path):
    """The directory is required, and may be path-like, relative, bytes, or start at the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for base_dir in ("~/cache", Path("cache"), "x/../cache", os.fsencode(tmp_path / "cache")):
        assert Arguments.parse({"base_dir": base_dir}).base_dir == str(tmp_path / "cache")
    with pytest.raises(TypeError, match="base_dir"):
        Arguments.parse({})


def test_unknown():
    """An unknown argument is ignored with a warning that names the nearest known one."""
    with pytest.warns(UserWarning, match="cache_sise.*cache_size"):
        assert parse(cache_sise=1).cache_size == 1 << 30
    with pytest.warns(UserWarning, match="zzz.*known are base_dir"):
        parse(zzz=1)


def test_nothing_is_modified():
    """Parsing leaves the caller's dictionary unchanged."""
    arguments = {"base_dir": "~/cache", "cache_size": "4KiB", "other": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Arguments.parse(arguments)
    assert arguments == {"base_dir": "~/cache", "cache_size": "4KiB", "other": 1}


@pytest.mark.parametrize("empty", ["", "  "], ids=repr)
def test_empty(empty):
    """An argument that an INI file leaves empty has its default, whichever it is; only the directory must be named."""
    for name in _KNOWN:
        if name != "base_dir":
            assert parse(**{name: empty}) == parse()
    with pytest.raises(ValueError, match="base_dir"):
        Arguments.parse({"base_dir": ""})


@pytest.mark.parametrize("name", ["cache_size", "max_entries", "min_free_space", "expiration_time", "lock_timeout"])
def test_none_as_a_string(name):
    """A bound that an INI file sets to ``none`` is none, whatever the default."""
    assert getattr(parse(**{name: "none"}), name) is None
    assert getattr(parse(**{name: " None "}), name) is None


@pytest.mark.parametrize("size", [1, 1.5, 1000, 4095, "1", "4095.9", "3KiB"], ids=repr)
def test_cache_size_that_holds_nothing(size):
    """A size below one block, in which no entry fits, is refused; the message says that, and what to pass."""
    with pytest.raises(ValueError, match=r"can hold nothing.*4096.*pass .*'512MiB'") as caught:
        parse(cache_size=size)
    assert repr(size) in str(caught.value)
