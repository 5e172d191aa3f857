"""
The record of a version, as the cache has it: JSON. Pure: no I/O here.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

# Stands for what JSON cannot say.
_UNSPEAKABLE = object()


def pack(record: Mapping[str, Any]) -> bytes:
    """A record as JSON. What JSON cannot say of a source's info is left out."""
    return json.dumps({**record, "info": _plain(record["info"])}).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, Mapping):
        return {str(key): plain for key, each in value.items() if (plain := _plain(each)) is not _UNSPEAKABLE}
    if isinstance(value, list | tuple):
        return [plain for each in value if (plain := _plain(each)) is not _UNSPEAKABLE]
    return value if value is None or isinstance(value, str | int | float | bool) else _UNSPEAKABLE


def unpack(payload: bytes) -> Mapping[str, Any] | None:
    """A record; None: it is none."""
    try:
        record = json.loads(payload, object_hook=_from_plain)
        is_whole = (
            isinstance(record["identity"], str)
            and isinstance(record["size"], int)
            and isinstance(record["block_size"], int)
            and record["block_size"] > 0
            and isinstance(record["checked"], float)
            and isinstance(record["info"], dict)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if is_whole else None


def _from_plain(value: dict[str, Any]) -> Any:
    if value.keys() == {"datetime"}:
        return datetime.datetime.fromisoformat(value["datetime"])
    return value
