"""
Files of slow storage, as an fsspec filesystem: what is read from a source is kept in blocks in a cache directory. Needs
fsspec, platformdirs and tenacity: ``pip install dogpile_filesystem[fsspec]``.

May import: arguments, store, sources, lockfile, layout, failures, flusher.
"""

try:
    import fsspec as _fsspec  # noqa: F401 - it is there
    import platformdirs as _platformdirs  # noqa: F401 - likewise
    import tenacity as _tenacity  # noqa: F401 - likewise
except ImportError as error:
    msg = "dogpile_filesystem.remote needs more packages: pip install 'dogpile_filesystem[fsspec]'"
    raise ImportError(msg) from error

from dogpile_filesystem.remote.back.writing_back import Unsent
from dogpile_filesystem.remote.filesystem import CachedFileSystem
from dogpile_filesystem.remote.reading.file import CachedFile
from dogpile_filesystem.remote.source import SourceChanged
from dogpile_filesystem.remote.unsent import Conflict, UploadError

__all__ = ["CachedFile", "CachedFileSystem", "Conflict", "SourceChanged", "Unsent", "UploadError"]
