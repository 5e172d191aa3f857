"""
The one lock file of a cache directory: its locks, and its tables (ledger, statistics, stamps of invalidation).

May import: layout, failures, flusher; fasteners.
"""

from dogpile_filesystem.lockfile.counts import Counts, SourceCounter, SourceCounts, Stats, UnsentCounts
from dogpile_filesystem.lockfile.current import TRUST, Current, Fresh
from dogpile_filesystem.lockfile.descriptor import Descriptor, collect_garbage, identity_of
from dogpile_filesystem.lockfile.file import LockFile, detached_lock_file, open_lock_file
from dogpile_filesystem.lockfile.format import HEADS, NEVER, key_offset
from dogpile_filesystem.lockfile.generations import GENERATION_SIZE, generation_offset
from dogpile_filesystem.lockfile.ledger import Bound, Ledger, Usage
from dogpile_filesystem.lockfile.machines import Sharing
from dogpile_filesystem.lockfile.mutex import KeyMutex
from dogpile_filesystem.lockfile.ownership import has_entries, is_tagged
from dogpile_filesystem.lockfile.presence import presence
from dogpile_filesystem.lockfile.statistics import Statistics
from dogpile_filesystem.lockfile.totals import Recorded, recorded
from dogpile_filesystem.lockfile.uses import NO_USES, ShardUses

__all__ = [
    "GENERATION_SIZE",
    "HEADS",
    "NEVER",
    "NO_USES",
    "TRUST",
    "Bound",
    "Counts",
    "Current",
    "Descriptor",
    "Fresh",
    "KeyMutex",
    "Ledger",
    "LockFile",
    "Recorded",
    "ShardUses",
    "Sharing",
    "SourceCounter",
    "SourceCounts",
    "Statistics",
    "Stats",
    "UnsentCounts",
    "Usage",
    "collect_garbage",
    "detached_lock_file",
    "generation_offset",
    "has_entries",
    "identity_of",
    "is_tagged",
    "key_offset",
    "open_lock_file",
    "presence",
    "recorded",
]
