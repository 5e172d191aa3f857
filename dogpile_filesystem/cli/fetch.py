"""
The command ``fetch``: reads files of sources through a cache, so that they are there when they are needed.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import TYPE_CHECKING, Any

import click

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.cli.cache import NoCache, cache_to_fill
from dogpile_filesystem.lockfile import recorded
from dogpile_filesystem.maintenance import Cache

if TYPE_CHECKING:
    from dogpile_filesystem.cli.fetch_job import Report

#: Packages of the extra.
_PACKAGES = {"fsspec", "platformdirs"}
_OWNER = 0o700


def _option(_context: object, _parameter: object, texts: tuple[str, ...]) -> dict[str, Any]:
    """The options of the source: values are JSON where they can be, and text otherwise."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r}: pass KEY=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


source_option = click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_option,
    help="An option of the source, as target_options has it. VALUE is JSON, or else text.",
)
signing_key = click.option(
    "--signing-key",
    envvar="DOGPILE_FILESYSTEM_SIGNING_KEY",
    help="As the applications have it. Others can see it here, but not in DOGPILE_FILESYSTEM_SIGNING_KEY.",
)


@click.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--base-dir", required=True, help="The directory of the cache. It is made if it is missing.")
@source_option
@click.option("--block-size", metavar="SIZE", help="As the applications have it.  [default: 1 MiB]")
@click.option(
    "--cache-size", metavar="SIZE", help="As the applications have it.  [default: what they said last, or 10 GiB]"
)
@click.option("--check", metavar="CHECK", help="always, never, or seconds, as the applications have it.")
@click.option("--namespace", help="As the applications have it.")
@signing_key
@click.option("-j", "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Files read at a time.")
@parameters.as_json
def fetch(
    urls: tuple[str, ...], base_dir: str, options: dict[str, Any], jobs: int, as_json: bool, **arguments: str | None
) -> None:
    """
    Fetch files of sources into a cache.

    URL is that of a file, of a directory, of which all files are fetched, or a pattern such as s3://bucket/*.parquet.
    What is in the cache already is not fetched again. Readers find the files if they use the same options of the
    source, or the same namespace, and the same block size. Ctrl-C ends the command; what was fetched stays. The exit
    code is 1 if a file could not be fetched or kept; the others are fetched nevertheless.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if "" in given.values():  # An unset shell variable must not mean the default, such as an unsigned cache.
        raise click.UsageError("The value of an option is empty.")
    load("fetch_job")
    from dogpile_filesystem.cli import fetch_job, fetch_sources  # noqa: PLC0415 - need the packages of the extra

    fetch_sources.load(urls)  # Before root becomes somebody else, who may not be able to.
    cache = cache_to_fill(base_dir)
    filesystems = fetch_sources.Filesystems(options, {"base_dir": base_dir, **of_cache(cache), **given})
    try:
        report = fetch_job.run(filesystems, urls, jobs)
    except fetch_sources.Misuse as error:
        raise click.UsageError(str(error)) from error
    except fetch_sources.Unusable as error:
        raise NoCache(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException("interrupted: what was fetched stays in the cache") from None
    click.echo(json.dumps(dataclasses.asdict(report)) if as_json else _summary(report))
    if report.problems:
        raise SystemExit(1)


def load(job: str) -> None:
    """
    Import what a command needs.

    :param job: the module that does its work.
    :raises ClickException: a package of the extra is missing.
    """
    try:
        importlib.import_module(f"dogpile_filesystem.cli.{job}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        msg = "this command needs more packages: pip install 'dogpile_filesystem[cli,fsspec]'"
        raise click.ClickException(msg) from error


def of_cache(cache: Cache | None) -> dict[str, Any]:
    """The arguments that applications gave to a cache, as far as it tells them."""
    if cache is None:
        return {}
    mode = cache.access.dir_mode
    # Whoever runs a command on a directory has decided that it may be used.
    arguments: dict[str, Any] = {"allow_shared": True}
    if mode & _OWNER == _OWNER:
        arguments["dir_mode"] = mode
    ledger = cache.ledger()
    said = None if ledger is None else recorded(ledger)
    if said is not None and said.since is not None:
        arguments |= {"cache_size": said.bound.size, "max_entries": said.bound.entries}
    return arguments


def _summary(report: Report) -> str:
    files = f"Fetched {formatting.count(report.files, 'file', 'files')}, {formatting.size(report.size)}"
    text = f"{files}: {formatting.size(report.source_bytes)} came from the source."
    if report.evictions:
        entries = formatting.count(report.evictions, "entry was", "entries were")
        text += f"\n{entries} evicted to make room. If they were of these files, the cache is too small for them."
    return text
