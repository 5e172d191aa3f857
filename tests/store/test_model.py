"""
The store against a model: a dictionary in the order of last use, with a bound and a clock.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ondisk import usage_on_disk

from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.store.store import Store

KEYS = st.sampled_from([b"%d" % number for number in range(30)])
BLOCKS = st.integers(1, 4)


class StoreMachine(RuleBasedStateMachine):
    """
    Either the cache is bounded, to so few entries that eviction is exact; or its entries expire.

    The model keeps the blocks of each key in the order of last use. Values take 1 to 4 blocks: header and key take
    less than 100 bytes of the last. Those of one block are written in place.

    :cvar in_place: False: as on a filesystem where nothing is.
    """

    in_place = True

    @initialize(bound=st.sampled_from([(10, None), (40, None), (None, 5), (40, 15), (None, None)]))
    def begin(self, bound):
        self.directory = tempfile.mkdtemp(prefix="model-")
        self.now = 1_700_000_000.0
        self.size, self.entries = bound
        # Never both: the model does not know when expired entries leave the disk and so make room.
        self.expiration_time = 100 if bound == (None, None) else None
        self.model: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self.open()

    @rule()
    def open(self):
        """A new store on the directory continues where the previous one was, once the pending uses are written."""
        if hasattr(self, "store"):
            self.store.flush()
        self.store = Store(
            self.directory,
            cache_size=None if self.size is None else self.size * BLOCK,
            max_entries=self.entries,
            expiration_time=self.expiration_time,
            clock=lambda: self.now,
        )
        self.store.open()
        self.store.directory.is_local &= self.in_place

    def is_expired(self, key):
        return self.expiration_time is not None and self.now - self.model[key][1] > self.expiration_time

    def blocks(self):
        # A value of b blocks is b * 4096 - 100 bytes long, or somewhat shorter.
        return sum(len(value) // BLOCK + 1 for value, _ in self.model.values())

    @rule(seconds=st.floats(0.001, 60))
    def wait(self, seconds):
        self.now += seconds

    @rule(key=KEYS)
    def get(self, key):
        self.now += 0.001
        hit = self.store.get(key)
        if key not in self.model or self.is_expired(key):
            assert hit is None
        else:
            assert hit == self.model[key][0]
            self.model.move_to_end(key)

    @rule(
        key=KEYS,
        blocks=BLOCKS | st.just(1),
        fill=st.binary(min_size=1, max_size=1),
        shorter=st.sampled_from([0, 0, 1, 2000]),
    )
    def put(self, key, blocks, fill, shorter):
        self.now += 0.001
        value = fill * (blocks * BLOCK - 100 - shorter)
        assert self.store.put(key, value)
        # The old and the new value exist side by side for a moment, so there must be room for both.
        if key in self.model:
            self.model.move_to_end(key)
        self.make_room(blocks, new=key not in self.model)
        self.model.pop(key, None)
        self.model[key] = (value, self.now)

    def make_room(self, blocks, *, new):
        entries = len(self.model) + new
        tenth = (entries if self.entries is not None else len(self.model) + 1) // 10
        if self.fits(blocks, entries):
            return
        while self.model and not (tenth <= 0 and self.fits(blocks, entries)):
            self.model.popitem(last=False)
            entries -= 1
            tenth -= 1

    def fits(self, blocks, entries):
        return (self.size is None or self.blocks() + blocks <= self.size) and (
            self.entries is None or entries <= self.entries
        )

    @rule(key=KEYS)
    def remove(self, key):
        assert self.store.remove(key) or key not in self.model or self.is_expired(key)
        self.model.pop(key, None)

    @rule()
    def prune(self):
        self.store.prune()

    @rule()
    def clear(self):
        self.store.clear()
        self.model.clear()

    @invariant()
    def bound_holds(self):
        if hasattr(self, "store"):
            usage = self.store.usage()
            assert self.size is None or usage.size <= self.size * BLOCK
            assert self.entries is None or usage.entries <= self.entries

    @rule()
    def everything_is_as_in_the_model(self):
        for key in [b"%d" % number for number in range(30)]:
            self.get(key)

    @rule()
    def ledger_equals_disk(self):
        assert self.store.usage()[:2] == usage_on_disk(self.directory)[:2]

    def teardown(self):
        if hasattr(self, "store"):
            self.everything_is_as_in_the_model()
            self.ledger_equals_disk()
            shutil.rmtree(self.directory)


class RenamingMachine(StoreMachine):
    """
    All values are renamed to their final names.
    """

    in_place = False


TestStore = StoreMachine.TestCase
TestRenamingStore = pytest.mark.time_intensive(RenamingMachine.TestCase)
TestStore.settings = TestRenamingStore.settings = settings(max_examples=100, stateful_step_count=50)
