"""
Rows and tables of the report.
"""

from __future__ import annotations

import dataclasses

from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Row:
    """
    A figure that must not pass a limit.

    :ivar measured: the figure; None: it was not measured.
    :ivar unit: printed after the limit and the figure.
    """

    name: str
    limit: float
    measured: float | None
    unit: str

    def cells(self) -> tuple[str, str, str, str]:
        """The cells of its row in the table."""
        limit = f"{self.limit:.4g}{self.unit}"
        if self.measured is None:
            return self.name, limit, "not measured", ""
        return self.name, limit, f"{self.measured:.4g}{self.unit}", "yes" if self.measured <= self.limit else "NO"


def make_table(title: str, *columns: str) -> Table:
    """An empty table; its first column has the names."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    return table
