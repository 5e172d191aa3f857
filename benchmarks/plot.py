"""
Draws the results: ``set-cost.png`` and ``latency.png``.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import click
import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from report_calls import USUAL
from results import Results
from systems import LABELS

mpl.use("Agg")

_STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}
#: The colours of the systems that are drawn.
_COLORS = {
    "floor": "#9aa0a6",
    "ours": "#d62728",
    "old": "#8c564b",
    "diskcache-lru": "#1f77b4",
    "diskcache": "#17becf",
    "cachelib": "#2ca02c",
    "django": "#ff9f0e",
    "dbm": "#9467bd",
    "ours-memory": "#f7a8a8",
    "lmdb": "#bcbd22",
}
_OPERATIONS = {"hit": "hit", "new": "set of a new key", "overwrite": "overwrite"}


def _microseconds(value: float, _position: int | None = None) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,g} s"
    return f"{value / 1e3:,g} ms" if value >= 1e3 else f"{value:,g} µs"


def _draw_set_cost(results: Results, axes: Axes) -> None:
    for system, label in LABELS.items():
        for result in results.of("curve", system=system):
            costs = [seconds * 1e6 for seconds in result.values()]
            width = 3 if system == "ours" else 1.8
            axes.plot([int(n) for n in result], costs, "o-", color=_COLORS[system], label=label, lw=width, ms=4)
    sizes = sorted({run["parameters"]["entries"] for run in results.runs if run["job"] == "full" and "result" in run})
    for system in ("ours", "diskcache-lru"):
        means = [results.figures("full", system, ("mean",), entries=size) for size in sizes]
        if any(means):
            costs = [statistics.median(each) * 1e6 if each else math.nan for each in means]
            axes.plot(sizes, costs, "s--", color=_COLORS[system], label=f"{LABELS[system]}, full", lw=1.8, ms=4)
    axes.set(xscale="log", yscale="log", xlabel="entries in the cache", ylabel="mean time of a set of a new key")
    axes.set_title("Cost of a set against the number of entries", loc="left", fontweight="bold")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(_microseconds))
    axes.grid(visible=True, which="major", color="#e0e0e0")
    axes.legend(fontsize=9, handlelength=3)


def _draw_latency(results: Results, axes: Axes) -> None:
    medians = {
        name: [
            results.figures("calls", name, (operation, "p50"), beside=_beside(name), **USUAL)
            for operation in _OPERATIONS
        ]
        for name in _COLORS
    }
    drawn = [name for name, found in medians.items() if all(found)]
    width = 0.86 / max(1, len(drawn))
    for number, system in enumerate(drawn):
        places = [group + (number - (len(drawn) - 1) / 2) * width for group in range(len(_OPERATIONS))]
        costs = [statistics.median(seconds) * 1e6 for seconds in medians[system]]
        bars = axes.bar(places, costs, width * 0.92, color=_COLORS[system], label=LABELS[system])
        axes.bar_label(bars, [f"{cost:,.0f}" for cost in costs], fontsize=8, padding=2)
    axes.set(yscale="log", ylabel="median time", xticks=range(len(_OPERATIONS)), xticklabels=_OPERATIONS.values())
    axes.set_title("Latency by operation with 2,000 keys of 400 bytes; bars labelled in µs", loc="left", weight="bold")
    axes.yaxis.set_major_formatter(FuncFormatter(_microseconds))
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=True, axis="y", color="#e0e0e0")
    axes.legend(fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))


def _beside(system: str) -> str:
    return "ours" if system == "floor" else "floor"


def draw(results: Results, directory: Path) -> None:
    """Write each plot for which there are results."""
    plots = {"curve": ("set-cost.png", _draw_set_cost), "calls": ("latency.png", _draw_latency)}
    for job, (name, draw_axes) in plots.items():
        if any(True for _ in results.of(job)):
            with plt.rc_context(_STYLE):
                figure, axes = plt.subplots(figsize=(10, 5.6))
                draw_axes(results, axes)
                figure.savefig(directory / name)
                plt.close(figure)


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--directory", default=Path(__file__).parent, type=click.Path(file_okay=False, path_type=Path))
def main(path: Path, directory: Path) -> None:
    """Draw the plots of a results.json again."""
    draw(Results.read(path), directory)


if __name__ == "__main__":
    main()
