"""
Draws the results: ``set-cost.png`` and ``latency.png``.
"""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
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
    full = list(results.of("full"))
    for system in full[0] if full else ():
        sizes = [result[system]["before"] for result in full]
        costs = [result[system]["mean"] * 1e6 for result in full]
        axes.plot(sizes, costs, "s--", color=_COLORS[system], label=f"{LABELS[system]}, full", lw=1.8, ms=4)
    axes.set(xscale="log", yscale="log", xlabel="entries in the cache", ylabel="mean time of a set of a new key")
    axes.set_title("Cost of a set against the number of entries", loc="left", fontweight="bold")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(_microseconds))
    axes.grid(visible=True, which="major", color="#e0e0e0")
    axes.legend(fontsize=9, handlelength=3)


def _draw_latency(results: Results, axes: Axes) -> None:
    drawn = [name for name in _COLORS if any(True for _ in results.of("latency", systems=_pair(name)))]
    width = 0.86 / max(1, len(drawn))
    for number, system in enumerate(drawn):
        medians = [
            results.median(lambda r, s=system, o=operation: r[s][o]["p50"], "latency", systems=_pair(system)) or 0.0
            for operation in _OPERATIONS
        ]
        places = [group + (number - (len(drawn) - 1) / 2) * width for group in range(len(_OPERATIONS))]
        costs = [seconds * 1e6 for seconds in medians]
        bars = axes.bar(places, costs, width * 0.92, color=_COLORS[system], label=LABELS[system])
        axes.bar_label(bars, [f"{cost:,.0f}" for cost in costs], fontsize=8, padding=2)
    axes.set(yscale="log", ylabel="median time", xticks=range(len(_OPERATIONS)), xticklabels=_OPERATIONS.values())
    axes.set_title("Latency by operation at 1,000 entries of 400 bytes; bars labelled in µs", loc="left", weight="bold")
    axes.yaxis.set_major_formatter(FuncFormatter(_microseconds))
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=True, axis="y", color="#e0e0e0")
    axes.legend(fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))


def _pair(system: str) -> list[str]:
    return ["floor", "ours" if system == "floor" else system]


def draw(results: Results, directory: Path) -> None:
    """Write each plot for which there are results."""
    plots = {"curve": ("set-cost.png", _draw_set_cost), "latency": ("latency.png", _draw_latency)}
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
