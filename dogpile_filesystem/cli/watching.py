"""
The command ``watch``: what changes in a directory or a store, as it happens, or since it was looked at last.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import time

import click

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.poller import Event, Poller, PollerUnavailable, make_poller


@click.command()
@click.argument("url")
@click.option("-r", "--recurse", is_flag=True, help="Watch what lies below, too.")
@click.option("--state", type=click.Path(dir_okay=False), help="Keep in this file what is known, and go on from there.")
@click.option("--reset", is_flag=True, help="Start the state anew.")
@click.option("--existing", is_flag=True, help="Report what is there at the first look as created.")
@click.option(
    "--settle", type=click.FloatRange(0), default=0.0, help="Seconds without a change before a file is reported."
)
@click.option("--include", multiple=True, metavar="GLOB", help="Only what matches; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not what matches; may be repeated.")
@click.option("--exec", "command", metavar="CMD", help="Run this for each event, with the event and the subject added.")
@click.option("--once", is_flag=True, help="Report what is new, and end.")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.01, 86400),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@parameters.as_json
def watch(
    url: str,
    recurse: bool,
    state: str | None,
    reset: bool,
    existing: bool,
    settle: float,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    command: str | None,
    once: bool,
    interval: float,
    as_json: bool,
) -> None:
    """
    Print what is created, modified and deleted in a directory, until Ctrl-C.

    With --state, it begins with what changed since it was ended, and several can share the work: each event goes to
    one of them. With --exec, a command that fails ends it with exit code 1, and the event comes again.
    """
    options = {"recurse": recurse, "existing": existing, "settle": settle, "include": include, "exclude": exclude}
    try:
        poller = make_poller(url, state=state, reset=reset, **options)
    except (ValueError, ImportError) as error:
        raise click.UsageError(str(error)) from error
    with contextlib.suppress(KeyboardInterrupt), poller:
        _work_off(poller, command, as_json=as_json)
        while not once:
            time.sleep(interval)
            try:
                _work_off(poller, command, as_json=as_json)
            except PollerUnavailable as error:  # It may come back.
                click.echo(f"{error}", err=True)


def _work_off(poller: Poller, command: str | None, *, as_json: bool) -> None:
    """Report what is new. One by one, if there is a command, so that only the event of one that failed comes again."""
    while events := poller.get_new_events(None if command is None else 1):
        for event in events:
            click.echo(_json(event) if as_json else f"{event.event:9} {formatting.printable(event.subject)}")
            if command is not None:
                _run(command, event)
        poller.ack()
        if command is None:
            return


def _json(event: Event) -> str:
    return json.dumps(
        {
            "event": event.event,
            "subject": event.subject,
            "size": event.size,
            "identity": event.identity,
            "first_seen": event.first_seen,
        }
    )


def _run(command: str, event: Event) -> None:
    # Without a shell: a name of a file may be anything.
    arguments = [*shlex.split(command), event.event, event.subject]
    try:
        status = subprocess.run(arguments, check=False).returncode  # noqa: S603 - the user's own
    except OSError as error:
        raise click.ClickException(f"cannot run {arguments[0]}: {error.strerror}") from error
    if status:
        raise click.ClickException(f"{arguments[0]} ended with {status} for {formatting.printable(event.subject)}")
