"""
What sources tell of their files: which version a file has, and how far a source can be trusted. It has no dependency: a
filesystem of fsspec is an argument, and fsspec is never imported.

May import: nothing.
"""

from dogpile_filesystem.sources.addresses import url_of, without_secrets
from dogpile_filesystem.sources.filesystems import (
    honours_ranges,
    implies_directories,
    is_local,
    is_rewritten_in_place,
    lists_all,
    local_path,
    protocols_of,
    says_full,
    says_missing,
    serves_threads,
    source_identity,
)
from dogpile_filesystem.sources.identity import Identity, identity_of_info, identity_of_numbers, identity_of_stat

__all__ = [
    "Identity",
    "honours_ranges",
    "identity_of_info",
    "identity_of_numbers",
    "identity_of_stat",
    "implies_directories",
    "is_local",
    "is_rewritten_in_place",
    "lists_all",
    "local_path",
    "protocols_of",
    "says_full",
    "says_missing",
    "serves_threads",
    "source_identity",
    "url_of",
    "without_secrets",
]
