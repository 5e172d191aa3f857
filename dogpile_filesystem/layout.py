"""
Names and numbers on disk: the kinds of entries, what each file is called, and what it is charged. Pure: no I/O here.

::

    base_dir/
      CACHEDIR.TAG             tells backup programs to skip the directory
      lock                     the ledger and all locks: see lockfile/format.py
      values/00 ... values/ff/ 256 shards, by the first byte of the key's digest
        <name>                 an entry: the digest, and the letter of its kind
        <name>.<unique>        the content of an entry that has one: nothing but the user's bytes
        .<unique>-<size>-<entries>.tmp
                               an entry being written; this many bytes and entries are reserved for it
      values.<unique>/         a cleared tree, until its files are removed; see also lockfile/file.py
      unsent/                  one more shard, of what a source has not got yet: no eviction, expiry or clearing
        <name>, <name>.<unique>, .<unique>-<size>-<entries>.tmp
                               as above

The name of an entry says its kind, so that a visit and an eviction need not open an entry that has no content. A visit
opens the entry of a file, to learn which content belongs to it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

SHARDS = 256
#: The shard of unsent files, which is no part of ``values``; and the number of shards with it.
UNSENT_SHARD = SHARDS
ALL_SHARDS = SHARDS + 1
#: Files are charged in whole blocks of this many bytes, whatever the filesystem's own: the amount added to the ledger
#: is then the amount taken off again.
BLOCK = 4096

LOCK, VALUES, UNSENT_DIRECTORY, TAG_NAME = "lock", "values", "unsent", "CACHEDIR.TAG"
#: What CACHEDIR.TAG says: see https://bford.info/cachedir/
TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of dogpile_filesystem. It may be deleted at any time.\n"
#: A cleared tree is renamed to this and a unique part.
CLEARED_PREFIX = "values."
TEMPORARY_SUFFIX = ".tmp"

#: Numbers of the kinds. Plain numbers, because an enum's hash and comparison cost a tenth of a hit.
VALUE, FILE, PART, VERSION, LISTING, CHANGES, UNSENT = 1, 2, 3, 4, 5, 6, 7


class Kind(NamedTuple):
    """
    A kind of entries.

    :ivar number: stands in the entry's header.
    :ivar name: for the tools.
    :ivar letter: ends the entry's name, and precedes the key in its digest: a value and a file under the same key are
     two entries.
    :ivar has_content: whether a second file beside the entry holds its content.
    """

    number: int
    name: str
    letter: str
    has_content: bool


KINDS = {
    VALUE: Kind(VALUE, "value", "v", has_content=False),
    FILE: Kind(FILE, "file", "f", has_content=True),
    # A block of a source's file, which can be read in parts.
    PART: Kind(PART, "block", "b", has_content=False),
    # What is known of a version of a source's file.
    VERSION: Kind(VERSION, "version", "i", has_content=False),
    # What a source said of a directory's children, or of one name.
    LISTING: Kind(LISTING, "listing", "l", has_content=False),
    # What was changed in a source's directory through the cache.
    CHANGES: Kind(CHANGES, "changes", "c", has_content=False),
    # A file that was written, and is still to be sent to its source.
    UNSENT: Kind(UNSENT, "unsent", "u", has_content=True),
}
#: The kinds whose payload begins with a :class:`.entry.Content`.
WITH_CONTENT = frozenset(kind.number for kind in KINDS.values() if kind.has_content)
_BY_LETTER = {kind.letter: kind for kind in KINDS.values()}
_WITHOUT_CONTENT = frozenset(kind.letter for kind in KINDS.values() if not kind.has_content)
# Prefix of the key and letter, by number: two look-ups less on each hit than the table above.
_NAMING = {number: (kind.letter.encode(), kind.letter) for number, kind in KINDS.items()}
_SHARD_PATHS = (*(f"{VALUES}/{shard:02x}" for shard in range(SHARDS)), UNSENT_DIRECTORY)
# Paths that are not UTF-8 have lone surrogates.
_TEXT = ("utf-8", "surrogatepass")
#: What precedes the names of a shard's files in their paths below ``base_dir``, by shard.
SHARD_PREFIXES = tuple(f"{path}/" for path in _SHARD_PATHS)
_SHARD_NUMBERS = {f"{shard:02x}": shard for shard in range(SHARDS)}
_DIGEST_SIZE = 16
_DIGITS = 2 * _DIGEST_SIZE


class PartKey(NamedTuple):
    """
    What the key of a block says. The URL comes first, so that the keys of a directory have a common prefix.

    :ivar url: of the source's file.
    :ivar namespace: tells sources apart that have the same URLs.
    :ivar identity: tells the version of the file.
    :ivar size: of the file in bytes; -1: unknown.
    :ivar block_size: bytes of each block but the last.
    :ivar number: of the block in the file, from 0.
    """

    url: str
    namespace: str
    identity: str
    size: int
    block_size: int
    number: int

    def pack(self) -> bytes:
        """
        The key.

        :raises ValueError: a field has a NUL character, so that another block could have the same key.
        """
        return _pack(*self)

    @classmethod
    def unpack(cls, key: bytes) -> PartKey | None:
        """Take a key apart; None: it is not that of a block."""
        try:
            url, namespace, identity, *numbers = key.decode(*_TEXT).split("\0")
            size, block_size, number = map(int, numbers)
        except ValueError:  # UnicodeDecodeError is one.
            return None
        return cls(url, namespace, identity, size, block_size, number)


def version_key(url: str, namespace: str) -> bytes:
    """
    The key of what is known of a source's file.

    :raises ValueError: as :meth:`PartKey.pack`.
    """
    return _pack(url, namespace)


def listing_key(url: str, namespace: str, generation: str, part: str = "") -> bytes:
    """
    The key of what is known of a source's directory or of one name.

    :param generation: of the listings of the namespace: with another one, all of them are others.
    :param part: what of it; empty: its children.
    :raises ValueError: as :meth:`PartKey.pack`.
    """
    return _pack(url, namespace, generation, part)


def unpack_version_key(key: bytes) -> tuple[str, str] | None:
    """Take such a key apart, into URL and namespace; None: it is none."""
    try:
        url, namespace = key.decode(*_TEXT).split("\0")
    except ValueError:  # UnicodeDecodeError is one.
        return None
    return url, namespace


def _pack(*fields: str | int) -> bytes:
    key = "\0".join(map(str, fields))
    if key.count("\0") != len(fields) - 1:
        msg = f"a NUL character in {fields!r}: a file with such a name cannot be cached"
        raise ValueError(msg)
    return key.encode(*_TEXT)


class Place(NamedTuple):
    """
    Where the entry of a key lies.

    :ivar name: of the entry's file.
    :ivar path: of the entry's file, below ``base_dir``.
    """

    kind: int
    key: bytes
    name: str
    path: str
    shard: int


def entry_name(kind: int, key: bytes) -> str:
    """The name of a key's entry: BLAKE2b of the kind's letter and the key, 32 hexadecimal digits; then that letter."""
    prefix, letter = _NAMING[kind]
    return blake2b(prefix + key, digest_size=_DIGEST_SIZE).hexdigest() + letter


def place(kind: int, key: bytes) -> Place:
    """Where the entry of a key lies, of any kind but :data:`UNSENT`."""
    # As entry_name, written out: a call less on the way of every value stored.
    prefix, letter = _NAMING[kind]
    name = blake2b(prefix + key, digest_size=_DIGEST_SIZE).hexdigest() + letter
    digits = name[:2]
    return Place(kind, key, name, f"values/{digits}/{name}", _SHARD_NUMBERS[digits])


def unsent_place(key: bytes) -> Place:
    """Where the entry of a key's unsent file lies."""
    name = entry_name(UNSENT, key)
    return Place(UNSENT, key, name, f"{UNSENT_DIRECTORY}/{name}", UNSENT_SHARD)


def shard_path(shard: int) -> str:
    """The directory of a shard, below ``base_dir``."""
    return _SHARD_PATHS[shard]


def kind_of(name: str) -> Kind | None:
    """The kind of an entry by its name; None: the name has no letter of a kind."""
    return _BY_LETTER.get(name[_DIGITS:])


def has_no_content(name: str) -> bool:
    """Whether an entry surely has no content, by its name alone."""
    return name[_DIGITS:] in _WITHOUT_CONTENT


def is_entry_name(name: str) -> bool:
    """Whether a name is made as :func:`entry_name` makes it."""
    return kind_of(name) is not None and _is_hexadecimal(name[:_DIGITS])


def is_shard_name(name: str) -> bool:
    """Whether a name is that of a shard's directory."""
    return len(name) == 2 and _is_hexadecimal(name)  # noqa: PLR2004 - one byte


def _is_hexadecimal(text: str) -> bool:
    return not text.strip("0123456789abcdef")


def content_name(name: str, unique_part: str) -> str:
    """The name of the content of an entry."""
    return f"{name}.{unique_part}"


def parse_content(name: str) -> tuple[str, str]:
    """The name of the entry, and the unique part, that the name of a content is made of."""
    owner, _, unique_part = name.partition(".")
    return owner, unique_part


def temporary_name(unique_part: str, size: int, entries: int) -> str:
    """The name of a temporary file. It tells a visit what is reserved: bytes, and 0 or 1 entries."""
    return f".{unique_part}-{size:x}-{entries}{TEMPORARY_SUFFIX}"


def parse_temporary(name: str) -> tuple[str, int, int] | None:
    """
    The unique part of the name of a temporary file, and the bytes and entries reserved for it; None: this version does
    not name files so.
    """
    try:
        unique_part, size, entries = name[1 : -len(TEMPORARY_SUFFIX)].split("-")
        int(unique_part[:16], 16)
        return unique_part, int(size, 16), int(entries)
    except ValueError:
        return None


def charge(length: int) -> int:
    """The bytes that a file of ``length`` bytes is charged: whole blocks."""
    return -(-length // BLOCK) * BLOCK
