"""
A job as an application has it, on files that every machine has: Python's standard library.

Worker processes share a region and analyse the library's modules through ``cache_on_arguments``, once while the cache
is cold and once while it is warm. Then they keep compressed archives of the library's packages in a raw region, which
takes the files by moving them in. Then they analyse the modules again, with a bound too small for all results.

Every worker goes over everything in a shuffled order of its own, and all start at the same instant, so that they
compete for the values. Nothing is printed here: see ``cli/demo.py``.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import gzip
import hashlib
import multiprocessing
import os
import random
import signal
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any, BinaryIO, cast, final

from dogpile.cache import make_region

from dogpile_filesystem.lockfile.ledger import BLOCK

if TYPE_CHECKING:
    from dogpile.cache.region import CacheRegion

    from dogpile_filesystem.store.store import Store

#: Bytes that the regions may take which have room for everything.
AMPLE = 16 << 20
#: The bound too small for everything is one part in so many of what everything took.
SCARCITY = 2
#: Seconds in which all workers must have started.
_START_TIMEOUT = 300.0
#: Packages of which no archive is kept: to compress Python's own tests takes longer than all the rest.
_LEFT_OUT = frozenset({"test"})

_modules = make_region()
_archives = make_region()
_scarce = make_region()


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """
    What was found in a module.

    :ivar functions: definitions of functions and methods.
    :ivar classes: definitions of classes.
    :ivar names: names that are read, written or deleted, as often as they are.
    """

    functions: int
    classes: int
    names: int


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """
    An archive, as it was made or as it was read. Two are equal if their bytes are.

    :ivar sha256: of its bytes, hexadecimal.
    :ivar size: bytes.
    :ivar inode: of its file: the same before and after if the file was moved.
    """

    sha256: str
    size: int
    inode: int = dataclasses.field(compare=False)


Value = Counts | Archive


@dataclasses.dataclass(frozen=True, slots=True)
class Cache:
    """
    A cache of the demo: which region, where, and how large.

    :ivar region: its name, one of ``modules``, ``archives``, ``scarce``.
    :ivar base_dir: its directory.
    :ivar cache_size: its bound in bytes.
    """

    region: str
    base_dir: str
    cache_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """
    What one worker did in a pass.

    :ivar seconds: from the common start until it was done.
    :ivar created: the values that it created itself, with their paths.
    :ivar results: what it got, by path.
    :ivar failures: how often which trouble with the cache occurred.
    """

    seconds: float
    created: tuple[tuple[str, Value], ...]
    results: dict[str, Value]
    failures: Counter[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """
    What all workers did in one pass over all paths.

    :ivar seconds: from the common start until the last worker was done.
    :ivar shares: what each worker did.
    """

    seconds: float
    shares: tuple[Share, ...]

    @property
    def calls(self) -> int:
        """How many values the workers asked for."""
        return sum(len(share.results) for share in self.shares)

    @property
    def created(self) -> Counter[str]:
        """How often the value of each path was created."""
        return Counter(path for share in self.shares for path, _ in share.created)

    @property
    def hits(self) -> int:
        """How many calls were served without creating a value."""
        return self.calls - self.created.total()


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """
    What a cache takes once a job is done.

    :ivar bound: bytes that it may take.
    :ivar charged: bytes that its ledger says.
    :ivar on_disk: bytes that its files take on disk.
    :ivar entries: the number of entries in it.
    """

    bound: int
    charged: int
    on_disk: int
    entries: int


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """
    A job with one cache.

    :ivar name: of its region.
    :ivar paths: over what every worker went.
    :ivar passes: in their order; the first one was cold.
    :ivar disk: what the cache took in the end.
    """

    name: str
    paths: tuple[str, ...]
    passes: tuple[Pass, ...]
    disk: Disk

    @property
    def shares(self) -> Iterator[Share]:
        """What the workers did in all passes."""
        return (share for each in self.passes for share in each.shares)

    @property
    def created(self) -> Counter[str]:
        """How often the value of each path was created, over all passes."""
        return sum((each.created for each in self.passes), Counter())

    @property
    def made(self) -> dict[str, Value]:
        """The values as they were created, by path."""
        return {path: value for share in self.shares for path, value in share.created}

    @property
    def repeated(self) -> int:
        """How many values were created more than once."""
        return sum(times > 1 for times in self.created.values())

    @property
    def evictions(self) -> int:
        """Entries created less the entries still there."""
        return self.created.total() - self.disk.entries

    @property
    def different(self) -> int:
        """How many results were not as they had been created."""
        made = self.made
        return sum(value != made.get(path) for share in self.shares for path, value in share.results.items())

    @property
    def failures(self) -> Counter[str]:
        """How often which trouble with the cache occurred."""
        return sum((share.failures for share in self.shares), Counter())


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """
    What the demo measured.

    :ivar workers: the number of worker processes.
    :ivar modules: the analysis of modules, cold and warm.
    :ivar archives: the archives of packages, cold and warm.
    :ivar scarce: the analysis of modules with a bound too small for everything, cold.
    """

    workers: int
    modules: Job
    archives: Job
    scarce: Job

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All three, in the order in which they ran."""
        return self.modules, self.archives, self.scarce

    @property
    def found(self) -> Counts:
        """The sums over all modules."""
        counts = [cast("Counts", value) for value in self.modules.made.values()]
        return Counts(*(sum(getattr(each, name) for each in counts) for name in ("functions", "classes", "names")))

    @property
    def archive_bytes(self) -> int:
        """The sizes of all archives."""
        return sum(cast("Archive", value).size for value in self.archives.made.values())

    @property
    def moved(self) -> int:
        """How many archives every worker read from the very file that was made."""
        shares = list(self.archives.shares)
        return sum(
            {cast("Archive", share.results[package]).inode for share in shares} == {cast("Archive", made).inode}
            for package, made in self.archives.made.items()
        )

    @property
    def problems(self) -> list[str]:
        """What is not as it must be, a sentence each; empty: all is well."""
        return [problem for job in self.jobs for problem in _problems(job)] + _repetitions(self.modules, self.archives)


def _problems(job: Job) -> Iterator[str]:
    if job.different:
        yield f"{job.name}: {job.different} results differ from what was created."
    if max(job.disk.charged, job.disk.on_disk) > job.disk.bound:
        yield f"{job.name}: the entries take more than the bound of {job.disk.bound} bytes."
    for cause, times in job.failures.items():
        yield f"{job.name}: trouble with the cache: {cause}, {times} times."


def _repetitions(*jobs: Job) -> list[str]:
    """What went wrong in jobs whose cache has room for everything."""
    return [f"{job.name}: {job.repeated} values were created more than once." for job in jobs if job.repeated]


# What there is to do.


def stdlib_modules(limit: int | None = None) -> tuple[str, ...]:
    """
    The paths of the standard library's top-level modules, in alphabetical order.

    :param limit: so many at most; None: all.
    """
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return tuple(str(path) for path in paths[:limit])


def stdlib_packages(limit: int | None = None) -> tuple[str, ...]:
    """
    The directories of the standard library's packages, in alphabetical order.

    :param limit: so many at most; None: all.
    """
    inits = sorted(Path(sysconfig.get_path("stdlib")).glob("*/__init__.py"))
    return tuple(str(path.parent) for path in inits if path.parent.name not in _LEFT_OUT)[:limit]


def count(path: str) -> Counts:
    """Parse a module and count what it defines and names."""
    nodes = list(ast.walk(ast.parse(Path(path).read_bytes(), path)))
    return Counts(
        functions=sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        names=sum(isinstance(node, ast.Name) for node in nodes),
    )


def write_archive(package: str, target: BinaryIO) -> None:
    """
    Write a package's modules as tar.gz: always the same bytes for the same files.

    :param package: its directory.
    """
    root = Path(package)
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(root.rglob("*.py")):
            archive.add(path, path.relative_to(root.parent), recursive=False)


# What a worker does. It notes here what it creates.

_created: list[tuple[str, Value]] = []
_barrier: Barrier | None = None


def _analyse(path: str) -> Counts:
    counts = count(path)
    _created.append((path, counts))
    return counts


@_modules.cache_on_arguments()
def analyse(path: str) -> Counts:
    """What is in a module, from a cache that has room for all of them."""
    return _analyse(path)


@_scarce.cache_on_arguments()
def analyse_scarcely(path: str) -> Counts:
    """What is in a module, from a cache that has no room for all of them."""
    return _analyse(path)


@_archives.cache_on_arguments()
def pack(package: str) -> BinaryIO:
    """A file with the archive of a package, which the cache takes by moving it."""
    # Beside the cache: only within a filesystem can a file be moved.
    incoming = Path(_archives.backend.arguments.base_dir).with_name("incoming")
    file = cast("BinaryIO", tempfile.NamedTemporaryFile(dir=incoming, suffix=".tar.gz", delete=False))  # noqa: SIM115
    write_archive(package, file)
    file.flush()
    with open(file.name, "rb") as written:
        _created.append((package, _identify(written)))
    file.seek(0)
    return file


def read_archive(package: str) -> Archive:
    """Read the archive of a package, from the cache if it is there."""
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


def configure(region: CacheRegion, cache: Cache) -> CacheRegion:
    """Configure a region for a cache of the demo."""
    arguments: dict[str, Any] = {"base_dir": cache.base_dir, "cache_size": cache.cache_size}
    if cache.region == "archives":
        return region.configure("paylogic.raw_filesystem", arguments=arguments | {"file_movable": True})
    return region.configure("paylogic.filesystem", arguments=arguments)


def _start_worker(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603
    _barrier = barrier
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(cache: Cache, paths: Sequence[str], seed: int) -> Share:
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


# What the parent does.


@final
class Workers:
    """
    Worker processes, each of which takes part in every pass. To be used as a context manager.

    :param count: how many.
    :param on_step: is told what is done next.
    """

    def __init__(self, count: int, on_step: Callable[[str], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._count = count
        self._on_step = on_step
        self._seeds = iter(range(1 << 62))
        # All wait for each other before they start. So nobody is early, and nobody takes two shares.
        self._barrier = context.Barrier(count)
        self._pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(self._barrier,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._barrier.abort()  # After an interrupt some may wait for others that never come.
        self._pool.shutdown()

    def run(self, cache: Cache, paths: Sequence[str], passes: Sequence[str]) -> Job:
        """
        Send all workers over all paths, once for each of the passes.

        :param passes: their names, for who watches.
        """
        done = []
        for name in passes:
            self._on_step(f"{cache.region}, {name}: {self._count} workers, {len(paths)} values")
            futures = [self._pool.submit(_work, cache, paths, next(self._seeds)) for _ in range(self._count)]
            shares = tuple(future.result() for future in futures)
            done.append(Pass(max(share.seconds for share in shares), shares))
        return Job(cache.region, tuple(paths), tuple(done), measure(cache))


def measure(cache: Cache) -> Disk:
    """Measure what a cache takes: by its ledger, and by its files."""
    store: Store = configure(make_region(), cache).backend.store
    usage = store.usage()
    files = [path for path in Path(cache.base_dir, "values").rglob("*") if path.is_file()]
    return Disk(cache.cache_size, usage.size, sum(file.stat().st_blocks * 512 for file in files), usage.entries)


def run(
    base_dir: str, *, workers: int = 4, limit: int | None = None, on_step: Callable[[str], None] = lambda _: None
) -> Report:
    """
    Run the demo.

    :param base_dir: an empty directory for its caches.
    :param workers: the number of worker processes.
    :param limit: how many modules, and packages, at most; None: all.
    :param on_step: is told what is done next.
    """
    incoming = Path(base_dir, "incoming")
    incoming.mkdir()
    paths, packages = stdlib_modules(limit), stdlib_packages(limit)

    def cache(region: str, size: int = AMPLE) -> Cache:
        return Cache(region, os.path.join(base_dir, region), size)

    with Workers(workers, on_step) as team:
        modules = team.run(cache("modules"), paths, ["cold", "warm"])
        archives = team.run(cache("archives"), packages, ["cold", "warm"])
        # To write at all, each worker needs room for a value.
        size = max(modules.disk.charged // SCARCITY // BLOCK, workers) * BLOCK
        scarce = team.run(cache("scarce", size), paths, ["cold"])
    with contextlib.suppress(OSError):  # What was not moved stays there, and is not counted as moved.
        incoming.rmdir()
    return Report(workers, modules, archives, scarce)
