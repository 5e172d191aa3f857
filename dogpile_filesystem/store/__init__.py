"""
One bounded directory of entries, shared by threads and processes. It knows neither dogpile nor the tools.

May import: lockfile, layout, failures, flusher.
"""

from dogpile_filesystem.store.access import Access, Refused
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.draft import Draft
from dogpile_filesystem.store.durable import sync_directory, sync_file
from dogpile_filesystem.store.entry import Content, signing_key
from dogpile_filesystem.store.eviction import NoRoom
from dogpile_filesystem.store.files import READ_FLAGS
from dogpile_filesystem.store.filesystem import filesystem_at, filesystem_tried_at
from dogpile_filesystem.store.header import Damaged, Head
from dogpile_filesystem.store.listing import Listing, Seen, see
from dogpile_filesystem.store.pinned import Pinned
from dogpile_filesystem.store.reading import Reader, State, StoredFile, content_of, read_head
from dogpile_filesystem.store.shard import Shard, Shards
from dogpile_filesystem.store.store import Store
from dogpile_filesystem.store.unsent import Unreadable, UnsentFile, UnsentFiles
from dogpile_filesystem.store.unsent_counts import count_unsent
from dogpile_filesystem.store.visit import Visitor

__all__ = [
    "READ_FLAGS",
    "Access",
    "Content",
    "Damaged",
    "Directory",
    "Draft",
    "Head",
    "Listing",
    "NoRoom",
    "Pinned",
    "Reader",
    "Refused",
    "Seen",
    "Shard",
    "Shards",
    "State",
    "Store",
    "StoredFile",
    "Unreadable",
    "UnsentFile",
    "UnsentFiles",
    "Visitor",
    "content_of",
    "count_unsent",
    "filesystem_at",
    "filesystem_tried_at",
    "read_head",
    "see",
    "signing_key",
    "sync_directory",
    "sync_file",
]
