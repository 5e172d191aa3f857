"""
The arguments of the backends: from whatever a program or an INI file says to checked values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.store import Access, signing_key

_KNOWN = (
    "base_dir",
    "cache_size",
    "max_entries",
    "min_free_space",
    "expiration_time",
    "distributed_lock",
    "lock_timeout",
    "memory_size",
    "file_movable",
    "large_values",
    "dir_mode",
    "file_mode",
    "signing_key",
    "allow_shared",
)
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_BYTES = "a number of bytes more than 0, a string such as '512MiB' or '10GB', or None for no bound"
_MEMORY = "a number of bytes, a string such as '64MiB', or 0 or None for none"
_COUNT = "a whole number more than 0, or None for no bound"
_SECONDS = "seconds more than 0, a timedelta, or None for never"
_BOOLEAN = "True or False"
_MODE = "permission bits that leave everything to the owner, such as 0o2770, or '2770' as a string"
_KEYS = "bytes or a string that is not empty, or a list of such"
_PATH = "the path of a directory, as a string or path-like"


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """
    Checked arguments.

    :ivar base_dir: absolute path.
    :ivar cache_size: bytes; None: unbounded.
    :ivar max_entries: None: unbounded.
    :ivar expiration_time: seconds; None: never.
    :ivar distributed_lock: whether creators in other processes are excluded.
    :ivar lock_timeout: seconds; None: for ever.
    :ivar has_lock_timeout: whether the user gave one.
    :ivar memory_size: bytes; 0: none.
    :ivar file_movable: whether files are moved in rather than copied.
    :ivar large_values: whether the backend pickles values itself, without a copy of dogpile's.
    :ivar min_free_space: bytes; None: any.
    :ivar access: of ``dir_mode``, ``file_mode``, ``allow_shared``, and whether there is a ``signing_key``.
    :ivar signing_keys: the keys made of ``signing_key``.
    """

    base_dir: str
    cache_size: int | None
    max_entries: int | None
    expiration_time: float | None
    distributed_lock: bool
    lock_timeout: float | None
    has_lock_timeout: bool
    memory_size: int
    file_movable: bool
    large_values: bool
    min_free_space: int | None
    access: Access
    signing_keys: tuple[bytes, ...] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> Arguments:
        """
        Check what the user passed. Strings are read as in an INI file: ``none`` is None, and an argument that is left
        empty has its default. Only ``base_dir`` must not be empty.

        :raises TypeError: ``base_dir`` is missing, or a value is of a wrong type.
        :raises ValueError: a value is out of range.
        """
        if "base_dir" not in arguments:
            msg = f"the argument 'base_dir' is missing: pass {_PATH}"
            raise TypeError(msg)
        _warn_of_unknown(arguments)
        arguments = {name: value for name, value in arguments.items() if name == "base_dir" or not _is_empty(value)}
        signing_keys = _keys(arguments.get("signing_key"))
        return cls(
            base_dir=_path(arguments["base_dir"]),
            cache_size=_cache_size(arguments.get("cache_size", 1 << 30)),
            max_entries=_count("max_entries", arguments.get("max_entries")),
            expiration_time=parse_seconds("expiration_time", arguments.get("expiration_time")),
            distributed_lock=parse_boolean("distributed_lock", arguments.get("distributed_lock", True)),
            lock_timeout=parse_seconds("lock_timeout", arguments.get("lock_timeout")),
            has_lock_timeout="lock_timeout" in arguments,
            memory_size=_memory_size(arguments.get("memory_size", 0)),
            file_movable=parse_boolean("file_movable", arguments.get("file_movable", False)),
            large_values=parse_boolean("large_values", arguments.get("large_values", False)),
            min_free_space=parse_size("min_free_space", arguments.get("min_free_space")),
            access=_access(arguments, is_signed=bool(signing_keys)),
            signing_keys=signing_keys,
        )


def _warn_of_unknown(arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        if name not in _KNOWN:
            nearest = difflib.get_close_matches(str(name), _KNOWN, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(_KNOWN)}"
            # To the line that configures the region: past this module, the backend and dogpile.
            warnings.warn(f"unknown argument {name!r} is ignored: {hint}", UserWarning, stacklevel=5)


def _type_error(name: str, value: object, accepted: str) -> TypeError:
    return TypeError(f"{name}={value!r} is a {type(value).__name__}: pass {accepted}")


def _value_error(name: str, value: object, accepted: str) -> ValueError:
    return ValueError(f"{name}={value!r} is not accepted: pass {accepted}")


def _is_empty(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() == "none")


def _path(value: object) -> str:
    if not isinstance(value, str | bytes | os.PathLike):
        raise _type_error("base_dir", value, _PATH)
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise _value_error("base_dir", value, _PATH)
    path = os.path.abspath(os.path.expanduser(path))
    with contextlib.suppress(OSError):  # Not there, or not to be looked at for now.
        if not stat.S_ISDIR(os.stat(path).st_mode):
            msg = f"base_dir={value!r} is a file: pass {_PATH}"
            raise ValueError(msg)
    return path


def parse_size(name: str, value: object) -> int | None:
    """
    A number of bytes, or a string such as ``512MiB`` or ``10GB``.

    :param name: the argument's name, for the error message.
    :return: bytes; None: the value is None or ``none``.
    :raises TypeError: it is neither.
    :raises ValueError: it is less than 1 or unintelligible.
    """
    if _is_none(value):
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value, re.IGNORECASE | re.ASCII)
        if match is None or match[2].lower() not in _UNITS:
            raise _value_error(name, value, _BYTES)
        size: float = float(match[1]) * _UNITS[match[2].lower()]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        size = value
    else:
        raise _type_error(name, value, _BYTES)
    if not 1 <= size < math.inf:
        raise _value_error(name, value, _BYTES)
    return int(size)


def _cache_size(value: object) -> int | None:
    size = parse_size("cache_size", value)
    if size is not None and size < BLOCK:
        msg = (
            f"cache_size={value!r} can hold nothing, since every entry takes at least one block of {BLOCK} bytes: "
            "pass a number of bytes, a string with a unit such as '512MiB' or '10GB', or None for no bound"
        )
        raise ValueError(msg)
    return size


def _memory_size(value: object) -> int:
    if _is_none(value) or (isinstance(value, int | float) and value == 0 and not isinstance(value, bool)):
        return 0
    if isinstance(value, str) and value.strip() == "0":
        return 0
    try:
        return parse_size("memory_size", value) or 0
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace(_BYTES, _MEMORY)) from None


def _count(name: str, value: object) -> int | None:
    if _is_none(value):
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        count = int(value)
    elif isinstance(value, str):
        raise _value_error(name, value, _COUNT)
    elif isinstance(value, int) and not isinstance(value, bool):
        count = value
    else:
        raise _type_error(name, value, _COUNT)
    if count < 1:
        raise _value_error(name, value, _COUNT)
    return count


def parse_seconds(name: str, value: object) -> float | None:
    """
    A number of seconds: a number, a timedelta, or a string.

    :param name: the argument's name, for the error message.
    :return: seconds; None: the value is None or ``none``.
    :raises TypeError: it is none of these.
    :raises ValueError: it is not more than 0, or unintelligible.
    """
    if _is_none(value):
        return None
    if isinstance(value, str):
        try:
            seconds = float(value)
        except ValueError:
            raise _value_error(name, value, _SECONDS) from None
    elif isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    else:
        raise _type_error(name, value, _SECONDS)
    if not 0 < seconds <= threading.TIMEOUT_MAX:  # The most that a lock waits: 292 years on Linux.
        raise _value_error(name, value, _SECONDS)
    return float(seconds)


def parse_boolean(name: str, value: object) -> bool:
    """
    Whether something is the case: a boolean, 0 or 1, or a string such as ``yes`` or ``off``.

    :param name: the argument's name, for the error message.
    :raises TypeError: it is none of these.
    :raises ValueError: it is unintelligible.
    """
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if not isinstance(value, str | int):
        raise _type_error(name, value, _BOOLEAN)
    if text not in _BOOLEANS:
        raise _value_error(name, value, _BOOLEAN)
    return _BOOLEANS[text]


def _access(arguments: Mapping[str, Any], *, is_signed: bool) -> Access:
    trusts_everybody = is_signed or parse_boolean("allow_shared", arguments.get("allow_shared", False))
    dir_mode = _mode("dir_mode", arguments.get("dir_mode"), 0o700, 0o3777)
    if dir_mode & stat.S_IWOTH and not trusts_everybody:
        msg = f"dir_mode={dir_mode:#o} lets everybody plant entries: leave that out, or pass signing_key"
        raise ValueError(msg)
    # A user who may enter a directory may read its files; one who may change it may write them, and so set their times.
    file_mode = _mode("file_mode", arguments.get("file_mode"), dir_mode & 0o666, 0o666)
    return Access(dir_mode, file_mode, trusts_everybody)


def _mode(name: str, value: object, default: int, most: int) -> int:
    if _is_none(value):
        return default
    if isinstance(value, str):
        try:
            mode = int(value, 8)
        except ValueError:
            raise _value_error(name, value, _MODE) from None
    elif isinstance(value, int) and not isinstance(value, bool):
        mode = value
    else:
        raise _type_error(name, value, _MODE)
    owner = most & stat.S_IRWXU
    if mode & owner != owner or mode & ~most:
        raise _value_error(name, value if isinstance(value, str) else f"{value:#o}", _MODE)
    return mode


def _keys(value: object) -> tuple[bytes, ...]:
    """The keys for signing. An error message never shows a secret."""
    if _is_none(value):
        return ()
    secrets: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    keys = []
    for secret in secrets:
        if not isinstance(secret, str | bytes):
            msg = f"signing_key: {type(secret).__name__} is no key: pass {_KEYS}"
            raise TypeError(msg)
        if not secret:
            msg = f"signing_key: a key is empty: pass {_KEYS}"
            raise ValueError(msg)
        keys.append(signing_key(secret.encode() if isinstance(secret, str) else secret))
    if not keys:
        msg = f"signing_key: an empty list: pass {_KEYS}, or None to sign nothing"
        raise ValueError(msg)
    return tuple(keys)
