"""
Filesystem backends for dogpile.cache.

Name ``paylogic.filesystem`` or ``paylogic.raw_filesystem`` in ``region.configure``; nothing has to be imported.
"""

from dogpile_filesystem.backend import GenericFSBackend, RawFSBackend

__all__ = ["GenericFSBackend", "RawFSBackend"]
