"""
The job of the demo: several worker processes do what the processes of an application do with shared caches.

First they analyse the modules of the standard library through ``cache_on_arguments``, once while the cache is cold and
once while it is warm. Then they keep compressed archives of the library's packages in a raw region, which takes the
files by moving them in. Then they analyse the modules again, with a bound too small for all results.

Every worker goes through all paths in a shuffled order of its own, and all workers start at the same instant, so that
they compete for the values. Nothing is printed here: see ``cli/demo.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any, BinaryIO, cast, final

from dogpile.cache import make_region

from dogpile_filesystem.cli.demo_library import count, stdlib_modules, stdlib_packages, write_archive
from dogpile_filesystem.cli.demo_report import Archive, DemoReport, Disk, Job, ModuleCounts, Pass, Share, Value
from dogpile_filesystem.layout import BLOCK

if TYPE_CHECKING:
    from dogpile.cache.region import CacheRegion

    from dogpile_filesystem.store import Store

#: The bound in bytes of the caches that have room for everything.
AMPLE = 16 << 20
#: The small bound is what everything took, divided by this.
SCARCITY = 2
#: Seconds in which all workers must have started.
_START_TIMEOUT = 300.0

_modules = make_region()
_archives = make_region()
_scarce = make_region()


@dataclasses.dataclass(frozen=True, slots=True)
class DemoCache:
    """
    A cache of the demo.

    :ivar region: the name of its region: ``modules``, ``archives`` or ``scarce``.
    :ivar base_dir: its directory.
    :ivar cache_size: its bound in bytes.
    """

    region: str
    base_dir: str
    cache_size: int


# The worker. It records here what it creates.

_created: list[tuple[str, Value]] = []
_barrier: Barrier | None = None


def _analyse(path: str) -> ModuleCounts:
    counts = count(path)
    _created.append((path, counts))
    return counts


@_modules.cache_on_arguments()
def analyse(path: str) -> ModuleCounts:
    """What a module contains, from a cache with room for all modules."""
    return _analyse(path)


@_scarce.cache_on_arguments()
def analyse_scarcely(path: str) -> ModuleCounts:
    """What a module contains, from a cache without room for all modules."""
    return _analyse(path)


@_archives.cache_on_arguments()
def pack(package: str) -> BinaryIO:
    """A file with the archive of a package, which the cache takes by moving it."""
    # Beside the cache: a file can only be moved within a filesystem.
    incoming = Path(_archives.backend.arguments.base_dir).with_name("incoming")
    file = cast("BinaryIO", tempfile.NamedTemporaryFile(dir=incoming, suffix=".tar.gz", delete=False))  # noqa: SIM115
    write_archive(package, file)
    file.flush()
    with open(file.name, "rb") as written:
        _created.append((package, _identify(written)))
    file.seek(0)
    return file


def read_archive(package: str) -> Archive:
    """Read the archive of a package. It comes from the cache, or is made and stored there."""
    with contextlib.closing(pack(package)) as file:
        return _identify(file)


def _identify(file: BinaryIO) -> Archive:
    data = file.read()
    return Archive(hashlib.sha256(data).hexdigest(), len(data), os.fstat(file.fileno()).st_ino)


_REGIONS: dict[str, tuple[CacheRegion, Callable[[str], Value]]] = {
    "modules": (_modules, analyse),
    "archives": (_archives, read_archive),
    "scarce": (_scarce, analyse_scarcely),
}


def configure(region: CacheRegion, cache: DemoCache) -> CacheRegion:
    """Configure a region for a cache of the demo."""
    arguments: dict[str, Any] = {"base_dir": cache.base_dir, "cache_size": cache.cache_size}
    if cache.region == "archives":
        return region.configure("paylogic.raw_filesystem", arguments=arguments | {"file_movable": True})
    return region.configure("paylogic.filesystem", arguments=arguments)


def _start_worker(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603
    _barrier = barrier
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles Ctrl-C.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(cache: DemoCache, paths: Sequence[str], seed: int) -> Share:
    """One worker's share of a pass, in an order of its own."""
    region, function = _REGIONS[cache.region]
    if not region.is_configured:
        configure(region, cache)
    store: Store = region.backend.store
    shuffled = random.Random(seed).sample(paths, len(paths))  # noqa: S311
    failures = store.failures.counts.copy()
    _created.clear()
    if _barrier is not None:
        _barrier.wait(_START_TIMEOUT)
    start = time.perf_counter()
    results = {path: function(path) for path in shuffled}
    seconds = time.perf_counter() - start
    store.flush()
    return Share(seconds, tuple(_created), results, store.failures.counts - failures)


# The parent


@final
class Workers:
    """
    Worker processes that all take part in every pass. To be used as a context manager.

    :param count: the number of processes.
    :param on_step: called with a description of each step before it starts.
    """

    def __init__(self, count: int, on_step: Callable[[str], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._count = count
        self._on_step = on_step
        self._seeds = iter(range(1 << 62))
        # The workers wait for each other before they start, so no worker is early, and none takes two shares.
        self._barrier = context.Barrier(count)
        self._pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(self._barrier,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._barrier.abort()  # After an interrupt, workers may be waiting for others that never come.
        self._pool.shutdown()

    def run(self, cache: DemoCache, paths: Sequence[str], passes: Sequence[str]) -> Job:
        """
        Let all workers go through all paths, once for each pass.

        :param passes: the names of the passes, for ``on_step``.
        """
        done = []
        for name in passes:
            self._on_step(f"{cache.region}, {name}: {self._count} workers, {len(paths)} values")
            futures = [self._pool.submit(_work, cache, paths, next(self._seeds)) for _ in range(self._count)]
            shares = tuple(future.result() for future in futures)
            done.append(Pass(max(share.seconds for share in shares), shares))
        return Job(cache.region, tuple(paths), tuple(done), measure(cache))


def measure(cache: DemoCache) -> Disk:
    """Measure what a cache takes, by its ledger and by its files."""
    store: Store = configure(make_region(), cache).backend.store
    usage = store.usage()
    files = [path for path in Path(cache.base_dir, "values").rglob("*") if path.is_file()]
    return Disk(cache.cache_size, usage.size, sum(file.stat().st_blocks * 512 for file in files), usage.entries)


def run(
    base_dir: str, *, workers: int = 4, limit: int | None = None, on_step: Callable[[str], None] = lambda _: None
) -> DemoReport:
    """
    Run the demo.

    :param base_dir: an empty directory for its caches.
    :param workers: the number of worker processes.
    :param limit: the number of modules, and of packages, at most; None: all.
    :param on_step: called with a description of each step before it starts.
    """
    incoming = Path(base_dir, "incoming")
    incoming.mkdir()
    paths, packages = stdlib_modules(limit), stdlib_packages(limit)

    def cache(region: str, size: int = AMPLE) -> DemoCache:
        return DemoCache(region, os.path.join(base_dir, region), size)

    with Workers(workers, on_step) as team:
        modules = team.run(cache("modules"), paths, ["cold", "warm"])
        archives = team.run(cache("archives"), packages, ["cold", "warm"])
        # Each worker needs room for the value that it is writing.
        size = max(modules.disk.charged // SCARCITY // BLOCK, workers) * BLOCK
        scarce = team.run(cache("scarce", size), paths, ["cold"])
    with contextlib.suppress(
        OSError
    ):  # A file that was not moved is still there. The report does not count it as moved.
        incoming.rmdir()
    return DemoReport(workers, modules, archives, scarce)
