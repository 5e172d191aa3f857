"""
Files of slow storage, as an fsspec filesystem: what is read from a source is kept in blocks in a cache directory.

May import: arguments, store, sources, lockfile, layout, failures; fsspec and platformdirs, of the extra ``fsspec``.
"""

from dogpile_filesystem.remote.file import CachedFile
from dogpile_filesystem.remote.filesystem import CachedFileSystem
from dogpile_filesystem.remote.source import SourceChanged

__all__ = ["CachedFile", "CachedFileSystem", "SourceChanged"]
