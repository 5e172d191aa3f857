"""
How the source of an unsent file is made again: its protocol and its options, but for those that are secrets. Pure: no
I/O here.

Limits. A secret under a name that does not sound like one, with a value that does not look like one, is not recognized.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem

from dogpile_filesystem.sources import without_secrets

#: Parts of names of options that are secrets, or may be.
_SECRET_NAME = re.compile(
    r"pass|pwd|secret|token|key|cred|auth|signature|sas|cookie|cert|login|session|header|connection|jwt|bearer|\bpin\b",
    re.IGNORECASE,
)
#: Values that hold a secret, such as a connection string, a private key, or a header.
_SECRET_VALUE = re.compile(
    r"(pass\w*|pwd|secret|token|\w*key|sig|signature|credential)\s*[=:]|-----BEGIN|\b(bearer|basic)\s", re.IGNORECASE
)
#: Bytes of all options as JSON, and of the names of those that are left out: the record stays small.
_LONGEST = 1000


def describe(fs: AbstractFileSystem) -> dict[str, Any]:
    """
    The ``protocol`` of a source, its ``options`` as far as they are no secrets, and the names of those ``left_out``.
    """
    protocols = fs.protocol
    options: dict[str, Any] = {}
    left_out = []
    for name, value in _given(fs).items():
        if _is_secret(name, value) or not _is_json(value) or _length({**options, name: value}) > _LONGEST:
            left_out.append(name)
        else:
            options[name] = value
    while _length(left_out) > _LONGEST:
        left_out.pop()
    return {
        "protocol": protocols if isinstance(protocols, str) else protocols[0],
        "options": options,
        "left_out": left_out,
    }


def _given(fs: AbstractFileSystem) -> dict[str, Any]:
    """All options by their names, also those that were passed without."""
    options = dict(fs.storage_options)
    try:
        bound = inspect.signature(type(fs).__init__).bind_partial(fs, *fs.storage_args).arguments
    except (TypeError, ValueError):  # Nobody knows the names.
        return {**{f"argument {number}": each for number, each in enumerate(fs.storage_args)}, **options}
    named = list(bound.items())[1:]
    return {**dict(named), **options}


def _is_secret(name: str, value: object) -> bool:
    if _SECRET_NAME.search(name):
        return True
    if isinstance(value, Mapping):
        return any(_is_secret(str(key), each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return any(_is_secret("", each) for each in value)
    return isinstance(value, str) and (without_secrets(value) != value or _SECRET_VALUE.search(value) is not None)


def _is_json(value: object) -> bool:
    """Whether a value is the same once it was JSON. A tuple becomes a list, which sources take as well."""
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, Mapping):
        return type(value) is dict and all(isinstance(name, str) and _is_json(each) for name, each in value.items())
    return value is None or type(value) in (str, bool, int, float)


def _length(value: object) -> int:
    return len(json.dumps(value)) if _is_json(value) else 0
