"""
The options of a poller: checked, and told apart into those that decide what a state contains and the others.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable
from typing import Any

from dogpile_filesystem.poller.patterns import Patterns

#: Options that decide what is known of the directories: a state belongs to one set of them.
_OF_STATE = ("recurse", "directories", "follow_symlinks", "contents", "include", "exclude")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    Checked options of a poller.

    :ivar recurse: whether directories below the root are watched, too.
    :ivar directories: whether directories are subjects. They are created, deleted, and replaced by others, which
     counts as modified if the other one has another inode; that their content changes does not.
    :ivar existing: whether the first look reports what is there as created.
    :ivar settle: seconds for which a file must not have changed before it is reported.
    :ivar include: globs; only subjects that match one are reported. Empty: all.
    :ivar exclude: globs; subjects that match one are not reported, nor what lies below such a directory.
    :ivar follow_symlinks: whether a link to a file is reported by what the file is. Links to directories are never
     followed.
    :ivar contents: False: only the names are looked at, and a changed file is reported only when another takes its
     place.
    :ivar full_every: seconds after which everything is looked at once more, whatever the hints say.
    :ivar max_deleted: the part of the known files, up to 1.0, that may be gone at one look. If more are,
     :class:`.PollerUnavailable` is raised, and nothing is reported as deleted.
    :ivar create: whether a missing root is made, once, when the poller is.
    :ivar rebind: whether another directory than the one known is accepted as root.
    :ivar state: the path of the file with what is known; None: this is kept in memory.
    :ivar reset: whether the state is started anew.
    """

    recurse: bool = False
    directories: bool = False
    existing: bool = False
    settle: float = 0.0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_symlinks: bool = False
    contents: bool = True
    full_every: float = 60.0
    max_deleted: float = 1.0
    create: bool = False
    rebind: bool = False
    state: str | None = None
    reset: bool = False

    @classmethod
    def parse(cls, options: dict[str, Any]) -> Options:
        """
        Check what the user passed.

        :raises TypeError: there is no such option, or a value is of a wrong type.
        :raises ValueError: a value is out of range.
        """
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        checked = {}
        for name, value in options.items():
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
                raise TypeError(f"unknown option {name!r}: {hint}")
            checked[name] = _checked(name, value, known[name])
        return cls(**checked)

    @property
    def patterns(self) -> Patterns:
        """The globs, ready to be asked."""
        return Patterns(self.include, self.exclude)

    def of_state(self) -> dict[str, Any]:
        """The options that decide what a state contains, as JSON can hold them."""
        found = {name: getattr(self, name) for name in _OF_STATE}
        return {name: sorted(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _checked(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: pass True or False")
        return value
    if isinstance(default, float):
        return _number(name, value)
    if isinstance(default, tuple):
        return _globs(name, value)
    return _path(name, value)


def _number(name: str, value: Any) -> float:
    most, accepted = (1.0, "a part from 0 to 1") if name == "max_deleted" else (math.inf, "seconds, 0 or more")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: pass {accepted}")
    if not 0 <= value <= most:
        raise ValueError(f"{name}={value!r}: pass {accepted}")
    return float(value)


def _globs(name: str, value: Any) -> tuple[str, ...]:
    globs = (value,) if isinstance(value, str) else value
    if not isinstance(globs, Iterable) or isinstance(globs, bytes):
        raise TypeError(f"{name}={value!r}: pass a glob such as '*.csv', or a list of such")
    globs = tuple(globs)
    for glob in globs:
        if not isinstance(glob, str) or not glob:
            raise TypeError(f"{name}={value!r}: {glob!r} is no glob: pass one such as '*.csv', or a list of such")
    return globs


def _path(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{name}={value!r}: pass the path of a file, or None to keep the state in memory")
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise ValueError(f"{name}={value!r}: pass the path of a file, or None to keep the state in memory")
    return os.path.abspath(os.path.expanduser(path))
