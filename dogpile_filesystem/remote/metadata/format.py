"""
A listing as the cache has it: JSON, by columns, so that 100,000 names are read in a fraction of a second. Pure: no I/O
here.

There are three lines: the head; the names; and the rest, which is read only if somebody wants more than names. Rows
that have the same keys are a group, files and directories apart. Of a group, each key is a column: a list of values;
one value that all rows have; or times, as text. Names are without the directory's path, which every reader has, and
which may be secret.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dogpile_filesystem.remote.metadata.records import UNSPEAKABLE, from_plain, plain
from dogpile_filesystem.sources import without_secrets

#: Of what :func:`pack` makes.
FORMAT = 1
_SIMPLE = {int, float, bool, type(None)}


def prefix_of(path: str) -> str:
    """What the names of a directory's children begin with."""
    return path if not path or path.endswith("/") else f"{path}/"


def is_storable(name: str) -> bool:
    """Whether a name, without its directory, has no secret in it: it may be a link with a signature."""
    name = name.rstrip("?")
    return without_secrets(name if "://" in name else f"https://host/{name}").endswith(name)


def name_of(row: Mapping[str, Any]) -> str:
    """The path that a row tells of. Some sources end those of directories with a slash."""
    return str(row["name"]).rstrip("/")


class Names(NamedTuple):
    """
    The names in a directory, with its path.

    :ivar files: and whatever else is no directory.
    """

    files: list[str]
    directories: list[str]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Names:
        """The names of rows."""
        files = [row["name"] for row in rows if row.get("type") != "directory"]
        return cls(files, [row["name"] for row in rows if row.get("type") == "directory"])


class Rows:
    """
    Rows of a listing, of which a dictionary is made when somebody wants one.

    :param names: of each group; and whether its rows are directories.
    :param order: the group of each row; empty: there is at most one group.
    :param rest: all but the names, as JSON, which is read when somebody wants it.
    """

    def __init__(self, names: Sequence[tuple[bool, list[str]]], order: Sequence[int], rest: bytes) -> None:
        self._names = names
        self._order = order
        self._rest = rest
        # The keys and columns of each group, and where each name is: made when they are first asked for. To make them
        # twice is harmless.
        self._groups: list[tuple[list[str], list[list[Any]]]] | None = None
        self._index: dict[str, tuple[int, int]] | None = None
        # Columns with values that a caller could change, by their group.
        self._nested: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return sum(len(names) for _, names in self._names)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the source's order. They are the caller's."""
        # All columns are as long, and to check it costs.
        made = [[dict(zip(keys, each)) for each in zip(*columns)] for keys, columns in self._columns()]  # noqa: B905
        for group, key in self._nested:
            for row in made[group]:
                row[key] = _own(row[key])
        if not self._order:
            return made[0] if made else []
        left: list[Iterator[dict[str, Any]]] = [iter(group) for group in made]
        return [next(left[group]) for group in self._order]

    def names(self) -> Names:
        """The names alone, in a fraction of the time."""
        found = Names([], [])
        for is_directory, names in self._names:
            found[is_directory].extend(names)
        return found

    def get(self, path: str) -> dict[str, Any] | None:
        """The row of a path, which is the caller's; None: there is none."""
        if self._index is None:
            self._index = {
                name.rstrip("/"): (group, number)
                for group, (_, names) in enumerate(self._names)
                for number, name in enumerate(names)
            }
        where = self._index.get(path)
        if where is None:
            return None
        keys, columns = self._columns()[where[0]]
        return {key: _own(column[where[1]]) for key, column in zip(keys, columns, strict=True)}

    def _columns(self) -> list[tuple[list[str], list[list[Any]]]]:
        if self._groups is None:
            packed = json.loads(self._rest, object_hook=from_plain)
            found = [
                (keys, [_unpacked(column, names) for column in columns])
                for (keys, columns), (_, names) in zip(packed, self._names, strict=True)
            ]
            # Before the columns: another thread takes them as soon as they are there.
            self._nested = [
                (group, key)
                for group, (keys, columns) in enumerate(packed)
                for key, column in zip(keys, columns, strict=True)
                if column is not None and column[0] == "each" and not {list, dict}.isdisjoint(map(type, column[1]))
            ]
            self._groups = found
        return self._groups


def _own(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, list | dict) else value


def pack(head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: str) -> bytes | None:
    """
    A listing.

    :param head: what else is to be kept with it.
    :param path: of the directory.
    :return: None: it cannot be kept, because a name is none of the directory, or has a secret in it.
    """
    prefix = prefix_of(path)
    names = [row["name"] for row in rows]
    if not all(isinstance(name, str) and name.startswith(prefix) for name in names):
        return None
    if any(("?" in name or "://" in name) and not is_storable(name[len(prefix) :]) for name in names):
        return None
    groups: dict[tuple[bool, tuple[str, ...]], list[tuple[Any, ...]]] = {}
    order = []
    for row in _speakable(rows):
        group = (row.get("type") == "directory", tuple(row))
        order.append(group)
        groups.setdefault(group, []).append(tuple(row.values()))
    said, rest = [], []
    for (is_directory, keys), members in groups.items():
        columns = dict(zip(keys, map(list, zip(*members, strict=True)), strict=True))
        said.append([is_directory, [name[len(prefix) :] for name in columns["name"]]])
        rest.append([keys, [None if key == "name" else _packed(column) for key, column in columns.items()]])
    numbers = {group: number for number, group in enumerate(groups)}
    orders = [numbers[group] for group in order] if len(groups) > 1 else []
    return b"\n".join(json.dumps(part).encode() for part in ({**head, "format": FORMAT}, [said, orders], rest))


def unpack(payload: bytes, path: str) -> tuple[dict[str, Any], Rows] | None:
    """
    A listing: its head and its rows; None: it is none.

    :param path: of the directory, as the reader has it.
    """
    try:
        first, second, rest = payload.split(b"\n")
        head = json.loads(first)
        if head.pop("format") != FORMAT:
            return None
        said, order = json.loads(second)
        prefix = prefix_of(path)
        names = [(bool(is_directory), [prefix + name for name in names]) for is_directory, names in said]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return head, Rows(names, order, rest)


def _speakable(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    kinds = {type(value) for row in rows for value in row.values()}
    if kinds <= _SIMPLE | {str, datetime.datetime}:
        return rows
    return [
        {
            key: said
            for key, value in row.items()
            if (said := value if key == "name" else plain(value)) is not UNSPEAKABLE
        }
        for row in rows
    ]


def _packed(column: list[Any]) -> list[Any]:
    kinds = set(map(type, column))
    if kinds == {datetime.datetime}:
        return ["times", [value.isoformat() for value in column]]
    if not kinds <= _SIMPLE:
        column = [plain(value) for value in column]
    if len(kinds) == 1 and kinds <= _SIMPLE | {str} and len(set(column)) == 1:
        return ["all", column[0]]
    return ["each", column]


def _unpacked(packed: list[Any] | None, names: list[str]) -> list[Any]:
    if packed is None:
        return names
    kind, values = packed
    if kind == "all":
        return [values] * len(names)
    if kind == "times":
        return [datetime.datetime.fromisoformat(text) for text in values]
    return list(values)
