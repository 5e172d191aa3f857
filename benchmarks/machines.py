"""
Two hosts on one cache, on a filesystem that both have mounted: ``python benchmarks/machines.py --filesystem moosefs``.

Needs root, Debian or Ubuntu, and what the tests need: it installs the filesystems itself, and takes everything down at
the end. Each host has two processes of two threads. NFS runs in a virtual machine, user-mode Linux, which is slow.
``ext4`` is the filesystem of the directory for temporary files, for comparison.

What is done stands in tests/helpers/two_hosts/scenarios; the tests do the same for a shorter time.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from environments import HERE
from report import make_console
from rows import Row, make_table, to_markdown

sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))

from two_hosts.filesystems import opened
from two_hosts.mounted import KINDS
from two_hosts.nfs import LEASE

#: What is done, in this order.
SCENARIOS = (
    "mix",
    "create",
    "bound",
    "kill_holder",
    "kill_host",
    "invalidate",
    "latencies",
    "power_cuts",
    "machine_cuts",
)
LOCK_TIMEOUT = 20
#: What a call may cost at most, as a multiple of what bare files cost.
RATIOS = {"hit": 1.5, "asking": math.inf, "miss": 1.5, "set": 2.5}
#: Seconds for which a value may be old: the time for which a mount caches attributes, with the defaults.
OLD = {"moosefs": 0.0, "ext4": 0.0, "glusterfs": 2.0, "nfs": 60.0}


def rows(filesystem: str, found: dict[str, Any]) -> Iterator[Row]:
    """
    What was found on a filesystem, beside its limits.

    :param found: name of a scenario → its result, as far as it was run and did not fail.
    """
    if mix := found.get("mix"):
        yield Row("wrong values", 0, mix["wrong"], "")
        yield Row("exceptions", 0, len(mix["raised"]), "")
        yield Row("failures counted", 0, sum(mix["failures"].values()), "")
        yield Row(f"old for, {mix['stale']} of {mix['gets']} reads", OLD[filesystem], mix["stale_s"], " s")
        yield Row(f"missed for, {mix['forgotten']} reads", OLD[filesystem], mix["forgotten_s"], " s")
    if create := found.get("create"):
        yield Row("creations of one value, most", 1, max(create["creations"]), "")
    if bound := found.get("bound"):
        yield Row("over the bound", 1, bound["over"] * 100, " %")
        yield Row("recounts without cause", 0, bound["counted"] + bound["incomplete"] + sum(bound["reopened"]), "")
        yield Row("ledger differs from disk", 0, len(bound["difference"]), "")
    if holder := found.get("kill_holder"):
        yield Row("holder killed: others go on after", 1, max(holder["late"]), " s")
    if host := found.get("kill_host"):
        yield Row("host killed: others go on after", max(LEASE, LOCK_TIMEOUT), host["late"], " s")
        yield Row("host killed: values lost of 200", 0, host["lost"], "")
        yield Row("host killed: ledger differs from disk", 0, len(host["difference"]), "")
    if cuts := found.get("power_cuts"):
        yield Row(f"power cuts: wrong of {cuts['hits']} values", 0, cuts["wrong"], "")
        yield Row("power cuts: exceptions", 0, len(cuts["raised"]), "")
    if cuts := found.get("machine_cuts"):
        yield Row(f"machines killed: wrong of {cuts['hits']} values", 0, cuts["wrong"], "")
    if invalidate := found.get("invalidate"):
        late = [math.inf if late is None else late for late in invalidate["late"]]
        yield Row("invalidation seen after", 1, max(late), " s")
    for name, (ours, bare) in found.get("latencies", {}).items():
        # "asking" is a hit with FilesystemInvalidation, which has no limit.
        yield Row(f"{name}, {ours:.0f} us beside {bare:.0f} us", RATIOS[name], ours / bare, " ×")


def run(filesystem: str, wanted: dict[str, dict[str, Any]], say: Any) -> dict[str, Any]:
    """
    Run scenarios on a filesystem.

    :param wanted: their parameters, by their names.
    :return: their results; of one that failed, ``error``.
    """
    found = {}
    with opened(filesystem) as hosts:
        for name, parameters in wanted.items():
            if name == "machine_cuts" and filesystem != "nfs":
                continue  # Only there is a host a machine of its own.
            start = time.monotonic()
            try:
                found[name] = hosts.run(name, **parameters)
            except Exception:
                found[name] = {"error": traceback.format_exc()[-2000:]}
            found[name + " took"] = round(time.monotonic() - start, 1)
            say(f"{filesystem}: {name} took {found[name + ' took']} s: {json.dumps(found[name])[:500]}")
    return found


@click.command()
@click.option(
    "--filesystem",
    "filesystems",
    multiple=True,
    type=click.Choice(list(KINDS)),
    help="What to mount; may be given several times. Default: all.",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(SCENARIOS),
    help="What to do; may be given several times. Default: everything.",
)
@click.option("--seconds", default=60.0, show_default=True, help="Seconds of the scenario 'mix'; of 'bound', half.")
@click.option("--rounds", default=30, show_default=True, help="Rounds of the scenario 'create'.")
@click.option("--cuts", default=20, show_default=True, help="Power cuts.")
@click.option("--calls", default=1000, show_default=True, help="Calls of each kind whose times are measured.")
@click.option(
    "--output",
    default=HERE / ".results" / "machines.json",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the results here.",
)
@click.option("--markdown", is_flag=True, help="Print the tables in Markdown.")
def main(
    filesystems: tuple[str, ...],
    scenarios: tuple[str, ...],
    seconds: float,
    rounds: int,
    cuts: int,
    calls: int,
    output: Path,
    markdown: bool,
) -> None:
    """Measure one cache on two hosts, on filesystems that both have mounted; print tables, and write the results."""
    console = make_console()
    parameters: dict[str, dict[str, Any]] = {
        "mix": {"seconds": seconds},
        "create": {"rounds": rounds},
        "bound": {"seconds": seconds / 2},
        "kill_holder": {},
        "kill_host": {"lock_timeout": LOCK_TIMEOUT},
        "invalidate": {},
        "latencies": {"calls": calls},
        "power_cuts": {"times": cuts},
        "machine_cuts": {"times": cuts},
    }
    wanted = {name: values for name, values in parameters.items() if name in (scenarios or SCENARIOS)}
    output.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for filesystem in filesystems or KINDS:
        results[filesystem] = run(filesystem, wanted, lambda text: console.print(text, highlight=False))
        output.write_text(json.dumps(results, indent=1) + "\n")
        table = make_table(filesystem, filesystem, "limit", "measured", "rounds", "holds")
        whole = {name: found for name, found in results[filesystem].items() if name in wanted and "error" not in found}
        for row in rows(filesystem, whole):
            table.add_row(*row.cells())
        console.print(to_markdown(table) if markdown else table)
    console.print(f"Results: {output}")


if __name__ == "__main__":
    main()
