"""
Rows and tables of the report.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Row:
    """
    A figure that must not pass a limit.

    :ivar measured: the figure; None: it was not measured.
    :ivar unit: printed after the limit and the figure.
    :ivar rounds: the range of the rounds' figures; empty: there is no more than one.
    """

    name: str
    limit: float
    measured: float | None
    unit: str
    rounds: str = ""

    @classmethod
    def of_rounds(cls, name: str, limit: float, figures: Sequence[float], unit: str) -> Row:
        """The median of the rounds' figures, with their range; without figures, it was not measured."""
        return cls(name, limit, statistics.median(figures) if figures else None, unit, range_of(figures))

    def cells(self) -> tuple[str, str, str, str, str]:
        """The cells of its row in the table."""
        limit = f"{self.limit:.4g}{self.unit}"
        if self.measured is None:
            return self.name, limit, "not measured", "", ""
        holds = "yes" if self.measured <= self.limit else "NO"
        return self.name, limit, f"{self.measured:.4g}{self.unit}", self.rounds, holds


def range_of(figures: Sequence[float]) -> str:
    """The lowest and the highest of the rounds' figures; empty for less than two."""
    return f"{min(figures):.3g} to {max(figures):.3g}" if len(figures) > 1 else ""


def make_table(title: str, *columns: str) -> Table:
    """An empty table; its first column has the names."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    return table


def to_markdown(table: Table) -> str:
    """The same table in Markdown. Its title is the header of the first column."""
    headers = [str(table.title), *(str(column.header) for column in table.columns[1:])]
    rows = zip(*(column.cells for column in table.columns), strict=True)
    lines = [headers, ["---"] * len(headers), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
