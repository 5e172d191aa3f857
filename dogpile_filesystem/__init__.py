"""
Filesystem backends for dogpile.cache.

Name ``paylogic.filesystem`` or ``paylogic.raw_filesystem`` in ``region.configure``; nothing has to be imported.
"""

from dogpile_filesystem.backend import GenericFSBackend, RawFSBackend
from dogpile_filesystem.invalidation import FilesystemInvalidation

__all__ = ["FilesystemInvalidation", "GenericFSBackend", "RawFSBackend"]
