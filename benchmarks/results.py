"""
The results of all runs of the workers, which are written to JSON.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Results:
    """
    The results.

    :ivar about: the machine, the versions, and the packages that could not be installed.
    :ivar runs: for each run of a worker, its ``job``, ``round``, ``parameters``, and ``result`` or ``error``.
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
