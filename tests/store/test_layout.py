"""
The kinds of entries, and the keys of blocks and versions.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogpile_filesystem import layout
from dogpile_filesystem.layout import FILE, KINDS, PART, UNSENT, VALUE, VERSION, PartKey

# Lone surrogates too, as in paths that are not UTF-8.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=20)
NUMBER = st.integers(-1, 1 << 60)
KEYS = st.builds(PartKey, TEXT, TEXT, TEXT, NUMBER, NUMBER, NUMBER)


@given(key=KEYS)
def test_keys_of_blocks(key):
    """The key of a block says what it was made of."""
    assert PartKey.unpack(key.pack()) == key


@given(one=KEYS, other=KEYS)
def test_different_keys(one, other):
    """Two blocks have the same key only if they are the same block."""
    assert (one.pack() == other.pack()) == (one == other)


@pytest.mark.parametrize("field", ["url", "namespace", "identity"])
def test_nul(field):
    """A NUL character in a field is refused, since another block could have the same key."""
    key = PartKey("url", "namespace", "identity", 10, 5, 1)
    with pytest.raises(ValueError, match="NUL"):
        key._replace(**{field: "a\0b"}).pack()
    with pytest.raises(ValueError, match="NUL"):
        layout.version_key("a\0b", "namespace")


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"url",
        layout.version_key("url", "namespace"),
        b"url\0namespace\0identity\0001\0002",
        b"url\0namespace\0identity\0001\0002\0003\0004",
        b"url\0namespace\0identity\0size\0002\0003",
        b"\xff\0namespace\0identity\0001\0002\0003",
    ],
)
def test_other_keys(key):
    """What is not the key of a block is not taken apart."""
    assert PartKey.unpack(key) is None


def test_prefix():
    """The keys of a file's blocks and of its version begin with its URL."""
    assert PartKey("s3://b/k", "n", "i", 10, 5, 1).pack() == b"s3://b/k\0n\0i\00010\0005\0001"
    assert layout.version_key("s3://b/k", "n") == b"s3://b/k\0n"


def test_kinds():
    """Each kind has a number, a name and a letter of its own, and entries of all kinds may have the same key."""
    assert list(KINDS) == [VALUE, FILE, PART, VERSION, UNSENT] == [1, 2, 3, 4, 7]
    assert [(kind.name, kind.letter, kind.has_content) for kind in KINDS.values()] == [
        ("value", "v", False),
        ("file", "f", True),
        ("block", "b", False),
        ("version", "i", False),
        ("unsent", "u", True),
    ]
    names = [layout.entry_name(kind, b"key") for kind in KINDS]
    assert len({name[:-1] for name in names}) == len(KINDS)
    assert [layout.kind_of(name) for name in names] == list(KINDS.values())
    assert all(map(layout.is_entry_name, names))


def test_names_stay():
    """The names of blocks and versions never change within a format version, so an upgrade never loses the cache."""
    assert layout.entry_name(PART, b"key") == "87db5b281f5259e9b7112be156b5add4b"
    assert layout.entry_name(VERSION, b"key") == "32e7d9020fb37d3b9a52f0e1cd9e2df3i"
