"""
The regions, and the files from slow storage. The regions are made on import, because they decorate functions, and
configured when the settings are known.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from dogpile.cache import CacheRegion, make_region
from dogpile.cache.api import CacheMutex

from dogpile_filesystem import FilesystemInvalidation
from dogpile_filesystem.remote import CachedFileSystem

logger = logging.getLogger(__name__)


def refresh_in_background(region: CacheRegion, key: str, creator: Callable[[], Any], mutex: CacheMutex) -> None:
    """Create a value in a thread. Until it is there, readers get the old one."""

    def refresh() -> None:
        try:
            region.set(key, creator())
        except Exception:
            logger.exception("cannot refresh %s", key)
        finally:
            mutex.release()  # Otherwise the value could not be refreshed again until this process ends.

    # A thread for each refresh: an executor that the master of a preloading server made on import would not work in
    # its workers.
    threading.Thread(target=refresh, daemon=True).start()


pages = make_region()
news = make_region(async_creation_runner=refresh_in_background)
reports = make_region()
REGIONS = {"pages": pages, "news": news, "reports": reports}


def configure_caches(settings: Mapping[str, Any]) -> None:
    for name, region in REGIONS.items():
        region.configure_from_config(dict(settings), f"cache.{name}.")
        # Without it, `region.invalidate()` would affect only the worker that calls it. The settings cannot name it:
        # unlike `configure`, `configure_from_config` does not accept an invalidator.
        region.region_invalidator = FilesystemInvalidation(settings[f"cache.{name}.arguments.base_dir"])


def cached_files(settings: Mapping[str, Any]) -> tuple[CachedFileSystem, str]:
    """The files from slow storage, and the directory that they are in."""
    store, root = fsspec.core.url_to_fs(settings["files.url"], **json.loads(settings["files.options"]))
    prefix = "files.arguments."
    arguments = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    return CachedFileSystem(fs=store, **arguments), root
