"""
The setting ``large_values``: the same entries as without it, and no copies of them.
"""

from __future__ import annotations

import json
import os
import pickle
import threading
import tracemalloc

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE, CachedValue
from dogpile.cache.proxy import ProxyBackend

from dogpile_filesystem.pickling import pack, unpack

MIB = 1 << 20
#: Larger than a read of the store, and than what is copied into one part.
LARGE = os.urandom(1000) * 300


class InBuffer:
    """
    A value that gives a pickler its memory, as arrays do.
    """

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return InBuffer, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other):
        return bytes(self.data) == bytes(other.data)

    def __hash__(self):
        return hash(bytes(self.data))


VALUES = {
    "none": None,
    "zero": 0,
    "bars": b"bytes|with|bars",
    "nested": {"a": [1, (2, {3})]},
    "large": LARGE,
    "large text": "|\N{SNOWMAN}" * 200_000,
    "large bytearray": bytearray(LARGE),
    "large buffer": InBuffer(bytearray(LARGE)),
    "read-only buffer": InBuffer(LARGE),
    "many numbers": list(range(200_000)),
    "several": [LARGE, "between", LARGE[1:], b"", LARGE],
}


@pytest.fixture
def configured(base_dir):
    """
    Configures a region on the directory; with the setting unless told otherwise.
    """

    def configure(region=None, wrap=(), **arguments):
        arguments = {"base_dir": base_dir, "large_values": True, **arguments}
        return (region or make_region()).configure("paylogic.filesystem", arguments=arguments, wrap=wrap)

    return configure


@pytest.fixture
def region(configured):
    return configured()


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values(region, value):
    """Any value that can be pickled comes back equal, and None is not a miss."""
    region.set("k", value)
    assert region.get("k") == value
    assert region.get("k") is not NO_VALUE


@pytest.mark.parametrize("signing_key", [None, "secret"], ids=["unsigned", "signed"])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_both_settings_share_entries(configured, value, signing_key):
    """What is set in one setting is a hit in the other, with the same metadata and the same bytes on the disk."""
    with_setting = configured(signing_key=signing_key)
    without = configured(large_values=False, signing_key=signing_key)
    with_setting.set("k", value)
    without.set("l", value)
    assert without.get("k") == value
    assert with_setting.get("l") == value
    metadata, _, payload = without.backend.get_serialized("k").partition(b"|")
    assert json.loads(metadata) == with_setting.backend.get("k").metadata
    assert payload == without.backend.get_serialized("l").partition(b"|")[2] == pickle.dumps(value, protocol=5)


def test_nothing_is_copied(region):
    """A set takes no memory for a copy of the value, and a get that of one copy besides the value that it returns."""
    value, size = os.urandom(MIB) * 8, 8 * MIB
    region.set("other", b"")
    region.get("other")
    tracemalloc.start()
    try:
        region.set("k", value)
        assert tracemalloc.get_traced_memory()[1] < size / 8
        tracemalloc.reset_peak()
        assert region.get("k") == value
        assert tracemalloc.get_traced_memory()[1] < 2 * size + size / 8
    finally:
        tracemalloc.stop()


def test_many_values_at_once(region):
    """Several values are set, read and created together, and a missing one is a miss."""
    region.set_multi({"a": 1, "b": LARGE})
    assert region.get_multi(["b", "c", "a"]) == [LARGE, NO_VALUE, 1]
    assert region.get_or_create_multi(["a", "c"], lambda *keys: [f"new {key}" for key in keys]) == [1, "new c"]
    assert region.get_multi(["a", "c"]) == [1, "new c"]
    region.delete_multi(["a", "b"])
    assert region.get_multi(["a", "b", "c"]) == [NO_VALUE, NO_VALUE, "new c"]


def test_creation(region):
    """A value is created once, and anew after an invalidation."""
    made = []

    def create():
        made.append(LARGE)
        return made[-1]

    assert [region.get_or_create("k", create) for _ in range(3)] == [LARGE] * 3
    assert len(made) == 1
    region.invalidate()
    assert region.get_or_create("k", create) == LARGE
    assert len(made) == 2


def test_created_in_the_background(configured):
    """An expired value is served while another thread creates the new one."""
    threads = []

    def run(region, key, creator, mutex):
        def create():
            try:
                region.set(key, creator())
            finally:
                mutex.release()

        threads.append(threading.Thread(target=create))
        threads[-1].start()

    region = configured(make_region(async_creation_runner=run))
    region.set("k", "old")
    region.backend.set("k", CachedValue("old", {**region.backend.get("k").metadata, "ct": 1}))
    assert region.get_or_create("k", lambda: "new", expiration_time=60) == "old"
    for thread in threads:
        thread.join()
    assert region.get_or_create("k", lambda: "newer", expiration_time=60) == "new"
    assert len(threads) == 1


@pytest.mark.parametrize(
    "serialized",
    [
        b"",
        b"no bar",
        b"|" + pickle.dumps(1),
        b"no JSON|" + pickle.dumps(1),
        b"[1]|" + pickle.dumps(1),
        b"1|" + pickle.dumps(1),
        b"[" * 100_000 + b"|",
        b'{"ct": 1, "v": 2}|',
        b'{"ct": 1, "v": 2}|cno_such_module\nNoSuchClass\n.',
        b'{"ct": 1, "v": 2}|' + pickle.dumps(LARGE)[:-1],
    ],
    ids=range(10),
)
def test_what_cannot_be_unpickled(region, serialized):
    """An entry whose value or metadata cannot be read is a miss, and the value is created again."""
    region.backend.set_serialized("k", serialized)
    assert region.get("k") is NO_VALUE
    assert region.get_multi(["k"]) == [NO_VALUE]
    assert region.get_or_create("k", lambda: "new") == "new"
    assert region.get("k") == "new"


def test_value_that_cannot_be_pickled(region, base_dir):
    """A value that cannot be pickled raises pickle's error, and leaves nothing behind."""
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        region.set("k", [LARGE, threading.Lock()])
    assert not os.path.exists(os.path.join(base_dir, "values"))


@pytest.mark.parametrize("value", [b"serialized", 5, None, (1, {})], ids=repr)
def test_only_cached_values_are_stored(region, value):
    """The backend refuses what is not a CachedValue, and says how to store it."""
    for call in (lambda: region.backend.set("k", value), lambda: region.backend.set_multi({"k": value})):
        with pytest.raises(TypeError, match=rf"not {type(value).__name__}: .*region.*set_serialized"):
            call()
    assert region.get("k") is NO_VALUE


@pytest.mark.parametrize("large_values", [True, False])
def test_regions_serializer_wins(configured, large_values):
    """A region's own serializer replaces pickle, and either setting stores what it returns."""
    region = make_region(serializer=lambda value: json.dumps(value).encode(), deserializer=json.loads)
    configured(region, large_values=large_values)
    region.set("k", {"a": 1})
    region.set_multi({"l": [2]})
    assert region.get_multi(["k", "l"]) == [{"a": 1}, [2]]
    assert region.backend.get_serialized("k").endswith(b'|{"a": 1}')


def test_half_of_a_serializer(configured):
    """A region with its own serializer only, or deserializer only, still reads what it sets."""
    other_protocol = configured(make_region(serializer=lambda value: pickle.dumps(value, protocol=2)))
    other_protocol.set("k", LARGE)
    assert other_protocol.get("k") == LARGE
    careful = configured(make_region(deserializer=lambda data: pickle.loads(data)[:10]))
    careful.set("k", LARGE)
    assert careful.get("k") == LARGE[:10]


class Noting(ProxyBackend):
    """
    Notes which of its methods are called.
    """

    called: list[str]

    def __init__(self):
        self.called = []

    def get(self, key):
        self.called.append("get")
        return self.proxied.get(key)

    def set(self, key, value):
        self.called.append("set")
        self.proxied.set(key, value)

    def get_serialized(self, key):
        self.called.append("get_serialized")
        return self.proxied.get_serialized(key)

    def set_serialized(self, key, value):
        self.called.append("set_serialized")
        self.proxied.set_serialized(key, value)


@pytest.mark.parametrize(
    ("large_values", "called"), [(True, ["set", "get"]), (False, ["set_serialized", "get_serialized"])]
)
def test_proxies(configured, large_values, called):
    """A proxy is called by get and set with the setting, and by get_serialized and set_serialized without it."""
    proxy = Noting()
    region = configured(wrap=[proxy], large_values=large_values)
    region.set("k", LARGE)
    assert region.get("k") == LARGE
    assert proxy.called == called


def test_configured_from_ini(base_dir):
    """The setting may be a word, as an INI file gives it."""
    settings = {"cache.backend": "paylogic.filesystem", "cache.arguments.base_dir": base_dir}
    region = make_region().configure_from_config({**settings, "cache.arguments.large_values": "on"}, "cache.")
    assert region.serializer is None
    region.set("k", LARGE)
    assert region.get("k") == LARGE


def test_large_pieces_are_parts():
    """Large objects become parts as they are, in their order, and everything else is joined to few others."""
    memory = bytearray(LARGE)
    value = CachedValue([1, LARGE, list(range(200_000)), InBuffer(memory), b"end"], {"ct": 1})
    parts = pack(value)
    assert len(parts) == 5
    assert parts[1] is LARGE
    assert parts[3].obj is memory
    assert unpack(b"".join(parts)) == value
