"""
The arguments of the cached filesystem: from whatever a program or a URL's options say to checked values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import platformdirs

from dogpile_filesystem.arguments import Arguments, parse_boolean, parse_seconds, parse_size
from dogpile_filesystem.remote.unsent import ON_CONFLICT, OVERWRITE

#: The arguments that mean what they mean to the backends of dogpile.cache.
SHARED = (
    "base_dir",
    "cache_size",
    "max_entries",
    "min_free_space",
    "signing_key",
    "dir_mode",
    "file_mode",
    "allow_shared",
    "lock_timeout",
)
#: The arguments of this filesystem alone.
OWN = (
    *("block_size", "check", "listings_expiry_time", "stale_if_error", "fill", "namespace"),
    *("high_watermark", "low_watermark"),
    *("write", "write_after", "max_uploads", "on_conflict"),
)

_CACHE_SIZE = 10 << 30
_LOCK_TIMEOUT = 60.0
_BLOCK_SIZE = 1 << 20
_WRITE_AFTER, _MAX_UPLOADS = 5.0, 4
_SMALLEST_BLOCK, _LARGEST_BLOCK = 64 << 10, 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """
    Checked arguments.

    :ivar shared: those that the backends have too.
    :ivar block_size: bytes of a block, a power of two.
    :ivar check: seconds for which a version that was looked up is taken for the current one; 0: it is looked up at each
     opening; infinity: it is looked up once.
    :ivar listings_expiry_time: seconds for which listings and what is known of single names are kept; 0: they are not.
    :ivar stale_if_error: whether the last known version is served while the source fails.
    :ivar fill: whether files that were opened are fetched whole.
    :ivar namespace: what readers have to have in common to share blocks; None: the source's class and options.
    :ivar high_watermark: the part of ``cache_size`` beyond which entries are evicted.
    :ivar low_watermark: the part of it down to which they are evicted then.
    :ivar write_back: whether what is written is sent to the source later.
    :ivar write_after: seconds after which it is sent.
    :ivar max_uploads: how many files this process sends at once; 0: it sends none by itself.
    :ivar on_conflict: what to do when the source's file was changed by somebody else.
    """

    shared: Arguments
    block_size: int
    check: float
    listings_expiry_time: float
    stale_if_error: bool
    fill: bool
    namespace: str | None
    high_watermark: float
    low_watermark: float
    write_back: bool
    write_after: float
    max_uploads: int
    on_conflict: str

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> Options:
        """
        Check what the user passed. An argument that is None or left empty has its default, but ``cache_size=None`` and
        ``lock_timeout=None`` mean no bound and no limit, and ``check=None`` is refused.

        :raises TypeError: a value is of a wrong type.
        :raises ValueError: a value is out of range.
        """
        given = {name: value for name, value in arguments.items() if not _is_default(name, value)}
        shared: dict[str, Any] = {"cache_size": _CACHE_SIZE, "lock_timeout": _LOCK_TIMEOUT}
        shared |= {name: given[name] for name in SHARED if name in given}
        if shared.get("base_dir") is None:
            shared["base_dir"] = platformdirs.user_cache_dir("dogpile_filesystem")
        high = _fraction("high_watermark", given.get("high_watermark", 1.0))
        low = _fraction("low_watermark", given.get("low_watermark", high))
        if low > high:
            msg = f"low_watermark={low} is above high_watermark={high}: pass a smaller fraction of cache_size"
            raise ValueError(msg)
        namespace = given.get("namespace")
        if namespace is not None and not isinstance(namespace, str):
            msg = f"namespace={namespace!r} is a {type(namespace).__name__}: pass a string"
            raise TypeError(msg)
        if namespace is not None and "\0" in namespace:
            msg = f"namespace={namespace!r} has a NUL character: pass a string without one"
            raise ValueError(msg)
        return cls(
            shared=Arguments.parse(shared),
            block_size=_block_size(given.get("block_size", _BLOCK_SIZE)),
            check=_check(given.get("check", "always")),
            listings_expiry_time=_listings(given.get("listings_expiry_time", 0)),
            stale_if_error=parse_boolean("stale_if_error", given.get("stale_if_error", False)),
            fill=parse_boolean("fill", given.get("fill", False)),
            namespace=namespace,
            high_watermark=high,
            low_watermark=low,
            write_back=_choice("write", given.get("write", "through"), ("through", "back")) == "back",
            write_after=_number("write_after", given.get("write_after", _WRITE_AFTER)),
            max_uploads=int(_number("max_uploads", given.get("max_uploads", _MAX_UPLOADS))),
            on_conflict=_choice("on_conflict", given.get("on_conflict", OVERWRITE), ON_CONFLICT),
        )


def _is_default(name: str, value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None and name in OWN and name != "check"


def _block_size(value: object) -> int:
    size = parse_size("block_size", value)
    if size is None or not _SMALLEST_BLOCK <= size <= _LARGEST_BLOCK or size & (size - 1):
        msg = f"block_size={value!r} is not accepted: pass a power of two from '64KiB' to '64MiB'"
        raise ValueError(msg)
    return size


def _check(value: object) -> float:
    if isinstance(value, str) and value.strip().lower() in ("always", "never"):
        return 0.0 if value.strip().lower() == "always" else math.inf
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        msg = "check=None is not accepted: pass 'always', 'never', or a number of seconds more than 0"
        raise ValueError(msg)
    try:
        seconds = parse_seconds("check", value)
    except ValueError as error:
        msg = f"check={value!r} is not accepted: pass 'always', 'never', or a number of seconds more than 0"
        raise ValueError(msg) from error
    return math.inf if seconds is None else seconds


def _listings(value: object) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, str | int | float) and float(value) == 0:
            return 0.0
        seconds = parse_seconds("listings_expiry_time", value)
    except ValueError as error:
        msg = f"listings_expiry_time={value!r} is not accepted: pass a number of seconds, or 0 to keep no listings"
        raise ValueError(msg) from error
    return seconds or 0.0


def _fraction(name: str, value: object) -> float:
    try:
        fraction = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except ValueError:
        fraction = None
    if fraction is None or not 0 < fraction <= 1:
        msg = f"{name}={value!r} is not accepted: pass a fraction of cache_size, more than 0 and at most 1"
        raise ValueError(msg)
    return fraction


def _choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    if value not in choices:
        msg = f"{name}={value!r} is not accepted: pass {' or '.join(map(repr, choices))}"
        raise ValueError(msg)
    return str(value)


def _number(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        msg = f"{name}={value!r} is not accepted: pass a number, 0 or more"
        raise ValueError(msg)
    return number
