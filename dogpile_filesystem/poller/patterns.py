"""
Globs of subjects. Pure: no I/O here.

A glob without a slash is compared with the name alone, one with a slash with the path below the root. ``*`` and ``?``
stand for anything but a slash, ``**`` for anything, ``**/`` for any directories or none, ``[abc]`` and ``[!abc]`` for
one letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\]|.", re.DOTALL)
_MEANING = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


class Patterns:
    """
    Which subjects are reported.

    :param include: globs of which a subject must match one; empty: any.
    :param exclude: globs of which neither a subject nor a directory above it may match one.
    """

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self._include = _compiled(include)
        self._exclude = _compiled(exclude)

    def __bool__(self) -> bool:
        """Whether they leave out anything at all."""
        return bool(self._include or self._exclude)

    def prune(self, path: str) -> bool:
        """Whether nothing at a path, nor below it, is reported, if nothing above it is pruned."""
        return self._exclude is not None and self._exclude.fullmatch(path) is not None

    def report(self, path: str) -> bool:
        """Whether a subject is reported, if nothing above it is pruned."""
        return (self._include is None or self._include.fullmatch(path) is not None) and not self.prune(path)

    def report_below(self, path: str) -> bool:
        """Whether a subject is reported, looking at everything above it too: for sources without directories."""
        parts = path.split("/")
        above = ("/".join(parts[:number]) for number in range(1, len(parts)))
        return self.report(path) and not any(map(self.prune, above))


def _compiled(globs: Iterable[str]) -> re.Pattern[str] | None:
    expressions = [_expression(glob) for glob in globs]
    return re.compile("|".join(expressions), re.DOTALL) if expressions else None


def _expression(glob: str) -> str:
    """The regular expression of a whole path that a glob means."""
    translated = "".join(map(_translated, _TOKEN.findall(glob.strip("/") if "/" in glob else glob)))
    return translated if "/" in glob else f"(?:.*/)?{translated}"


def _translated(token: str) -> str:
    if token in _MEANING:
        return _MEANING[token]
    if len(token) > 1:  # A set of letters.
        inner = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
        return f"[^/{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
    return re.escape(token)
