"""
Sizes and ages, as the commands show and read them.
"""

from __future__ import annotations

import pytest

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.layout import BLOCK


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 KiB"),
        (1023, "1023 bytes"),
        (BLOCK, "4 KiB"),
        (1 << 20, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 42, "4.0 TiB"),
    ],
)
def test_sizes(size, shown):
    """A size is shown in the largest unit that it reaches."""
    assert formatting.size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (172_800, "2 d"), (7200, "2 h")],
)
def test_ages(seconds, shown):
    """An age is shown in the largest unit of which there are at least two, and is never negative."""
    assert formatting.age(seconds) == shown


@pytest.mark.parametrize(
    ("text", "seconds"), [("3600", 3600), ("90m", 5400), ("1.5 h", 5400), ("30d", 2_592_000), ("1w", 604_800), ("0", 0)]
)
def test_ages_as_given(text, seconds):
    """An age is read with its unit."""
    assert parameters.age(text) == seconds
