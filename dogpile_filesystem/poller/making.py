"""
The poller for a URL, by its scheme.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from dogpile_filesystem.poller.inotify import INotifyPoller
from dogpile_filesystem.poller.local import FilePoller
from dogpile_filesystem.poller.poller import Poller
from dogpile_filesystem.poller.store import StorePoller
from dogpile_filesystem.poller.swift import SwiftPoller
from dogpile_filesystem.poller.watches import load

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")


class Maker(Protocol):
    """What makes a poller: a subclass of :class:`.Poller`, or a function."""

    def __call__(self, url: Any, /, **options: Any) -> Poller: ...


_M = TypeVar("_M", bound=Maker)
_makers: dict[str, Maker] = {}


def register_poller(*schemes: str) -> Callable[[_M], _M]:
    """
    A decorator of a subclass of :class:`.Poller`, or of a function that makes one: :func:`make_poller` calls it for
    URLs of these schemes, with the URL and the options.

    :param schemes: such as ``"s3"``, for ``s3://bucket`` and ``s3::...``. A scheme that is known already gets this one.
    :raises ValueError: it is no scheme.
    """
    for scheme in schemes:
        if not _SCHEME.fullmatch(f"{scheme}://"):
            raise ValueError(f"{scheme!r} is no scheme: pass one such as 's3'")

    def register(maker: _M) -> _M:
        _makers.update((scheme.lower(), maker) for scheme in schemes)
        return maker

    return register


def make_poller(url: str | bytes | os.PathLike[Any], **options: Any) -> Poller:
    """
    The poller for a URL.

    A path, or a ``file://`` URL, gets an :class:`.INotifyPoller` where inotify can be had, else a :class:`.FilePoller`.
    One of a scheme that nobody has registered, and that fsspec knows, gets a :class:`.StorePoller`.

    :param options: those of the poller: see :class:`.Options`.
    :raises ValueError: the scheme is not known, or a value is out of range.
    :raises TypeError: an option is unknown, or of a wrong type.
    :raises ImportError: a package is missing; the message says what to install.
    :raises OSError: the state cannot be opened.
    """
    match = _SCHEME.match(url) if isinstance(url, str) else None
    if match is None:
        return _local(url, **options)
    maker = _makers.get(match[1].lower())
    if maker is not None:
        return maker(url, **options)
    _see_that_fsspec_knows(match[1])
    return StorePoller(str(url), **options)


def _see_that_fsspec_knows(scheme: str) -> None:
    known = f"a path, or a URL of {', '.join(sorted(_makers))}"
    try:
        from fsspec import get_filesystem_class  # noqa: PLC0415 - only stores need it
    except ImportError as error:
        what = f"there is no poller for {scheme}:// without fsspec: pip install 'dogpile_filesystem[fsspec]'"
        raise ImportError(f"{what}, or pass {known}") from error
    try:
        get_filesystem_class(scheme)
    except ValueError as error:
        message = f"there is no poller for {scheme}://: pass {known}, or one that fsspec knows; see register_poller"
        raise ValueError(message) from error


@register_poller("file", "local")
def _local(url: Any, /, **options: Any) -> Poller:
    try:
        load()
    except ImportError:
        return FilePoller(url, **options)
    return INotifyPoller(url, **options)


@register_poller("swift", "swifts", "swt", "swts")
def _swift(url: Any, /, **options: Any) -> Poller:
    return SwiftPoller(url, **options)
