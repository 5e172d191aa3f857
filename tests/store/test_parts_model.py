"""
Parts against a model: bytes, and which of their pages are damaged.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import ondisk
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from ondisk import usage_on_disk

from dogpile_filesystem.layout import PART
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.part_format import PAGE_SIZE
from dogpile_filesystem.store.store import Store

KEYS = st.sampled_from([b"one", b"two", b"three"])
#: Most bounds lie near that of a page.
BOUNDS = st.builds(lambda page, more: max(0, page * PAGE_SIZE + more), st.integers(0, 4), st.integers(-2, 2))


class PartsMachine(RuleBasedStateMachine):
    """
    Two stores share a directory, as those of two processes do. A part in which a page is damaged is whole for whoever
    does not read this page, and gone once it was read.
    """

    @initialize(is_signed=st.booleans())
    def begin(self, is_signed):
        self.directory = tempfile.mkdtemp(prefix="model-")
        self.keys = [entry.signing_key(b"secret")] if is_signed else []
        self.now = 1_700_000_000.0
        self.stores = [self.opened(), self.opened()]
        self.model: dict[bytes, bytes] = {}
        self.damaged: dict[bytes, set[int]] = {}
        self.changes = 0

    def opened(self):
        return Store(self.directory, signing_keys=self.keys, clock=lambda: self.now)

    @rule(which=st.integers(0, 1))
    def reopen(self, which):
        self.stores[which].flush()
        self.stores[which] = self.opened()

    @rule(key=KEYS, length=BOUNDS, fill=st.binary(min_size=1, max_size=3), which=st.integers(0, 1))
    def put(self, key, length, fill, which):
        self.now += 0.001
        data = (fill * length)[:length]
        assert self.stores[which].put_part(key, data)
        self.model[key] = data
        self.damaged[key] = set()

    @rule(key=KEYS, one=BOUNDS, other=BOUNDS, which=st.integers(0, 1), into=st.booleans())
    def read(self, key, one, other, which, into):
        self.now += 0.001
        start, stop = sorted((one, other))
        found = self._read_into(key, start, stop, which) if into else self.stores[which].read_part(key, start, stop)
        data = self.model.get(key)
        if data is None or stop > len(data):
            assert found is None
        elif self.damaged[key] & self.pages(start, stop):
            assert found is None
            assert not os.path.exists(ondisk.path(self.stores[which], PART, key))
            del self.model[key]
        else:
            assert found == data[start:stop]

    def _read_into(self, key, start, stop, which):
        buffer = memoryview(bytearray(stop - start))
        return bytes(buffer) if self.stores[which].read_part_into(key, start, buffer) else None

    def pages(self, start, stop):
        return set(range(start // PAGE_SIZE, -(-stop // PAGE_SIZE)))

    @rule(key=KEYS, which=st.integers(0, 1))
    def has(self, key, which):
        data = self.model.get(key)
        assert self.stores[which].has_part(key) == (None if data is None else len(data))

    @rule(key=KEYS, at=BOUNDS)
    def damage(self, key, at):
        """The byte differs from the one that was stored, however often its page was damaged."""
        data = self.model.get(key)
        if data is None or at >= len(data):
            return
        path = ondisk.path(self.stores[0], PART, key)
        start = os.path.getsize(path) - len(data)
        with open(path, "r+b") as file:
            file.seek(start + at)
            file.write(bytes([data[at] ^ 255]))
        # Two changes in one tick of the kernel's clock would have one time.
        self.changes += 1
        later = 1_800_000_000 * 10**9 + self.changes
        os.utime(path, ns=(later, later))
        self.damaged[key].add(at // PAGE_SIZE)

    @rule(key=KEYS, which=st.integers(0, 1))
    def remove(self, key, which):
        assert self.stores[which].remove(key, PART) == (key in self.model)
        self.model.pop(key, None)

    @rule(which=st.integers(0, 1))
    def flush(self, which):
        self.stores[which].flush()

    @rule()
    def ledger_equals_disk(self):
        assert self.stores[0].usage()[:2] == usage_on_disk(self.directory)[:2]

    def teardown(self):
        if hasattr(self, "stores"):
            self.ledger_equals_disk()
            shutil.rmtree(self.directory)


TestParts = pytest.mark.time_intensive(PartsMachine.TestCase)
TestParts.settings = settings(max_examples=100, stateful_step_count=50)
