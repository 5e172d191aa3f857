"""
The command line: the only package that prints.

May import: maintenance, arguments, layout, lockfile, store, remote, poller. Only the demo's job uses a Store; of the
rest, some modules name types of that package, and ``discard`` removes by one what is unsent. Only the jobs of ``fetch``
and ``flush`` use remote, since it needs the extra ``fsspec``.
"""

from __future__ import annotations

import errno
import io
import os
import sys

import click

from dogpile_filesystem.cli import checking, deleting, demo, fetch, flush, reading, stats, unsent, watching
from dogpile_filesystem.cli.cache import NoCache, explain

__all__ = ["main"]


class _Commands(click.Group):
    """
    Commands that report an error of the filesystem in one line.
    """

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # The program that reads the output has seen enough.
            raise
        except OSError as error:
            # EPROTO: the lock file is another program's, or another version's.
            kind = NoCache if error.errno == errno.EPROTO else click.ClickException
            raise kind(explain(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dogpile_filesystem")
def main() -> None:
    """
    Inspect the caches of dogpile_filesystem, and remove entries from them, also while applications use them; and watch
    directories.

    Exit codes: 0, success; 1, something is wrong, was not found, or could not be removed; 2, wrong usage, or the
    directory is not a cache.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # The parent process closed it.
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
    fetch.fetch,
    unsent.unsent,
    flush.flush,
    unsent.discard,
    watching.watch,
    demo.demo,
):
    main.add_command(_command)
