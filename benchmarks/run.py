"""
Compares this project with its peers: ``python benchmarks/run.py --directory /mnt/somewhere``.

Needs click, rich and matplotlib (the dependency group ``bench``), and the network once, to install the peers' packages.
Everything is measured in subprocesses. Each round runs all systems, so that each ratio compares figures of one round.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from environments import ENVIRONMENTS, HERE, dbm_kind, interpreter, prepare, versions
from plot import draw
from report import make_console, show
from report_calls import USUAL
from results import Results

#: The names that ``--jobs`` accepts.
JOBS = ["calls", "open", "mixed", "herd", "raw", "large", "files", "listings", "writing", "pollers"]
JOBS += ["bound", "trace", "tier", "leaks", "tools", "full", "curve"]
_CURVE_SIZES = [100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
_CURVE_SYSTEMS = ["floor", "ours", "diskcache-lru", "cachelib", "django", "old"]
_COMMANDS = {
    "ls --limit 20 --sort used": ["ls", "DIR", "--limit", "20", "--sort", "used"],
    "check": ["check", "DIR"],
}
#: The systems that are called in turn in one process.
_INTERLEAVED = ["floor", "ours", "ours-memory", "ours-invalidated", "diskcache-lru", "diskcache", "lmdb", "memory"]
#: The systems whose operations take milliseconds are measured with few calls.
_SLOW = ["floor", "cachelib", "django"]
_FULL = ["floor", "ours", "ours-memory", "diskcache-lru", "diskcache"]
_MIXED = ["ours", "ours-memory", "diskcache-lru", "diskcache", "lmdb"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The command's options that decide what is measured. ``big`` is in bytes."""

    jobs: frozenset[str]
    calls: int
    max_entries: int
    big: int
    largest: int
    bound_seconds: float


@dataclasses.dataclass(frozen=True)
class Step:
    """One run of a worker: a job of worker.py, its environment and parameters."""

    job: str
    environment: str
    parameters: dict[str, Any]


def each_round(options: Options, number: int) -> Iterator[Step]:
    """The steps of every round."""
    if "calls" in options.jobs:
        yield from _calls(options)
    if "full" in options.jobs:
        for entries in (1000, 10_000, 100_000, 1_000_000):
            if entries <= options.max_entries:
                yield Step("full", "peers", {"systems": _FULL, "entries": entries, "count": 2 * options.calls})
    if "mixed" in options.jobs:
        yield Step("mixed", "peers", {"systems": _MIXED[:: -1 if number % 2 else 1]})
    if "herd" in options.jobs:
        yield Step("herd", "peers", {"system": "ours"})
        yield Step("herd", "old", {"system": "old"})
        yield Step("herd", "peers", {"system": "dbm"})
    if "raw" in options.jobs:
        yield Step("moving", "peers", {"big": options.big})
        yield Step("copying", "peers", {"big": options.big})
    if "files" in options.jobs:
        yield from _files(options.big)
    if "listings" in options.jobs:
        yield Step("listings", "peers", {"directories": 1000, "names": 1000})
    if "writing" in options.jobs:
        yield Step("writing-closing", "peers", {})
        yield Step("writing-streaming", "peers", {})


def _calls(options: Options) -> Iterator[Step]:
    """The steps about single calls."""
    for keys in (200, 2000, 20_000):
        for distribution in ("uniform", "zipf"):
            parameters = {"keys": keys, "distribution": distribution, "count": options.calls}
            yield Step("calls", "peers", {"systems": _INTERLEAVED, **parameters})
    yield Step("calls", "peers", {"systems": _SLOW, **USUAL, "count": min(200, options.calls)})
    yield Step("calls", "old", {"systems": ["floor", "old"], **USUAL, "count": min(100, options.calls)})


def _files(big: int) -> Iterator[Step]:
    """
    The steps about files of slow storage.

    :param big: bytes of a large file.
    """
    yield Step("files-cold", "peers", {"size": 64 << 20})
    for job in ("first-byte", "touched", "memory", "in-order", "at-random"):
        yield Step(f"files-{job}", "peers", {"size": big})
    yield Step("files-small", "peers", {})


def once(options: Options) -> Iterator[Step]:
    """The steps that run once, because they take long and alternate the systems or repeat by themselves."""
    if "calls" in options.jobs:
        # To fill it takes half a minute.
        yield Step("calls", "peers", {"systems": ["floor", "dbm"], **USUAL, "count": min(100, options.calls)})
    if "open" in options.jobs:
        yield Step("open", "peers", {"sizes": [100, min(100_000, options.max_entries)]})
    if "trace" in options.jobs:
        yield Step("trace", "peers", {})
    if "tier" in options.jobs:
        yield Step("tier", "peers", {})
    if "leaks" in options.jobs:
        yield Step("leaks", "peers", {})
    if "large" in options.jobs:
        for size in sorted({1 << 20, 200 << 20, options.largest}):
            if size <= options.largest:
                yield Step("large", "peers", {"size": size, "repeats": 15 if size <= 1 << 20 else 5})
    if "bound" in options.jobs:
        yield Step("bound", "peers", {"seconds": options.bound_seconds})
    if "tools" in options.jobs:
        yield Step("reading", "peers", {"entries": options.max_entries, "commands": {"stats": ["stats", "DIR"]}})
        entries = min(100_000, options.max_entries)
        yield Step("reading", "peers", {"entries": entries, "commands": _COMMANDS})
        # A ninth of the keys.
        yield Step("removing", "peers", {"entries": entries, "prefix": "k1"})
    if "pollers" in options.jobs:
        files = min(100_000, options.max_entries)
        for directories in (1, 100):
            yield Step("unchanged", "peers", {"files": files, "directories": directories})
        yield Step("state", "peers", {"paths": options.max_entries})
    if "curve" in options.jobs:
        sizes = [size for size in _CURVE_SIZES if size <= options.max_entries]
        for system in _CURVE_SYSTEMS:
            environment = "old" if system == "old" else "peers"
            yield Step("curve", environment, {"system": system, "sizes": sizes})


def run(step: Step, directory: Path) -> dict[str, Any]:
    """Run a step in a directory of its own, which is removed again. An error of the worker is a result too."""
    workspace = tempfile.mkdtemp(prefix="benchmark-", dir=directory)
    try:
        task = {"job": step.job, "directory": workspace, "parameters": step.parameters}
        # 0.2.0 renames files from the directory for temporary files.
        environment = os.environ | {"TMPDIR": workspace, "PYTHONHASHSEED": "0"}
        command: list[str | Path] = [interpreter(step.environment), HERE / "worker.py", json.dumps(task)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            return {"error": done.stderr.strip()[-2000:]}
        return {"result": json.loads(done.stdout)}
    finally:
        shutil.rmtree(workspace)
        os.sync()


def about(directory: Path) -> dict[str, Any]:
    """The machine and the filesystem, to be read with the figures."""
    command: list[str | Path] = ["findmnt", "--noheadings", "--output", "FSTYPE,OPTIONS", "--target", directory]
    mount = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "filesystem": mount,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def _size(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    unit = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}.get(text[-3:])
    if unit is None or not text[:-3].isdecimal():
        msg = "pass a whole number of KiB, MiB or GiB, such as 64MiB"
        raise click.BadParameter(msg)
    return int(text[:-3]) * unit


def _jobs(_context: click.Context, _parameter: click.Parameter, text: str) -> frozenset[str]:
    jobs = frozenset(text.split(","))
    if unknown := jobs - set(JOBS):
        msg = f"{', '.join(sorted(unknown))}: known are {', '.join(JOBS)}"
        raise click.BadParameter(msg)
    return jobs


@click.command()
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    required=True,
    help="Make the caches here, and remove them again. Its filesystem is the one that is measured.",
)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Number of rounds; figures are medians."
)
@click.option("--jobs", default=",".join(JOBS), show_default=True, callback=_jobs, help="What to measure.")
@click.option(
    "--calls",
    default=5000,
    show_default=True,
    type=click.IntRange(10),
    help="Calls of each operation of each system in a round of the job 'calls'; 'full' makes twice as many.",
)
@click.option(
    "--max-entries",
    default=100_000,
    show_default=True,
    type=click.IntRange(1000),
    help="The most entries in a cache. With 1000000, the jobs 'full', 'curve', 'tools' and 'pollers' take long.",
)
@click.option(
    "--big",
    default="1GiB",
    show_default=True,
    callback=_size,
    help="Size of the big file of the jobs 'raw' and 'files'.",
)
@click.option(
    "--largest",
    default="1GiB",
    show_default=True,
    callback=_size,
    help="The largest value of the job 'large', which takes five times its size of memory.",
)
@click.option("--bound-seconds", default=30.0, show_default=True, help="Seconds for which the job 'bound' writes.")
@click.option(
    "--output",
    default=HERE / ".results",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Write results.json here.",
)
@click.option(
    "--plots",
    default=HERE,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Write set-cost.png and latency.png here.",
)
def main(
    directory: Path,
    rounds: int,
    jobs: frozenset[str],
    calls: int,
    max_entries: int,
    big: int,
    largest: int,
    bound_seconds: float,
    output: Path,
    plots: Path,
) -> None:
    """Measure this project, its peers and the floor; print tables, write results.json and the plots."""
    console = make_console()
    options = Options(jobs, calls, max_entries, big, largest, bound_seconds)
    results = Results(about(directory))
    for environment in ENVIRONMENTS:
        console.print(f"Preparing the environment {environment} ...")
        for package, problem in prepare(environment).items():
            console.print(f"[red]Cannot install {package}:[/red] {problem}", highlight=False)
            results.about.setdefault("not installed", {})[package] = problem
        results.about[f"versions, {environment}"] = versions(environment)

    results.about["dbm"] = dbm_kind()

    for made in (output, plots):
        made.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    steps = [(number, step) for number in range(rounds) for step in each_round(options, number)]
    steps += [(0, step) for step in once(options)]
    for count, (number, step) in enumerate(steps, 1):
        console.print(f"{count}/{len(steps)} round {number + 1}: {step.job} {step.parameters}", highlight=False)
        outcome = run(step, directory.resolve())
        if "error" in outcome:
            console.print(f"[red]{step.job} failed:[/red] {outcome['error']}", highlight=False)
        results.runs.append({"job": step.job, "round": number, "parameters": step.parameters} | outcome)
        results.write(path)

    show(results, console)
    draw(results, plots)
    console.print(f"Results: {path}")


if __name__ == "__main__":
    main()
