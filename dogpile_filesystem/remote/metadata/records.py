"""
The record of a version, as the cache has it: JSON. Pure: no I/O here.

It has no secrets: a URL in it is without its signature, and the path of the file is not in it, since that may be a URL.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from dogpile_filesystem.sources import without_secrets

#: Stands for what JSON cannot say.
UNSPEAKABLE = object()


def pack(record: Mapping[str, Any], path: str) -> bytes:
    """
    A record as JSON. What JSON cannot say of a source's info is left out.

    :param path: of the file.
    """
    info = {name: value for name, value in record["info"].items() if name != "name" or value != path}
    return json.dumps({**record, "info": plain(info)}).encode()


def plain(value: Any) -> Any:
    """A value as JSON can say it, without secrets; :data:`UNSPEAKABLE`: it cannot."""
    if isinstance(value, datetime.datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, Mapping):
        return {str(key): said for key, each in value.items() if (said := plain(each)) is not UNSPEAKABLE}
    if isinstance(value, list | tuple):
        return [said for each in value if (said := plain(each)) is not UNSPEAKABLE]
    if isinstance(value, str):
        return without_secrets(value) if "://" in value else value
    return value if value is None or isinstance(value, int | float | bool) else UNSPEAKABLE


def unpack(payload: bytes, path: str) -> Mapping[str, Any] | None:
    """
    A record; None: it is none.

    :param path: of the file, as the reader has it.
    """
    try:
        record = json.loads(payload, object_hook=from_plain)
        is_whole = (
            _tells_version(record)
            and ("before" not in record or _tells_version(record["before"]))
            and isinstance(record["checked"], float)
            and isinstance(record["info"], dict)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return {**record, "info": {"name": path, **record["info"]}} if is_whole else None


def _tells_version(record: Mapping[str, Any]) -> bool:
    """Whether a record, or what it says of the version before, has what the keys of blocks are made of."""
    return (
        isinstance(record["identity"], str)
        and isinstance(record["size"], int)
        and isinstance(record["block_size"], int)
        and record["block_size"] > 0
    )


def from_plain(value: dict[str, Any]) -> Any:
    if value.keys() == {"datetime"}:
        return datetime.datetime.fromisoformat(value["datetime"])
    return value
