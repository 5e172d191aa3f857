"""
The results of all runs of the workers, which are written to JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Results:
    """
    The results.

    :ivar about: the machine, the versions, and the packages that could not be installed.
    :ivar runs: for each run of a worker, its ``job``, ``round``, ``parameters``, ``load`` (the
     processes that wanted to run in the minute before), and ``result`` or ``error``.
    """

    about: dict[str, Any]
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read results that :meth:`write` wrote."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write the results."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def of(self, job: str, **parameters: object) -> Iterator[dict[str, Any]]:
        """The results of a job's runs with these parameters, by round."""
        for run in self.runs:
            if run["job"] == job and "result" in run and parameters.items() <= run["parameters"].items():
                yield run["result"]

    def median(self, number: Callable[[dict[str, Any]], float], job: str, **parameters: object) -> float | None:
        """The median, over the rounds, of a number taken from each result; None: there are no results."""
        numbers = [number(result) for result in self.of(job, **parameters)]
        return statistics.median(numbers) if numbers else None

    def figures(
        self, job: str, system: str, path: Sequence[str], *, beside: str = "", **parameters: object
    ) -> list[float]:
        """
        A system's figure of each round.

        :param path: leads to it within the system's figures.
        :param beside: only of runs that measured this system as well.
        """
        runs = (result["figures"] for result in self.of(job, **parameters))
        return [_at(run[system], path) for run in runs if {system, beside or system} <= set(run)]

    def ratios(self, job: str, system: str, base: str, path: Sequence[str], **parameters: object) -> list[float]:
        """The ratio of two systems in each round. Both figures of a ratio are of one process."""
        pair = (self.figures(job, a, path, beside=b, **parameters) for a, b in ((system, base), (base, system)))
        return [own / theirs for own, theirs in zip(*pair, strict=True)]


def _at(figures: Any, path: Sequence[str]) -> float:
    return functools.reduce(operator.getitem, path, figures)
