"""
The arguments and options that several commands take.
"""

from __future__ import annotations

import math
import re

import click
from click.shell_completion import CompletionItem

from dogpile_filesystem import layout
from dogpile_filesystem.arguments import parse_size

#: Kinds of entries that commands look for and remove, by their names. Unsent files have commands of their own.
KINDS = {kind.name: kind.number for kind in layout.KINDS.values() if kind.number != layout.UNSENT}

#: A thousand years, in seconds.
_OLDEST = 1000 * 366 * 86400
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def size(text: str) -> int:
    """
    The bytes that a size means.

    :raises BadParameter: the text is not a size.
    """
    with_unit = None
    try:
        with_unit = parse_size("size", text)
    except ValueError:
        pass
    if with_unit is None:
        raise click.BadParameter(
            f"{text!r} is not a size: pass bytes, or a size such as 512MiB or 10GB; to remove all entries, use clear"
        )
    return with_unit


def age(text: str) -> float:
    """
    The seconds that an age means.

    :raises BadParameter: the text is not an age.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.ASCII)
    seconds = float(match[1]) * _SECONDS[match[2]] if match and match[2] in _SECONDS else math.inf
    if seconds > _OLDEST:
        raise click.BadParameter(f"{text!r} is not an age: pass seconds, or an age such as 90m, 12h, 30d or 1w")
    return seconds


def _directories(*_: object) -> list[CompletionItem]:
    return [CompletionItem("", type="dir")]


# Any string: open_cache says in a line what is wrong with it.
base_dir = click.argument("base_dir", shell_complete=_directories)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
dry_run = click.option("-n", "--dry-run", is_flag=True, help="Only report what would be removed.")
kind = click.option("--kind", type=click.Choice(list(KINDS)), help="Only entries of this kind.  [default: all]")


def kinds(kind: str | None) -> list[int]:
    """The kinds that an option names; None: all."""
    return list(KINDS.values()) if kind is None else [KINDS[kind]]
