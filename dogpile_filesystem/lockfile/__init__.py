"""
The one lock file of a cache directory: its locks, and its tables (ledger, statistics, stamps of invalidation).

May import: layout, failures, flusher; fasteners.
"""

from dogpile_filesystem.lockfile.file import LockFile, detached_lock_file, open_lock_file
from dogpile_filesystem.lockfile.format import HEAD
from dogpile_filesystem.lockfile.ledger import NEVER, Bound, Ledger, Usage, key_offset
from dogpile_filesystem.lockfile.mutex import KeyMutex
from dogpile_filesystem.lockfile.presence import unique
from dogpile_filesystem.lockfile.statistics import Counts, Recorded, Statistics, Stats, recorded

__all__ = [
    "HEAD",
    "NEVER",
    "Bound",
    "Counts",
    "KeyMutex",
    "Ledger",
    "LockFile",
    "Recorded",
    "Statistics",
    "Stats",
    "Usage",
    "detached_lock_file",
    "key_offset",
    "open_lock_file",
    "recorded",
    "unique",
]
