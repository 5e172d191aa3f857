"""
The command ``flush``: sends what is unsent to its sources.
"""

from __future__ import annotations

import json
from typing import Any

import click

from dogpile_filesystem.cli import fetch, formatting, parameters
from dogpile_filesystem.cli.cache import open_cache
from dogpile_filesystem.maintenance import unsent_entries


@click.command()
@parameters.base_dir
@fetch.source_option
@click.option("--prefix", default="", help="Only files whose URLs begin with this.  [default: all]")
@click.option(
    "--on-conflict",
    type=click.Choice(["error", "overwrite"]),
    default="error",
    show_default=True,
    help="What to do when somebody else has changed a file at the source: leave ours unsent, or overwrite theirs.",
)
@fetch.signing_key
@click.option("-j", "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Files sent at a time.")
@parameters.as_json
def flush(
    base_dir: str, options: dict[str, Any], prefix: str, jobs: int, as_json: bool, **arguments: str | None
) -> None:
    """
    Send all unsent files to their sources now.

    The options of a source are known, but for those that may be secrets: pass these by --option, or null for one
    that the source takes from its environment. They are for all sources: with several, pass --prefix too.
    Applications may keep running; each file is sent by one process. Ctrl-C ends the command; what is not sent then
    stays unsent. The exit code is 1 if a file was not sent.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if "" in given.values():  # An unset shell variable must not mean that nothing is signed.
        raise click.UsageError("The value of an option is empty.")
    fetch.load("flush_job")
    from dogpile_filesystem.cli import flush_job  # noqa: PLC0415 - needs the packages of the extra

    flush_job.load(base_dir)  # Before root becomes somebody else, who may not be able to.
    cache = open_cache(base_dir)
    found = [entry for entry in unsent_entries(cache.shards) if entry.url.startswith(prefix)]
    arguments_of_cache = {"base_dir": cache.base_dir, **fetch.of_cache(cache), **given}
    try:
        report = flush_job.run(cache, found, options, arguments_of_cache, jobs)
    except KeyboardInterrupt:
        raise click.ClickException("interrupted: what is not sent stays unsent") from None
    if as_json:
        click.echo(json.dumps({"sent": report.sent, "size": report.size, "failed": report.failed}))
    else:
        click.echo(f"Sent {formatting.count(report.sent, 'file', 'files')}, {formatting.size(report.size)}.")
        for failed in report.failed:
            click.echo(formatting.printable(f"{failed['url']}: {failed['error']}"), err=True)
    if report.failed:
        raise SystemExit(1)
