"""
The backends as applications use them: found by name, configured from an INI file, through regions and decorators.
"""

from __future__ import annotations

import configparser
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from importlib import metadata

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE, CachedValue
from patience import PATIENCE

from dogpile_filesystem import GenericFSBackend, RawFSBackend
from dogpile_filesystem.lockfile.ranges import RangeLock
from dogpile_filesystem.pickling import PICKLE_PROTOCOL


@pytest.fixture
def region(base_dir):
    return make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})


@pytest.fixture
def make_raw(base_dir):
    def make(**arguments):
        return make_region().configure("paylogic.raw_filesystem", arguments={"base_dir": base_dir, **arguments})

    return make


def test_found_by_name(base_dir):
    """A region finds both backends by the names and classes of 0.2.0 without importing the package."""
    found = {point.name: point.value for point in metadata.entry_points(group="dogpile.cache")}
    assert found["paylogic.filesystem"] == "dogpile_filesystem.backend:GenericFSBackend"
    assert found["paylogic.raw_filesystem"] == "dogpile_filesystem.backend:RawFSBackend"
    program = (
        "import sys; from dogpile.cache import make_region; assert 'dogpile_filesystem' not in sys.modules;"
        "region = make_region().configure('paylogic.filesystem', arguments={'base_dir': sys.argv[1]});"
        "region.set('k', 1); print(region.get('k'))"
    )
    assert subprocess.check_output([sys.executable, "-c", program, base_dir]) == b"1\n"


def test_configured_from_ini(base_dir):
    """An INI file, which has only strings, configures every argument."""
    config = configparser.ConfigParser()
    config.read_string(f"""
        [cache]
        cache.backend = paylogic.raw_filesystem
        cache.expiration_time = 60
        cache.arguments.base_dir = {base_dir}
        cache.arguments.cache_size = 10GB
        cache.arguments.max_entries = 1000
        cache.arguments.expiration_time = 3600
        cache.arguments.distributed_lock = false
        cache.arguments.lock_timeout = 2.5
        cache.arguments.file_movable = yes
    """)
    backend = make_region().configure_from_config(dict(config["cache"]), "cache.").backend
    arguments = backend.arguments
    assert isinstance(backend, RawFSBackend)
    assert (arguments.base_dir, arguments.cache_size, arguments.max_entries) == (base_dir, 10**10, 1000)
    assert (arguments.expiration_time, arguments.lock_timeout) == (3600.0, 2.5)
    assert (arguments.distributed_lock, arguments.file_movable) == (False, True)


def test_warning_points_at_the_configuration(base_dir):
    """The warning about an unknown argument points at the line that configures the region."""
    with pytest.warns(UserWarning, match="cache_sice") as caught:
        make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir, "cache_sice": 1})
    assert caught[0].filename == __file__


@pytest.mark.parametrize("value", [None, 0, "text", b"bytes|with|bars", {"a": [1, (2, 3)]}, {1, 2}, 1.5, ...])
def test_values(region, value):
    """Any value that can be pickled comes back equal, and None is not a miss."""
    region.set("k", value)
    assert region.get("k") == value
    assert region.get("k") is not NO_VALUE


def test_keys(region):
    """Every string is a key of its own: empty, long, with separators, unicode, unpaired surrogates."""
    keys = ["", "a" * 10_000, "a/../b", "a\nb", "\N{SNOWMAN}", "\ud800", "a\0b"]
    region.set_multi({key: number for number, key in enumerate(keys)})
    assert region.get_multi(keys) == list(range(len(keys)))
    region.delete_multi(keys[1:])
    assert region.get_multi(keys) == [0, *[NO_VALUE] * (len(keys) - 1)]


def test_key_of_another_type(region):
    """A key that is neither a string nor bytes is refused with advice on what to do."""
    with pytest.raises(TypeError, match="key_mangler"):
        region.get(5)
    region.set(b"k", 1)
    assert region.get(b"k") == 1


def test_regions_serializer_wins(base_dir):
    """A region's own serializer replaces pickle, which never sees the stored data."""
    region = make_region(serializer=lambda value: json.dumps(value).encode(), deserializer=json.loads)
    region.configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    region.set("k", {"a": 1})
    assert region.get("k") == {"a": 1}
    assert region.backend.get_serialized("k").endswith(b'|{"a": 1}')


def test_pickle_protocol_is_fixed():
    """The protocol is one that all supported versions of Python read and write."""
    assert GenericFSBackend.serializer([1]) == pickle.dumps([1], protocol=5)
    assert PICKLE_PROTOCOL == 5


@pytest.mark.parametrize("payload", [b"", b"no pickle", b"cno_such_module\nNoSuchClass\n.", pickle.dumps([1])[:-1]])
def test_what_cannot_be_unpickled(region, payload):
    """A value that cannot be unpickled, such as an instance of a deleted class, is a miss and is created again."""
    region.backend.set_serialized("k", b'{"ct": 1, "v": 2}|' + payload)
    assert region.get("k") is NO_VALUE
    assert region.get_or_create("k", lambda: "new") == "new"
    assert region.get("k") == "new"


def test_value_that_cannot_be_pickled(region, base_dir):
    """A value that cannot be pickled raises the serializer's error, and leaves nothing behind."""
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        region.set("k", threading.Lock())
    assert not os.path.exists(os.path.join(base_dir, "values"))


def test_only_bytes_are_stored(region):
    """The backend itself accepts only serialized values, and its error says so."""
    with pytest.raises(TypeError, match="through a region"):
        region.backend.set("k", CachedValue(1, {}))
    region.backend.set_multi({"k": b"serialized"})
    assert region.backend.get("k") == b"serialized"
    assert region.backend.get_multi(["k", "l"]) == [b"serialized", NO_VALUE]


def test_decorator(region):
    """A decorated function runs once per arguments, until it is invalidated."""
    calls = []

    @region.cache_on_arguments()
    def function(x):
        calls.append(x)
        return x * 2

    assert [function(2), function(2), function(3)] == [4, 4, 6]
    assert calls == [2, 3]
    function.invalidate(2)
    assert function(2) == 4
    assert calls == [2, 3, 2]


def test_no_distributed_lock(base_dir):
    """With distributed_lock=False the backend has no mutex, and dogpile uses its own."""
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir, "distributed_lock": False})
    assert region.backend.get_mutex("k") is None
    assert region.get_or_create("k", lambda: 1) == 1
    assert not os.path.exists(os.path.join(base_dir, "k"))


def test_lock_timeout(base_dir):
    """After lock_timeout, a value is created although another creator holds the lock."""
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir, "lock_timeout": 0.05})
    holder = region.backend.get_mutex("k")
    assert holder.acquire()
    assert region.get_or_create("k", lambda: "created") == "created"
    assert region.key_is_locked("k")


def test_background_refresh(base_dir, spawn):
    """
    With dogpile's recipe for background refresh, an expired value is served while a thread creates the next one, under
    a mutex that other processes see and that is free afterwards.
    """
    created = threading.Event()
    go_on = threading.Event()
    threads = []

    def in_background(region, key, creator, mutex):
        def run():
            try:
                region.set(key, creator())
            finally:
                mutex.release()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    def create():
        created.set()
        assert go_on.wait(PATIENCE)
        return "new"

    region = make_region(async_creation_runner=in_background)
    region.configure("paylogic.filesystem", expiration_time=3600, arguments={"base_dir": base_dir})
    region.backend.set_serialized("k", b'{"ct": 1, "v": 2}|' + pickle.dumps("old"))
    assert region.get_or_create("k", create) == "old"
    assert created.wait(PATIENCE)
    process = spawn(
        """
        import sys
        from dogpile.cache import make_region
        region = make_region().configure("paylogic.filesystem", expiration_time=3600,
                                         arguments={"base_dir": sys.argv[1]})
        print(region.key_is_locked("k"), region.get_or_create("k", lambda: "created twice"))
        """,
        base_dir,
    )
    assert process.communicate()[0] == "True old\n"
    go_on.set()
    threads[0].join()
    assert not region.key_is_locked("k")
    assert region.get_or_create("k", create) == "new"


def test_directory_cannot_be_made(tmp_path, caplog):
    """If the directory cannot be made, applications still get their values, and one warning says why none is kept."""
    (tmp_path / "file").touch()
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": tmp_path / "file" / "cache"})
    assert region.get("k") is NO_VALUE
    assert region.get_or_create("k", lambda: 1) == 1
    region.set("k", 1)
    region.delete("k")
    region.backend.prune()
    assert region.get("k") is NO_VALUE
    messages = [record.getMessage() for record in caplog.records if record.name == "dogpile_filesystem.failures"]
    assert len(messages) == 1
    assert str(tmp_path) in messages[0]
    assert region.backend.store.failures.counts["ENOTDIR"] > 3


def test_prune(base_dir):
    """The prune method of 0.2.0 still removes entries until the cache is within its bound."""
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    region.set_multi({str(number): number for number in range(10)})
    bounded = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir, "max_entries": 4})
    bounded.backend.prune()
    assert bounded.backend.store.usage().entries == 4


# Files


def test_raw_file(make_raw):
    """A stored file comes back as a file: buffered, seekable, at its stored position, with a descriptor and a name."""
    region = make_raw()
    file = io.BytesIO(b"content")
    file.seek(3)
    region.set("k", file)
    with region.get("k") as hit:
        assert isinstance(hit, io.BufferedReader)
        assert hit.tell() == 3
        assert hit.read() == b"tent"
        hit.seek(0)
        assert hit.read() == b"content"
        assert os.path.samestat(os.fstat(hit.fileno()), os.stat(hit.name))


def test_raw_readers_are_apart(make_raw):
    """Two readers of one value never share a position."""
    region = make_raw()
    region.set("k", io.BytesIO(b"content"))
    with region.get("k") as first, region.get("k") as second:
        assert first.read(3) == b"con"
        assert second.read() == b"content"
        assert first.read() == b"tent"


def test_raw_without_metadata(make_raw):
    """A file that is set without a region's metadata comes back without metadata, as in 0.2.0."""
    backend = make_raw().backend
    backend.set("k", io.BytesIO(b"content"))
    with backend.get("k") as hit:
        assert hit.read() == b"content"


def test_raw_decorated(make_raw, base_dir):
    """A decorated function that returns a file is called once, and its file stays usable after it is moved in."""
    region = make_raw(file_movable=True)
    made = []

    @region.cache_on_arguments()
    def report(year):
        file = tempfile.NamedTemporaryFile(delete=False, dir=base_dir)
        file.write(b"report of %d" % year)
        file.seek(0)
        made.append(file.name)
        return file

    for _ in range(3):
        with report(2026) as file:
            assert file.read() == b"report of 2026"
    assert len(made) == 1
    assert not os.path.exists(made[0])


def test_raw_dropped_reader_is_closed_quietly(make_raw, open_descriptors):
    """A reader that nobody closes is closed without a warning, as when dogpile drops an expired value."""
    region = make_raw()
    region.set("k", io.BytesIO(b"content"))
    before = open_descriptors()
    assert region.get("k", expiration_time=0) is NO_VALUE
    assert region.get("k").read(3) == b"con"
    assert open_descriptors() == before


@pytest.mark.parametrize(("value", "error"), [("text", TypeError), (io.StringIO(), TypeError), (b"bytes", TypeError)])
def test_raw_refuses(make_raw, value, error):
    """An object that is not a binary file is refused at once, and the older value stays."""
    region = make_raw()
    region.set("k", io.BytesIO(b"older"))
    with pytest.raises(error, match="pass a binary file"):
        region.set("k", value)
    with region.get("k") as hit:
        assert hit.read() == b"older"


def test_hits_leave_nothing_behind(region, make_raw, open_descriptors):
    """Hits on values and files leave no descriptor, and a bounded number of pending uses."""
    raw = make_raw()
    region.set("k", 1)
    raw.set("k", io.BytesIO(b"content"))
    before = open_descriptors()
    for _ in range(2000):
        assert region.get("k") == 1
        with raw.get("k") as hit:
            assert hit.read() == b"content"
    assert open_descriptors() == before
    assert len(region.backend.store._recency._pending) <= 1


def test_remove_matching(base_dir):
    """Removing by prefix removes every matching value of this backend, and nothing from the other backend."""
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    files = make_region().configure("paylogic.raw_filesystem", arguments={"base_dir": base_dir})
    for key in ("user:4|a", "user:4|b", "user:42|a", "\udc80"):
        region.set(key, key)
        files.set(key, io.BytesIO(key.encode("utf-8", "surrogatepass")))
    assert region.backend.remove_matching("user:4|") == 2
    assert [region.get(key) for key in ("user:4|a", "user:4|b", "user:42|a")] == [NO_VALUE, NO_VALUE, "user:42|a"]
    assert files.backend.remove_matching(prefix=b"user:42") == 1
    assert region.backend.remove_matching("\udc80") == 1
    assert region.backend.remove_matching("user:5") == 0
    assert region.backend.stats().entries == 1 + 3
    region.backend.clear()
    assert region.backend.stats().entries == 0


@pytest.mark.parametrize(("prefix", "error"), [("", ValueError), (None, TypeError), (5, TypeError)])
def test_remove_matching_what(base_dir, prefix, error):
    """A prefix that is empty or not a prefix at all is refused, and nothing is removed."""
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    region.set("k", "value")
    with pytest.raises(error):
        region.backend.remove_matching(prefix)
    assert region.get("k") == "value"


@pytest.mark.parametrize("harm", ["a foreign lock file", "a shard that is held"])
def test_remove_matching_in_spite_of_trouble(base_dir, harm, monkeypatch):
    """Matching values are removed even if the lock file is unusable: a wrong ledger is better than stale values."""
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    for number in range(20):
        region.set(f"a{number}", "value")
    region.set("b", "value")
    ledger = region.backend.store.directory.ledger()
    if harm == "a foreign lock file":
        with open(f"{base_dir}/lock", "r+b") as file:
            file.write(b"something else " * 1000)
    else:
        monkeypatch.setattr(RangeLock, "PATIENCE", 0.01)
        assert all(ledger.shard(shard).acquire(wait=False) for shard in range(256))
    assert region.backend.remove_matching("a") == 20
    for shard in range(256):
        ledger.shard(shard).release()
    assert region.get_multi([f"a{number}" for number in range(20)]) == [NO_VALUE] * 20
    assert region.get("b") == "value"
