"""
What the demo measured: the share of each worker, the passes, the jobs, and what is wrong with them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import cast

from dogpile_filesystem.cli.formatting import count


@dataclasses.dataclass(frozen=True, slots=True)
class ModuleCounts:
    """
    What a module contains.

    :ivar functions: the number of functions and methods that it defines.
    :ivar classes: the number of classes that it defines.
    :ivar names: the number of times that it reads, writes or deletes a name.
    """

    functions: int
    classes: int
    names: int


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """
    An archive, as it was made or as it was read. Two archives are equal if their bytes are.

    :ivar sha256: of its bytes, hexadecimal.
    :ivar size: bytes.
    :ivar inode: of its file. A file keeps its inode when it is moved.
    """

    sha256: str
    size: int
    inode: int = dataclasses.field(compare=False)


Value = ModuleCounts | Archive


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """
    What one worker did in a pass.

    :ivar seconds: from the common start until the worker was done.
    :ivar created: the values that the worker created itself, with their paths.
    :ivar results: the values that it got, by path.
    :ivar failures: the number of failures of the cache, by cause.
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
        """The number of values that the workers asked for."""
        return sum(len(share.results) for share in self.shares)

    @property
    def created(self) -> Counter[str]:
        """The number of times that each path's value was created."""
        return Counter(path for share in self.shares for path, _ in share.created)

    @property
    def hits(self) -> int:
        """The number of calls that did not create a value."""
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

    :ivar name: the name of its region.
    :ivar paths: the paths that every worker went through.
    :ivar passes: in their order; the cache was cold in the first one.
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
        """The number of times that each path's value was created, over all passes."""
        return sum((each.created for each in self.passes), Counter())

    @property
    def made(self) -> dict[str, Value]:
        """The values as they were created, by path."""
        return {path: value for share in self.shares for path, value in share.created}

    @property
    def repeated(self) -> int:
        """The number of values that were created more than once."""
        return sum(times > 1 for times in self.created.values())

    @property
    def evictions(self) -> int:
        """The number of entries created, less the entries still there."""
        return self.created.total() - self.disk.entries

    @property
    def different(self) -> int:
        """The number of results that differ from the value as it was created."""
        made = self.made
        return sum(value != made.get(path) for share in self.shares for path, value in share.results.items())

    @property
    def failures(self) -> Counter[str]:
        """The number of failures of the cache, by cause."""
        return sum((share.failures for share in self.shares), Counter())


@dataclasses.dataclass(frozen=True, slots=True)
class DemoReport:
    """
    What the demo measured.

    :ivar workers: the number of worker processes.
    :ivar modules: the analysis of modules, cold and warm.
    :ivar archives: the archives of packages, cold and warm.
    :ivar scarce: the analysis of modules with a bound too small for all results, cold.
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
    def found(self) -> ModuleCounts:
        """The sums over all modules."""
        counts = [cast("ModuleCounts", value) for value in self.modules.made.values()]
        return ModuleCounts(
            functions=sum(each.functions for each in counts),
            classes=sum(each.classes for each in counts),
            names=sum(each.names for each in counts),
        )

    @property
    def archive_bytes(self) -> int:
        """The sizes of all archives."""
        return sum(cast("Archive", value).size for value in self.archives.made.values())

    @property
    def moved(self) -> int:
        """The number of archives that every worker read from the very file that was made."""
        shares = list(self.archives.shares)
        return sum(
            {cast("Archive", share.results[package]).inode for share in shares} == {cast("Archive", made).inode}
            for package, made in self.archives.made.items()
        )

    @property
    def problems(self) -> list[str]:
        """What is wrong, a sentence each; empty: nothing is."""
        return [problem for job in self.jobs for problem in _problems(job)] + _repetitions(self.modules, self.archives)


def _problems(job: Job) -> Iterator[str]:
    if job.different:
        yield f"{job.name}: {count(job.different, 'result differs', 'results differ')} from what was created."
    if max(job.disk.charged, job.disk.on_disk) > job.disk.bound:
        yield f"{job.name}: the entries take more than the bound of {job.disk.bound} bytes."
    for cause, times in job.failures.items():
        yield f"{job.name}: the cache failed with {cause}, {count(times, 'time', 'times')}."


def _repetitions(*jobs: Job) -> list[str]:
    """What went wrong in jobs whose cache has room for everything."""
    return [
        f"{job.name}: {count(job.repeated, 'value was', 'values were')} created more than once."
        for job in jobs
        if job.repeated
    ]
