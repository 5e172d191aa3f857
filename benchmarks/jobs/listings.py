"""
Listings that are kept, beside those that fsspec's own filesystems keep in one process, and beside a slow source.
"""

from __future__ import annotations

import importlib
import statistics
import time
from typing import Any

import measure
from caches_of_files import ours

#: Seconds that a request of the slow source takes.
_LATENCY = 0.02
#: Of so many directories the slow source is really asked.
_ASKED = 50


def trees(directory: str, directories: int, names: int, repeats: int = 7) -> dict[str, float]:
    """
    Find all files of a tree whose directories are listed already, and list one large directory.

    :param directories: how many there are.
    :param names: in each of them. The large one has as many as all together, up to 100,000.
    :param repeats: how often each is measured. The ways alternate.
    :returns: median seconds of ``find``: ``ours``; ``dircache``: fsspec's own, in one process; both also with
     ``detail=True``, as ``ours detail`` and ``dircache detail``; ``source``: a source of 20 ms a request, which is
     asked for 50 directories, the time of which is multiplied. Of ``ls`` of the large one: ``ls``, and ``ls first``:
     by a filesystem that has not read it before.
    """
    large = min(100_000, directories * names)
    opened = {"dircache": _source(directories, names), "ours": _kept(directories, names, f"{directory}/tree")}
    detailed = {name: f"{name} detail" for name in opened}
    seconds: dict[str, list[float]] = {name: [] for name in (*opened, *detailed.values(), "ls", "ls first")}
    for filesystem in opened.values():
        filesystem.find("")
    for _ in range(repeats):
        for name, filesystem in opened.items():
            measure.settle()
            seconds[name].append(measure.seconds_of(lambda each=filesystem: each.find("")))
            measure.settle()
            seconds[detailed[name]].append(measure.seconds_of(lambda each=filesystem: each.find("", detail=True)))
    listed = _kept(1, large, f"{directory}/large")
    listed.ls("0")
    for _ in range(repeats):
        seconds["ls"].append(measure.seconds_of(lambda: listed.ls("0")))
        again = _kept(1, large, f"{directory}/large")
        seconds["ls first"].append(measure.seconds_of(lambda each=again: each.ls("0")))
    asked = min(_ASKED, directories)
    slow = measure.seconds_of(lambda: _source(asked, names, _LATENCY).find(""))
    return {name: statistics.median(each) for name, each in seconds.items()} | {"source": slow * directories / asked}


def _kept(directories: int, names: int, base_dir: str) -> Any:
    source = _source(directories, names)
    return ours(source, base_dir, listings_expiry_time=10**6, namespace="listed")


def _source(directories: int, names: int, latency: float = 0.0) -> Any:
    """A filesystem with such a tree, which keeps its listings as fsspec's own do."""
    fsspec = importlib.import_module("fsspec")

    class Tree(fsspec.AbstractFileSystem):  # type: ignore[misc, name-defined] # it is imported here alone
        protocol, root_marker, cachable = "tree", "", False

        def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
            path = self._strip_protocol(path)
            if path not in self.dircache:
                time.sleep(latency)
                self.dircache[path] = self._rows(path)
            rows: list[Any] = self.dircache[path]
            return rows if detail else [row["name"] for row in rows]

        def _rows(self, path: str) -> list[dict[str, Any]]:
            if not path:
                return [{"name": f"{number}", "size": 0, "type": "directory"} for number in range(directories)]
            return [
                {
                    "name": f"{path}/file-{number:06}.bin",
                    "size": number,
                    "type": "file",
                    "ETag": f"{number:032x}",
                    "mtime": 1.7e9 + number,
                }
                for number in range(names)
            ]

    return Tree()
