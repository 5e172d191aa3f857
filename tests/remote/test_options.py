"""
The arguments of the cached filesystem: what each accepts, as a value and as a string, and what it says of the rest.
"""

from __future__ import annotations

import math
import os
import pickle

import ondisk
import pytest

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from dogpile_filesystem.remote.options import Options  # noqa: E402 - needs fsspec
from dogpile_filesystem.store import Refused  # noqa: E402

MIB = 1 << 20


def parse(**arguments):
    return Options.parse({"base_dir": "/tmp/nowhere", **arguments})


def test_defaults(monkeypatch, tmp_path):
    """Without any argument, the cache lies in the user's cache directory and has the documented bounds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = Options.parse({})
    assert options.shared.base_dir == str(tmp_path / "dogpile_filesystem")
    assert options.shared.cache_size == 10 << 30
    assert options.shared.lock_timeout == 60.0
    assert (options.shared.max_entries, options.shared.min_free_space, options.shared.signing_keys) == (None, None, ())
    assert (options.shared.access.dir_mode, options.shared.access.file_mode) == (0o700, 0o600)
    assert (options.block_size, options.check, options.namespace) == (MIB, 0.0, None)
    assert (options.stale_if_error, options.fill) == (False, False)
    assert (options.high_watermark, options.low_watermark) == (1.0, 1.0)


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty(empty):
    """An argument that is left empty in an INI file has its default."""
    names = [name for name in Options.__slots__ if name != "shared"]
    given = dict.fromkeys((*names, "cache_size", "lock_timeout", "max_entries", "signing_key"), empty)
    assert parse(**given) == parse()


def test_none():
    """None means the default; for a bound and for a limit, that there is none."""
    names = [name for name in Options.__slots__ if name not in ("shared", "check")]
    assert parse(**dict.fromkeys(names)) == parse()
    unbounded = parse(cache_size=None, lock_timeout=None).shared
    assert (unbounded.cache_size, unbounded.lock_timeout) == (None, None)
    unbounded = parse(cache_size="none", lock_timeout="none").shared
    assert (unbounded.cache_size, unbounded.lock_timeout) == (None, None)


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("block_size", "64KiB", 64 << 10),
        ("block_size", 64 << 20, 64 << 20),
        ("block_size", "2 MiB", 2 * MIB),
        ("listings_expiry_time", 0, 0.0),
        ("listings_expiry_time", "0.0", 0.0),
        ("listings_expiry_time", None, 0.0),
        ("listings_expiry_time", "60", 60.0),
        ("listings_expiry_time", 0.5, 0.5),
        ("check", "always", 0.0),
        ("check", "Never", math.inf),
        ("check", 60, 60.0),
        ("check", "0.5", 0.5),
        ("stale_if_error", "yes", True),
        ("stale_if_error", 0, False),
        ("fill", "true", True),
        ("fill", "off", False),
        ("namespace", "ours", "ours"),
        ("high_watermark", "0.9", 0.9),
        ("high_watermark", 1, 1.0),
        ("low_watermark", "0.5", 0.5),
    ],
)
def test_accepted(name, given, meant):
    """An argument may be a value or a string."""
    assert getattr(parse(**{name: given}), name) == meant


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("cache_size", "50GiB", 50 << 30),
        ("max_entries", "100", 100),
        ("min_free_space", "1GB", 10**9),
        ("lock_timeout", "5", 5.0),
    ],
)
def test_shared_with_backends(name, given, meant):
    """The arguments that the backends have too mean the same here."""
    assert getattr(parse(**{name: given}).shared, name) == meant


def test_modes():
    """The modes of directories and files, and whether a directory of everybody is used, are those of the backends."""
    access = parse(dir_mode="2770", file_mode="0660", allow_shared="yes").shared.access
    assert (access.dir_mode, access.file_mode) == (0o2770, 0o660)


def test_low_watermark_follows_high():
    """Eviction goes on to where it begins, unless told otherwise."""
    options = parse(high_watermark=0.8)
    assert (options.high_watermark, options.low_watermark) == (0.8, 0.8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"block_size": 100_000}, ValueError, "pass a power of two from '64KiB' to '64MiB'"),
        ({"block_size": "32KiB"}, ValueError, "pass a power of two from '64KiB' to '64MiB'"),
        ({"block_size": "128MiB"}, ValueError, "pass a power of two from '64KiB' to '64MiB'"),
        ({"block_size": "none"}, ValueError, "pass a power of two"),
        ({"block_size": "large"}, ValueError, "block_size='large' is not accepted: pass a number of bytes"),
        ({"block_size": [1]}, TypeError, "block_size=.1. is a list: pass a number of bytes"),
        ({"check": None}, ValueError, "pass 'always', 'never', or a number of seconds"),
        ({"check": "none"}, ValueError, "pass 'always', 'never', or a number of seconds"),
        ({"check": "sometimes"}, ValueError, "check='sometimes' is not accepted: pass 'always', 'never'"),
        ({"check": 0}, ValueError, "check=0 is not accepted: pass 'always', 'never'"),
        ({"check": -1.0}, ValueError, "more than 0"),
        ({"listings_expiry_time": -1}, ValueError, "pass a number of seconds, or 0 to keep no listings"),
        ({"listings_expiry_time": "often"}, ValueError, "listings_expiry_time='often' is not accepted"),
        ({"listings_expiry_time": False}, TypeError, "listings_expiry_time=False is a bool"),
        ({"check": True}, TypeError, "check=True is a bool"),
        ({"stale_if_error": "perhaps"}, ValueError, "stale_if_error='perhaps' is not accepted: pass True or False"),
        ({"fill": 0.5}, TypeError, "fill=0.5 is a float: pass True or False"),
        ({"namespace": 7}, TypeError, "namespace=7 is a int: pass a string"),
        ({"namespace": "a\0b"}, ValueError, "has a NUL character: pass a string without one"),
        ({"high_watermark": 0}, ValueError, "high_watermark=0 is not accepted: pass a fraction of cache_size"),
        ({"high_watermark": 1.5}, ValueError, "more than 0 and at most 1"),
        ({"high_watermark": True}, ValueError, "high_watermark=True is not accepted"),
        ({"low_watermark": "half"}, ValueError, "low_watermark='half' is not accepted"),
        ({"high_watermark": 0.5, "low_watermark": 0.8}, ValueError, "pass a smaller fraction of cache_size"),
        ({"cache_size": 17}, ValueError, "cache_size=17 can hold nothing"),
        ({"lock_timeout": -1}, ValueError, "lock_timeout=-1 is not accepted: pass seconds more than 0"),
        ({"signing_key": 5}, TypeError, "signing_key: int is no key"),
        ({"dir_mode": "0777"}, ValueError, "lets everybody plant entries"),
    ],
)
def test_misuse(arguments, error, message):
    """A value that is not accepted raises at once, and the message says what to pass."""
    with pytest.raises(error, match=message):
        parse(**arguments)


def make(base_dir, **arguments):
    return cached.CachedFileSystem(**{"base_dir": base_dir, "target_protocol": "memory", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_sizes": 1}, "unknown argument 'cache_sizes': did you mean 'cache_size'"),
        ({"anon": True}, "unknown argument 'anon': options of the source go into target_options"),
        ({"target_protocol": None}, "pass either fs, or target_protocol and its target_options"),
        ({"fs": fsspec.filesystem("memory")}, "pass either fs, or target_protocol and its target_options"),
    ],
)
def test_unknown_arguments_and_no_source(base_dir, arguments, message):
    """An unknown argument raises, and so does a filesystem without a source, or with two."""
    with pytest.raises(TypeError, match=message):
        make(base_dir, **arguments)


def test_arguments_of_fsspec(base_dir):
    """What fsspec passes to every filesystem is accepted."""
    fs = make(base_dir, use_listings_cache=False, listings_expiry_time=5, max_paths=3, skip_instance_cache=True)
    assert fs.exists("/")


def test_asynchronous_source(base_dir):
    """A source that can only be used from asynchronous code is refused."""

    class Source(fsspec.AbstractFileSystem):
        protocol = "asynchronous"
        asynchronous = True

    with pytest.raises(ValueError, match="pass one that can be used from synchronous code"):
        make(base_dir, target_protocol=None, fs=Source())


def test_shared_directory_is_refused(tmp_path):
    """A directory that everybody can write to is refused, unless that is allowed or the entries are signed."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(Refused, match="allow_shared"):
        make(str(shared), skip_instance_cache=True)
    make(str(shared), allow_shared=True, skip_instance_cache=True)
    make(str(shared), signing_key="secret", skip_instance_cache=True)


def test_bounds_are_used(base_dir):
    """The bounds, the watermarks and the modes are those of the cache."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bounded", bytes(10 * cached.BLOCK_SIZE))
    # A block takes its bytes and 4 KiB more: 10 blocks would take 680 KiB, and a record 4 KiB.
    fs = make(
        base_dir,
        cache_size="400KiB",
        block_size="64KiB",
        high_watermark=0.9,
        low_watermark=0.5,
        file_mode=0o640,
        dir_mode=0o750,
        max_entries=8,
        skip_instance_cache=True,
    )
    assert fs.cat_file("/bounded") == bytes(10 * cached.BLOCK_SIZE)
    stats = fs.stats()
    assert (stats.cache_size, stats.max_entries) == (400 << 10, 8)
    assert 0 < stats.size <= 360 << 10
    assert stats.total.evictions
    assert os.stat(base_dir).st_mode & 0o777 == 0o750
    assert {os.stat(path).st_mode & 0o777 for path in ondisk.files(f"{base_dir}/values")} == {0o640}
    memory.rm_file("/bounded")


def test_unusable_directory(tmp_path, caplog):
    """A directory that cannot be made is no error: everything is read from the source, and the log says so."""
    (tmp_path / "file").write_bytes(b"")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/unusable", b"content")
    fs = make(str(tmp_path / "file" / "cache"), skip_instance_cache=True)
    assert fs.cat_file("/unusable") == b"content"
    assert "nothing is kept" in caplog.text
    memory.rm_file("/unusable")


def test_secrets_are_not_shown(base_dir):
    """The signing key is in no message and no representation; the pickled filesystem has it."""
    fs = make(base_dir, signing_key="hush", skip_instance_cache=True)
    assert "hush" not in repr(fs) + repr(fs.options) + str(vars(fs.store))
    assert pickle.loads(pickle.dumps(fs)).options.shared.signing_keys == fs.options.shared.signing_keys


def test_several_in_one_directory(base_dir):
    """Filesystems and regions may share a directory."""
    region = pytest.importorskip("dogpile.cache").make_region()
    region.configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shared", b"content")
    fs = make(base_dir, skip_instance_cache=True)
    region.set("k", "value")
    assert fs.cat_file("/shared") == b"content"
    assert region.get("k") == "value"
    assert fs.stats().entries == 3
    memory.rm_file("/shared")
