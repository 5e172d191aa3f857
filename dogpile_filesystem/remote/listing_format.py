"""
A listing as the cache has it: JSON, by columns, so that 100,000 names are read in a fraction of a second. Pure: no I/O
here.

Rows that have the same keys are a group. Of a group, each key is a column: a list of values; one value that all rows
have; or times, as text. Names are without the directory's path, which every reader has, and may be secret.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from dogpile_filesystem.remote.records import UNSPEAKABLE, from_plain, plain
from dogpile_filesystem.sources import without_secrets

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


class Rows:
    """
    Rows of a listing, of which a dictionary is made when somebody wants one.

    :param groups: the keys of each group, and its columns.
    :param order: the group of each row; None: there is one group.
    """

    def __init__(self, groups: Sequence[tuple[list[str], list[list[Any]]]], order: Sequence[int] | None) -> None:
        self._groups = groups
        self._order = order
        # Where each name is: made when it is first asked for. To make it twice is harmless.
        self._index: dict[str, tuple[int, int]] | None = None
        self._is_flat = all(
            not isinstance(value, list | dict) for _, columns in groups for column in columns for value in column[:1]
        )

    def __len__(self) -> int:
        return sum(len(columns[0]) for _, columns in self._groups)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the source's order. They are the caller's."""
        made = [[dict(zip(keys, values)) for values in zip(*columns)] for keys, columns in self._groups]  # noqa: B905 - all are as long, and a check costs
        if self._order is None:
            rows = made[0] if made else []
        else:
            each: list[Iterator[dict[str, Any]]] = [iter(group) for group in made]
            rows = [next(each[group]) for group in self._order]
        return rows if self._is_flat else copy.deepcopy(rows)

    def get(self, path: str) -> dict[str, Any] | None:
        """The row of a path, which is the caller's; None: there is none."""
        if self._index is None:
            self._index = {
                name.rstrip("/"): (group, number)
                for group, (keys, columns) in enumerate(self._groups)
                for number, name in enumerate(columns[keys.index("name")])
            }
        where = self._index.get(path)
        if where is None:
            return None
        keys, columns = self._groups[where[0]]
        row = {key: column[where[1]] for key, column in zip(keys, columns, strict=True)}
        return row if self._is_flat else copy.deepcopy(row)


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
    groups: dict[tuple[str, ...], tuple[int, list[list[Any]]]] = {}
    order = []
    for row in _speakable(rows):
        keys = tuple(row)
        if keys not in groups:
            groups[keys] = (len(groups), [])
        number, members = groups[keys]
        order.append(number)
        members.append([value[len(prefix) :] if key == "name" else value for key, value in row.items()])
    packed = [
        [keys, [_packed(key, list(column)) for key, column in zip(keys, zip(*members, strict=True), strict=True)]]
        for keys, (_, members) in groups.items()
    ]
    # The head is first, and beside the rest: no name of it can be a row's.
    return json.dumps([dict(head), packed, order if len(groups) > 1 else None]).encode()


def unpack(payload: bytes, path: str) -> tuple[dict[str, Any], Rows] | None:
    """
    A listing: its head and its rows; None: it is none.

    :param path: of the directory, as the reader has it.
    """
    try:
        head, packed, order = json.loads(payload, object_hook=from_plain)
        groups = [
            (keys, [_unpacked(key, column, prefix_of(path)) for key, column in zip(keys, columns, strict=True)])
            for keys, columns in packed
        ]
        is_whole = isinstance(head, dict) and all(
            "name" in keys and len({len(column) for column in columns}) == 1 for keys, columns in groups
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (head, Rows(groups, order)) if is_whole else None


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


def _packed(key: str, column: list[Any]) -> list[Any]:
    kinds = set(map(type, column))
    if key != "name" and not kinds <= _SIMPLE:
        if kinds == {datetime.datetime}:
            return ["times", [value.isoformat() for value in column]]
        column = [plain(value) for value in column]
    if key != "name" and len(column) > 1 and kinds <= _SIMPLE | {str} and len(kinds) == 1 and len(set(column)) == 1:
        return ["all", column[0], len(column)]
    return ["each", column]


def _unpacked(key: str, column: Any, prefix: str) -> list[Any]:
    kind, values = column[0], column[1]
    if kind == "all":
        return list(repeat(values, column[2]))
    if key == "name":
        return [prefix + name for name in values]
    if kind == "times":
        return [datetime.datetime.fromisoformat(text) for text in values]
    return list(values)
