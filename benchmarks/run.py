"""
Compares this project with its peers: ``python benchmarks/run.py --directory /mnt/somewhere``.

Needs click, rich and matplotlib (the dependency group ``bench``), and the network once, to install the peers' packages.
Everything is measured in subprocesses. Each round runs all systems, so that each ratio compares figures of one round.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from environments import ENVIRONMENTS, HERE, dbm_kind, interpreter, prepare, versions
from plot import draw
from report import make_console, show
from results import Results
from steps import JOBS, Options, Step, each_round, once
from systems import SYSTEMS


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


def _some_of(known: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], frozenset[str]]:
    """Reads names with commas between them, each of which is known."""

    def read(_context: click.Context, _parameter: click.Parameter, text: str) -> frozenset[str]:
        names = frozenset(text.split(","))
        if unknown := names - set(known):
            msg = f"{', '.join(sorted(unknown))}: known are {', '.join(known)}"
            raise click.BadParameter(msg)
        return names

    return read


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
@click.option("--jobs", default=",".join(JOBS), show_default=True, callback=_some_of(JOBS), help="What to measure.")
@click.option(
    "--systems",
    default=",".join(SYSTEMS),
    show_default=True,
    callback=_some_of(SYSTEMS),
    help="What the job 'calls' measures, always beside the floor.",
)
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
@click.option(
    "--seconds", default=60.0, show_default=True, help="Seconds for which the jobs 'bound' and 'overwriting' write."
)
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
    systems: frozenset[str],
    calls: int,
    max_entries: int,
    big: int,
    largest: int,
    seconds: float,
    output: Path,
    plots: Path,
) -> None:
    """Measure this project, its peers and the floor; print tables, write results.json and the plots."""
    console = make_console()
    options = Options(jobs, systems, calls, max_entries, big, largest, seconds)
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
        load = os.getloadavg()[0]
        outcome = run(step, directory.resolve())
        if "error" in outcome:
            console.print(f"[red]{step.job} failed:[/red] {outcome['error']}", highlight=False)
        results.runs.append({"job": step.job, "round": number, "parameters": step.parameters, "load": load} | outcome)
        results.write(path)

    show(results, console)
    draw(results, plots)
    console.print(f"Results: {path}")


if __name__ == "__main__":
    main()
