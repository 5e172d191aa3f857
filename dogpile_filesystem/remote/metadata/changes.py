"""
What was changed in a directory of the source through the cache, and which answers of the source are good beside it.
Pure: no I/O here.

A store may list what was just stored, or list what was just removed, for some time. So a change of ours wins

- over what the source was asked for before the change was done, whenever that arrives;
- over what it was asked for later, for :data:`LATE` seconds, or until the source shows it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dogpile_filesystem.remote.metadata.format import is_storable, name_of, prefix_of
from dogpile_filesystem.remote.metadata.records import from_plain, plain
from dogpile_filesystem.sources import identity_of_info

#: Seconds for which a change wins over a source that was asked after it, and does not show it.
LATE = 60.0


def is_directory(info: Mapping[str, Any] | None) -> bool:
    """Whether a source's answer tells of a directory."""
    return info is not None and info.get("type") == "directory"


class Change(NamedTuple):
    """
    A change of one name.

    :ivar at: when it was done, in seconds since the epoch.
    :ivar info: what the source says of the name since; None: there is no such name any more.
    """

    at: float
    info: dict[str, Any] | None


class Changes(NamedTuple):
    """
    The state of a directory.

    :ivar epoch: of this record: random, and another one if the record was lost. What the source said is good only with
     the epoch in which it was asked, since nobody knows what was changed in an earlier one.
    :ivar token: of the listing; empty: there is none.
    :ivar asked_at: when the listing was asked for.
    :ivar since: what was asked for earlier is not good.
    :ivar by_name: what was changed, by the name in the directory. Nobody changes it.
    """

    epoch: str
    token: str
    asked_at: float
    since: float
    by_name: Mapping[str, Change]

    @classmethod
    def new(cls) -> Changes:
        """The state of a directory of which nothing is known."""
        return cls(uuid.uuid4().hex, "", 0.0, 0.0, {})

    def with_changes(self, changes: Mapping[str, Change]) -> Changes:
        """Note changes. One that cannot be stored makes what is known of the directory useless."""
        if not all(map(is_storable, changes)):
            return self.forgotten(max(change.at for change in changes.values()), list(changes))
        return self._replace(by_name={**self.by_name, **changes})

    def forgotten(self, now: float, names: Collection[str] = ()) -> Changes:
        """Drop all that the source said until now, and what was changed of some names."""
        kept = {name: change for name, change in self.by_name.items() if name not in names}
        return self._replace(token="", since=max(now, self.since), by_name=kept)

    def without_old(self, now: float) -> Changes:
        """Drop the changes that are older than :data:`LATE`, and what was asked for before them."""
        kept, old = {}, [0.0]
        for name, change in self.by_name.items():
            if abs(now - change.at) < LATE:
                kept[name] = change
            else:
                old.append(change.at)
        return self._replace(since=max(self.since, *old), by_name=kept)

    def pack(self) -> bytes:
        """The record as JSON."""
        changed = [[name, change.at, _without_name(change.info)] for name, change in self.by_name.items()]
        return json.dumps([*self[:-1], changed]).encode()

    @classmethod
    def unpack(cls, payload: bytes, path: str) -> Changes | None:
        """
        A record; None: it is none.

        :param path: of the directory, as the reader has it.
        """
        prefix = prefix_of(path)
        try:
            epoch, token, asked_at, since, changed = json.loads(payload, object_hook=from_plain)
            by_name = {
                name: Change(at, None if info is None else {"name": prefix + name, **info})
                for name, at, info in changed
            }
            numbers = (asked_at, since, *(change.at for change in by_name.values()))
        except (ValueError, TypeError, RecursionError):
            return None
        if not isinstance(epoch, str) or not isinstance(token, str) or not all(isinstance(n, float) for n in numbers):
            return None
        return cls(epoch, token, asked_at, since, by_name)


def _without_name(info: Mapping[str, Any] | None) -> Any:
    return None if info is None else plain({key: value for key, value in info.items() if key != "name"})


class Judge:
    """
    Decides between what was changed and what the source said.

    :param protocols: of the source.
    :param clock: seconds since the epoch.
    """

    def __init__(self, protocols: Collection[str], clock: Callable[[], float]) -> None:
        self._protocols = protocols
        self.clock = clock

    def wins(self, change: Change, info: Mapping[str, Any] | None, asked_at: float) -> bool:
        """
        Whether a change holds against an answer.

        :param info: of the name; None: the source said that there is no such name.
        :param asked_at: when the source was asked.
        """
        if change.at >= asked_at:
            return True
        return abs(self.clock() - change.at) < LATE and not self._shows(info, change.info)

    def _shows(self, info: Mapping[str, Any] | None, changed: Mapping[str, Any] | None) -> bool:
        if info is None or changed is None:
            return info is changed
        if is_directory(info) or is_directory(changed):
            return is_directory(info) and is_directory(changed)
        now, then = identity_of_info(info, self._protocols), identity_of_info(changed, self._protocols)
        if now is None or then is None:
            return info.get("size") == changed.get("size")
        # A later version is somebody else's, who was later than we were.
        is_later = None not in (now.changed, then.changed) and now.changed > then.changed  # type: ignore[operator] # neither is None
        return now.token == then.token or is_later

    def corrected(
        self, rows: Sequence[dict[str, Any]], changes: Changes, asked_at: float, path: str
    ) -> list[dict[str, Any]]:
        """
        A listing with the changes that hold against it.

        :param rows: as the source said.
        :param path: of the directory.
        """
        if not changes.by_name:
            return list(rows)
        prefix = prefix_of(path)
        said = {name_of(row): row for row in rows}
        held = self._held(changes, said, asked_at, prefix)
        kept = [row for row in rows if name_of(row) not in held]
        return kept + [dict(info) for info in held.values() if info is not None]

    def outstanding(
        self, rows: Iterable[Mapping[str, Any]], changes: Changes, asked_at: float, path: str
    ) -> dict[str, Change]:
        """The changes that a listing does not make superfluous."""
        if not changes.by_name:
            return {}
        prefix = prefix_of(path)
        held = self._held(changes, {name_of(row): row for row in rows}, asked_at, prefix)
        return {name: change for name, change in changes.by_name.items() if prefix + name in held}

    def _held(
        self, changes: Changes, said: Mapping[str, Mapping[str, Any]], asked_at: float, prefix: str
    ) -> dict[str, dict[str, Any] | None]:
        return {
            prefix + name: change.info
            for name, change in changes.by_name.items()
            if self.wins(change, said.get(prefix + name), asked_at)
        }
