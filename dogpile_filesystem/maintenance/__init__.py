"""
A cache seen from outside, entry by entry: checked, listed, and cleaned of many entries at once.

May import: store, lockfile, layout, failures. Others import what they use from here, not from the modules below.
"""

from dogpile_filesystem.maintenance.bulk import (
    Removed,
    Select,
    any_of,
    least_recent,
    remove_entries,
    remove_entry,
    remove_matching,
    selected,
    shrink,
    total,
    unused_since,
    with_prefix,
)
from dogpile_filesystem.maintenance.cache import Cache, is_cache
from dogpile_filesystem.maintenance.check import Report, check, check_cache
from dogpile_filesystem.maintenance.inventory import Description, describe, entries, find
from dogpile_filesystem.maintenance.source_files import SourceFile, SourceFiles, of_source_files
from dogpile_filesystem.maintenance.unsent_files import UnsentEntry, unsent_entries

__all__ = [
    "Cache",
    "Description",
    "Removed",
    "Report",
    "Select",
    "SourceFile",
    "SourceFiles",
    "UnsentEntry",
    "any_of",
    "check",
    "check_cache",
    "describe",
    "entries",
    "find",
    "is_cache",
    "least_recent",
    "of_source_files",
    "remove_entries",
    "remove_entry",
    "remove_matching",
    "selected",
    "shrink",
    "total",
    "unsent_entries",
    "unused_since",
    "with_prefix",
]
