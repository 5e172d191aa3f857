"""
The regions. They are made on import, so that they can decorate functions, and configured when the settings are known.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from dogpile.cache import CacheRegion, make_region
from dogpile.cache.api import CacheMutex

from dogpile_filesystem import FilesystemInvalidation

logger = logging.getLogger(__name__)


def refresh_in_background(region: CacheRegion, key: str, creator: Callable[[], Any], mutex: CacheMutex) -> None:
    """Create a value in a thread. Whoever asks for it meanwhile gets the old one."""

    def refresh() -> None:
        try:
            region.set(key, creator())
        except Exception:
            logger.exception("cannot refresh %s", key)
        finally:
            mutex.release()  # Else nobody would refresh it again as long as this process lives.

    # A thread for each refresh: an executor made on import, in the master of a preloading server, would not work in a
    # worker.
    threading.Thread(target=refresh, daemon=True).start()


pages = make_region()
news = make_region(async_creation_runner=refresh_in_background)
reports = make_region()
REGIONS = {"pages": pages, "news": news, "reports": reports}


def configure_caches(settings: Mapping[str, Any]) -> None:
    for name, region in REGIONS.items():
        region.configure_from_config(dict(settings), f"cache.{name}.")
        # Without it, `region.invalidate()` would concern the worker that calls it, and no other. It cannot be named in
        # the settings: unlike `configure`, `configure_from_config` does not take one.
        region.region_invalidator = FilesystemInvalidation(settings[f"cache.{name}.arguments.base_dir"])
