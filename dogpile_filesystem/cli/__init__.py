"""
The command line, the only part that prints.
"""

from __future__ import annotations

import errno
import io
import os
import sys

import click

from dogpile_filesystem.cli import checking, deleting, demo, reading, stats
from dogpile_filesystem.cli.cache import NoCache, explain

__all__ = ["main"]


class _Commands(click.Group):
    """
    Commands whose trouble with the filesystem is told in a line.
    """

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # Whoever reads it has seen enough.
            raise
        except OSError as error:
            # The lock file is of another program, or of another version.
            kind = NoCache if error.errno == errno.EPROTO else click.ClickException
            raise kind(explain(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dogpile_filesystem")
def main() -> None:
    """
    Look into the caches of dogpile_filesystem, and remove what is in them, also while applications use them.

    Exit codes: 0, all is well; 1, something is wrong, was not found, or could not be removed; 2, wrong usage, or the
    directory is no cache.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # Closed by whoever started this.
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 - until this ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # Not every terminal can show every key.


for _command in (
    stats.stats,
    reading.ls,
    reading.show,
    checking.check,
    deleting.evict,
    deleting.remove,
    deleting.clear,
    demo.demo,
):
    main.add_command(_command)
