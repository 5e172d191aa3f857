"""
How much is asked for at once, and that ranges which lie in one block are read together.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cached import BLOCK_SIZE, KIB, noise
from patching import replace_here

BLOCKS = 32


@pytest.fixture
def content(source):
    return source.write("file", noise(BLOCKS * BLOCK_SIZE))


def asked(source):
    """The blocks that each request for bytes asked for, by the first and their number."""
    found = source.control.requests("read")
    source.control.forget_requests()
    return [(request.start // BLOCK_SIZE, request.asked // BLOCK_SIZE) for request in found]


def test_in_order(fs, source, content):
    """A reader that goes on in order asks for more each time."""
    with fs.open("file") as file:
        assert b"".join(iter(lambda: file.read(8 * KIB), b"")) == content
    assert asked(source) == [(0, 1), (1, 4), (5, 16), (21, 11)]


@pytest.mark.parametrize("is_first_there", [False, True])
def test_places_on_the_border_of_two_blocks(fs, source, content, is_first_there):
    """Of a place that lies in two blocks, what is missing of these two is fetched, and none behind them."""
    numbers = (3, 9, 20)
    with fs.open("file") as file:
        for number in numbers:
            if is_first_there:
                assert fs.cat_file("file", (number - 1) * BLOCK_SIZE, number * BLOCK_SIZE - 4 * KIB)
        source.control.forget_requests()
        for number in numbers:
            place = number * BLOCK_SIZE - 4 * KIB
            file.seek(place)
            assert file.read(8 * KIB) == content[place : place + 8 * KIB]
    assert asked(source) == [(number, 1) if is_first_there else (number - 1, 2) for number in numbers]


def test_in_order_behind_a_jump(fs, source, content):
    """A reader that goes on in order from any place asks for more, once it has read as much as a block."""
    with fs.open("file") as file:
        file.seek(4 * BLOCK_SIZE)
        assert b"".join(file.read(8 * KIB) for _ in range(24)) == content[4 * BLOCK_SIZE : 7 * BLOCK_SIZE]
    assert asked(source) == [(4, 1), (5, 4)]


def test_ranges_of_a_block_are_read_together(fs, content, monkeypatch):
    """However many ranges of a call lie in a block, it is opened once."""
    assert fs.cat_file("file") == content
    opened = []
    real = os.open
    replace_here(
        monkeypatch, os, "open", lambda path, *args, **kwargs: opened.append(path) or real(path, *args, **kwargs)
    )
    places = [number * KIB for number in range(3 * 64)]
    ends = [place + KIB for place in places]
    assert fs.cat_ranges(["file"] * len(places), places, ends) == [
        content[place:end] for place, end in zip(places, ends, strict=True)
    ]
    assert len([path for path in opened if path.endswith("b")]) == 3


def test_ranges_of_a_damaged_block(fs, source, content, base_dir):
    """Where one of several ranges meets a damaged page, all of them come from the source."""
    assert fs.cat_file("file", 0, 10) == content[:10]
    (path,) = Path(base_dir).glob("values/*/*b")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    source.control.forget_requests()
    starts, ends = [0, BLOCK_SIZE - 10], [10, BLOCK_SIZE]
    assert fs.cat_ranges(["file"] * 2, starts, ends) == [content[:10], content[BLOCK_SIZE - 10 : BLOCK_SIZE]]
    assert asked(source) == [(0, 1)]
