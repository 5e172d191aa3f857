"""
The files of sources that a cache has blocks of: many entries, described together.

As the inventory does, this takes no lock, changes nothing, and checks nothing of what it reads.

Limits. A file of which several versions have blocks, or whose readers do not share them, is described once for each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from typing import Any, NamedTuple

from dogpile_filesystem.layout import PART, VERSION, PartKey, kind_of, unpack_version_key
from dogpile_filesystem.maintenance.bulk import Select, with_head
from dogpile_filesystem.maintenance.inventory import Description, describe
from dogpile_filesystem.store import Damaged, Head, Seen, Shards

#: Bytes that are read of a record. Those of sources are a few hundred.
_LARGEST_RECORD = 1 << 20


@dataclasses.dataclass(slots=True)
class SourceFile:
    """
    A version of a source's file, as far as it is in the cache.

    :ivar key: of its first block, whether that is there or not.
    :ivar blocks: the numbers of the blocks that are there, and the bytes in each.
    :ivar size: bytes charged for them, and for the record of the version.
    :ivar used_ns: the last use of any of them.
    :ivar created_ns: when the oldest of them was stored.
    :ivar checked: when the source was asked for the version, by the record of it; seconds since the epoch. None: there
     is no record, or it is of another version.
    :ivar is_signed: whether all of them are signed.
    """

    key: PartKey
    blocks: dict[int, int] = dataclasses.field(default_factory=dict)
    size: int = 0
    used_ns: int = 0
    created_ns: int = 0
    checked: float | None = None
    is_signed: bool = True

    @property
    def url(self) -> str:
        """Where the file lies, without any secret."""
        return self.key.url

    @property
    def length(self) -> int | None:
        """Bytes of the whole file; None: nothing that is there tells it."""
        if self.key.size >= 0:
            return self.key.size
        # Of a file that was read through in order: only its last block is shorter than the others.
        ends = [self.key.block_size * number + held for number, held in self.blocks.items()]
        is_short = any(held < self.key.block_size for held in self.blocks.values())
        return max(ends) if is_short else None

    @property
    def cached(self) -> int:
        """Bytes of the file that are there."""
        return sum(self.blocks.values())

    @property
    def portion(self) -> float | None:
        """How much of the file is there, from 0.0 to 1.0; None: its length is not known."""
        length = self.length
        if length is None:
            return None
        return self.cached / length if length else 1.0

    def add(self, described: Description) -> None:
        """Count one more of its entries."""
        head, seen = described.head, described.seen
        self.size += seen.size
        self.used_ns = max(self.used_ns, seen.used_ns)
        self.created_ns = min(self.created_ns or head.created_ns, head.created_ns)
        self.is_signed = self.is_signed and head.is_signed


class SourceFiles:
    """
    The files that entries belong to, gathered from one entry after the other.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._files: dict[PartKey, SourceFile] = {}

    def take(self, seen: Seen) -> bool:
        """
        Add an entry to the file that it belongs to.

        :return: whether it belongs to one; not, if it is of another kind or damaged.
        """
        kind = kind_of(seen.name)
        if kind is None or kind.number not in (PART, VERSION):
            return False
        try:
            described = describe(self._shards, seen, _LARGEST_RECORD if kind.number == VERSION else 0)
        except FileNotFoundError:
            return True  # It was removed after it was listed.
        except (Damaged, OSError):
            return False
        return self._add_record(described) if kind.number == VERSION else self._add_block(described)

    def files(self) -> list[SourceFile]:
        """The files of all entries so far."""
        return list(self._files.values())

    def _add_block(self, described: Description) -> bool:
        key = PartKey.unpack(described.head.key)
        if key is None:
            return False
        file = self._file(key)
        file.blocks[key.number] = described.length
        file.add(described)
        return True

    def _add_record(self, described: Description) -> bool:
        where = unpack_version_key(described.head.key)
        record = _Record.parse(described.start)
        if where is None or record is None:
            return False
        file = self._file(PartKey(*where, record.identity, record.size, record.block_size, 0))
        file.checked = record.checked
        file.add(described)
        return True

    def _file(self, key: PartKey) -> SourceFile:
        key = key._replace(number=0)
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = SourceFile(key)
        return file


def of_source_files(urls: Collection[str], kinds: Collection[int] = (PART, VERSION)) -> Select:
    """
    The blocks of files, and the records of their versions, by the files' URLs.

    :param kinds: of these two.
    """
    return with_head(lambda head: _url(head) in urls, kinds)


def _url(head: Head) -> str | None:
    fields: tuple[Any, ...] | None = None
    if head.kind == PART:
        fields = PartKey.unpack(head.key)
    elif head.kind == VERSION:
        fields = unpack_version_key(head.key)
    return fields[0] if fields else None


class _Record(NamedTuple):
    """What the record of a version says, as far as it matters here."""

    identity: str
    size: int
    block_size: int
    checked: float

    @classmethod
    def parse(cls, payload: bytes) -> _Record | None:
        """None: this is no record."""
        try:
            said = json.loads(payload)
            return cls(str(said["identity"]), int(said["size"]), int(said["block_size"]), float(said["checked"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
