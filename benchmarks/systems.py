"""
The caches that are compared, each with the same few operations.

Each cache is called as its users call it: diskcache, cachelib and Django's through their own API, the others through a
region of dogpile.cache. Unless a job is about the bound, the bound is so high that nothing is evicted. The packages of
a system are imported when it is opened, because no environment has all of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: A bound that no job reaches: of bytes, or of entries.
_HUGE = 1 << 40
#: Bytes that an entry of up to 4096 bytes is charged against this project's bound.
BLOCK = 4096


@dataclasses.dataclass
class System:
    """
    One opened cache. Its functions are those of the cache itself, so that only the cache is timed.

    :ivar get: takes a key.
    :ivar set: takes a key and a value.
    :ivar close: closes what the cache holds open.
    :ivar fill: takes keys and a value, and sets them all. It is never timed, so it may skip work that a set does for
     other entries than its own.
    :ivar handle: the region or the cache.
    """

    get: Callable[[str], Any]
    set: Callable[[str, Any], Any]
    close: Callable[[], Any]
    fill: Callable[[Iterable[str], Any], None]
    handle: Any


def _fill(set_: Callable[[str, Any], Any]) -> Callable[[Iterable[str], Any], None]:
    def fill(keys: Iterable[str], value: object) -> None:
        for key in keys:
            set_(key, value)

    return fill


def _fill_without(owner: Any, method: str, set_: Callable[[str, Any], Any]) -> Callable[[Iterable[str], Any], None]:
    """Fill while a method that looks at all entries on each set is replaced by one that does nothing."""

    def fill(keys: Iterable[str], value: object) -> None:
        setattr(owner, method, lambda: None)
        try:
            _fill(set_)(keys, value)
        finally:
            delattr(owner, method)

    return fill


def open_region(backend: str, arguments: dict[str, Any]) -> Any:
    """A configured region of dogpile.cache."""
    return importlib.import_module("dogpile.cache").make_region().configure(backend, arguments=arguments)


def _of_region(region: Any) -> System:
    return System(region.get, region.set, lambda: None, _fill(region.set), region)


def floor(directory: str) -> System:
    """The floor, see floor.py."""
    importlib.import_module("floor")
    return _of_region(open_region("floor", {"base_dir": directory}))


def bare(directory: str) -> System:
    """The calls of the system that this project makes, see bare.py."""
    importlib.import_module("bare")
    return _of_region(open_region("bare", {"base_dir": directory}))


def ours(directory: str, **arguments: Any) -> System:
    """This project, with other arguments of its backend; by default, without a bound and without a memory tier."""
    arguments = {"base_dir": directory, "cache_size": _HUGE, "memory_size": 0, **arguments}
    return _of_region(open_region("paylogic.filesystem", arguments))


def ours_memory(directory: str, memory_size: int | str = "64MiB", **arguments: Any) -> System:
    """
    This project with a memory tier.

    :param memory_size: the default has room for all keys of the jobs.
    :raises UserWarning: the installed version has no memory tier.
    """
    with warnings.catch_warnings():
        # An argument that a backend does not know is ignored with a warning.
        warnings.simplefilter("error", UserWarning)
        return ours(directory, memory_size=memory_size, **arguments)


def ours_invalidated(directory: str) -> System:
    """This project with an invalidation that all processes see."""
    system = ours(directory)
    strategy = importlib.import_module("dogpile_filesystem").FilesystemInvalidation
    system.handle.region_invalidator = strategy(directory)
    return system


def old(directory: str) -> System:
    """dogpile_filesystem 0.2.0."""
    region = open_region("paylogic.filesystem", {"base_dir": directory, "cache_size": _HUGE})
    return dataclasses.replace(_of_region(region), fill=_fill_without(region.backend, "prune", region.set))


def lmdb(directory: str) -> System:
    """LMDB, see lmdb_backend.py."""
    importlib.import_module("lmdb_backend")
    region = open_region("lmdb", {"path": directory})
    return dataclasses.replace(_of_region(region), close=region.backend.close)


def memory(_: str) -> System:
    """The backend of dogpile.cache that keeps pickled values in a dictionary of the process."""
    return _of_region(open_region("dogpile.cache.memory_pickle", {}))


def dbm(directory: str) -> System:
    """The dbm backend of dogpile.cache."""
    return _of_region(open_region("dogpile.cache.dbm", {"filename": os.path.join(directory, "cache.dbm")}))


def _diskcache(directory: str, size_limit: int = _HUGE, **settings: str) -> System:
    cache = importlib.import_module("diskcache").Cache(directory, size_limit=size_limit, **settings)

    def fill(keys: Iterable[str], value: object) -> None:
        with cache.transact():
            _fill(cache.set)(keys, value)

    return System(cache.get, cache.set, cache.close, fill, cache)


def diskcache_lru(directory: str) -> System:
    """diskcache, evicting the least recently used."""
    return _diskcache(directory, eviction_policy="least-recently-used")


def diskcache_default(directory: str, size_limit: int = _HUGE) -> System:
    """diskcache with its default policy; ``size_limit`` in bytes."""
    return _diskcache(directory, size_limit)


def cachelib(directory: str, threshold: int = _HUGE) -> System:
    """cachelib's FileSystemCache; no timeout. ``threshold`` is a number of entries."""
    cache = importlib.import_module("cachelib").FileSystemCache(directory, threshold=threshold, default_timeout=0)
    return System(cache.get, cache.set, lambda: None, _fill(cache.set), cache)


def django(directory: str, max_entries: int = _HUGE) -> System:
    """Django's FileBasedCache; no timeout."""
    settings = importlib.import_module("django.conf").settings
    if not settings.configured:
        settings.configure()
    backend = importlib.import_module("django.core.cache.backends.filebased").FileBasedCache
    cache = backend(directory, {"TIMEOUT": None, "OPTIONS": {"MAX_ENTRIES": max_entries}})
    return System(cache.get, cache.set, cache.close, _fill_without(cache, "_cull", cache.set), cache)


#: The functions that open the systems in a directory, by the names in the results.
SYSTEMS: dict[str, Callable[[str], System]] = {
    "floor": floor,
    "bare": bare,
    "ours": ours,
    "ours-memory": ours_memory,
    "ours-invalidated": ours_invalidated,
    "old": old,
    "diskcache-lru": diskcache_lru,
    "diskcache": diskcache_default,
    "cachelib": cachelib,
    "django": django,
    "lmdb": lmdb,
    "memory": memory,
    "dbm": dbm,
}

#: The names of the systems in tables and plots.
LABELS: dict[str, str] = {
    "floor": "floor (no lock, no bound)",
    "bare": "this project's calls of the system alone",
    "ours": "this project",
    "ours-memory": "this project, memory tier",
    "ours-invalidated": "this project, FilesystemInvalidation",
    "old": "dogpile_filesystem 0.2.0",
    "diskcache-lru": "diskcache, LRU",
    "diskcache": "diskcache, default policy",
    "cachelib": "cachelib",
    "django": "Django",
    "lmdb": "LMDB (no bound)",
    "memory": "a dictionary (one process)",
    "dbm": "dogpile.cache.dbm",
}


def open_system(name: str, directory: str) -> System:
    """Open a system in a subdirectory of its own."""
    path = os.path.join(directory, name)
    os.makedirs(path, exist_ok=True)
    return SYSTEMS[name](path)


def opened_of(openers: Mapping[str, Callable[[], System]]) -> tuple[dict[str, System], dict[str, str]]:
    """
    Open systems.

    :returns: those that could be opened, by name; and for each other name the reason, such as a package that is not
     installed.
    """
    opened: dict[str, System] = {}
    left_out: dict[str, str] = {}
    for name, open_ in openers.items():
        try:
            opened[name] = open_()
        except (ImportError, UserWarning) as error:
            left_out[name] = str(error)
    return opened, left_out
