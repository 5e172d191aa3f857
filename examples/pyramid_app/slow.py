"""
The slow functions, whose results are cached. The sleeps stand for the slow parts of a real application.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, BinaryIO

from pyramid_app.caches import news, pages, reports


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def query_article(section: str, number: int) -> dict[str, str]:
    time.sleep(0.5)
    return {"title": f"Article {number} of <{section}>", "text": "Fish & chips.", "made": now()}


def query_headlines() -> dict[str, Any]:
    time.sleep(0.5)
    return {"lines": [f"Headline {number}" for number in range(1, 6)], "made": now()}


def query_sales(year: int) -> Iterator[str]:
    time.sleep(0.5)
    as_of = now()
    return (f"{year},{order:06},{order * 7919 % 100_000:05},{as_of}\n" for order in range(100_000))


@pages.cache_on_arguments()
def article(section: str, number: int) -> dict[str, str]:
    return query_article(section, number)


@news.cache_on_arguments()
def headlines() -> dict[str, Any]:
    return query_headlines()


def report(year: int, scratch_dir: str) -> BinaryIO:
    """
    The sales of a year, as CSV.

    :param scratch_dir: the directory in which the file is written: on the filesystem of the cache, so that the file can
     be moved in by renaming it, but outside the region's directory.
    """

    def create() -> BinaryIO:
        os.makedirs(scratch_dir, mode=0o700, exist_ok=True)
        file = tempfile.NamedTemporaryFile(dir=scratch_dir, delete=False)  # noqa: SIM115 - the cache takes it over
        try:
            file.writelines(row.encode() for row in query_sales(year))
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise
        file.seek(0)
        return file

    # A decorator would make the key from both arguments, but only the year belongs in it.
    file: BinaryIO = reports.get_or_create(f"report {year}", create)
    return file
