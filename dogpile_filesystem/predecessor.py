"""
The files that dogpile_filesystem 0.2.0 left in a directory. They are reported, but never counted, read or unpickled.

Version 0.2.0 kept its values as ``values/<key>.payload`` and ``values/<key>.metadata``, with two lock files beside
``values``. This version has only directories in ``values``.
"""

from __future__ import annotations

import logging
import os
import shlex

logger = logging.getLogger(__name__)

_LOCK_FILES = ("rw.lock", "dogpile.lock")

# The directories that have been reported.
_reported: set[str] = set()


def report_predecessor(base_dir: str) -> None:
    """Log, once per directory, that it contains files of 0.2.0, and how to remove them."""
    found = [path for name in _LOCK_FILES if os.path.lexists(path := os.path.join(base_dir, name))]
    if found and base_dir not in _reported:
        _reported.add(base_dir)
        values = shlex.quote(os.path.join(base_dir, "values"))
        locks = " ".join(map(shlex.quote, found))
        what = "%s contains files of dogpile_filesystem 0.2.0, which are no longer used. To remove them: %s"
        logger.warning(what, base_dir, f"find {values} -maxdepth 1 -type f -delete; rm {locks}")
