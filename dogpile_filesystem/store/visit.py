"""
The visit to a shard: everything in it is looked at, expired entries and left-over files are removed, and its record is
corrected.

A visit knows at once which files a killed process left: each process that writes locks a byte of the lock file as long
as it lives (see lockfile/presence.py), and the names of temporary files begin with the name of their process. A content
belongs to its entry, or to a temporary file with the same unique part in its name. Trees that were cleared
(``values.*``) are removed a shard at a time, so that their bytes are charged as long as they lie on the disk.

Expiry goes by kind: a store's visits remove expired entries of the kinds that the store is used for, and no others,
because another store on the directory may keep its own kind for ever.

Concurrency. The shard is locked meanwhile: nobody publishes or removes anything in it. Readers are not disturbed.

Limits. An entry is expired by its ``mtime``, which is when it was stored. In a directory of an earlier version it is
the last use: an entry that was used until it expired is removed later there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.layout import ALL_SHARDS, SHARDS, UNSENT_SHARD, kind_of
from dogpile_filesystem.lockfile import Ledger
from dogpile_filesystem.store.listing import Listing, Seen
from dogpile_filesystem.store.shard import Shard, Shards, remove_cleared
from dogpile_filesystem.store.survey import Survey, seems_left_over

#: Number of entries after which a writer that counts a lost ledger again stops, and leaves the rest to the next writer.
COUNTED_AT_ONCE = 1000


class Visitor:
    """
    Visits, as this process makes them.

    :param expiration: seconds after which entries are expired, by their kind; None: never. Entries of kinds that are
     missing here do not expire.
    :param clock: seconds since the epoch.
    :param failures: where trouble is reported.
    """

    def __init__(
        self, shards: Shards, expiration: Mapping[int, float | None], clock: Callable[[], float], failures: Failures
    ) -> None:
        self._shards = shards
        self._expiration = {kind: seconds for kind, seconds in expiration.items() if seconds is not None}
        self._clock = clock
        self._failures = failures
        self._sweep_shard = int.from_bytes(os.urandom(1), "little")
        self._sweep_at = 0.0

    def visit(self, ledger: Ledger, number: int) -> list[Seen]:
        """
        Look at every file of a shard: remove expired entries and left-over files, and correct the shard's record.

        :return: its entries. None of a shard that cannot be listed, whose record is left as it is.
        :raises OSError: the ledger cannot be written or locked.
        """
        with self._shards.locked(ledger, number) as shard:
            try:
                listing = shard.list()
            except OSError as error:
                self._failures.report_error(error, "cannot look at a part of the cache")
                ledger.believe(number)  # To wait for it to be counted would stop everything.
                return []
            # After the tree was opened: anything cleared from now on has been listed, and is charged.
            if number != UNSENT_SHARD:
                self._remove_cleared(f"{number:02x}")
            survey = shard.survey(listing)
            found = self._remove_expired(shard, listing, survey)
            shard.settle(survey, sum(seen.size for seen in found), len(found))
        return found

    def visit_patiently(self, ledger: Ledger, number: int) -> list[Seen]:
        """As :meth:`visit`, but report and pass over a shard that a stopped process holds."""
        try:
            return self.visit(ledger, number)
        except TimeoutError as error:
            self._failures.report_error(error, "cannot look at a part of the cache")
            return []

    def visit_all(self, ledger: Ledger) -> None:
        """
        Visit all shards, and remove what is left of cleared trees.

        :raises OSError: as :meth:`visit`.
        """
        for number in range(ALL_SHARDS):
            self.visit_patiently(ledger, number)
        self._remove_cleared("")

    def remove_drafts_left_over(self, ledger: Ledger) -> None:
        """
        Visit the shard of unsent files, if something in it seems to be left over. Only its names are listed for that.

        :raises OSError: the ledger cannot be written or locked.
        """
        try:
            with self._shards.opened(UNSENT_SHARD) as fd:
                names = os.listdir(fd)
        except OSError:  # Mostly there is none.
            return
        if seems_left_over(names, ledger.file):
            self.visit_patiently(ledger, UNSENT_SHARD)

    def count(self, ledger: Ledger) -> bool:
        """
        Count shards of a ledger that was lost, for a part of them at a time.

        :return: whether now all are counted.
        :raises OSError: as :meth:`visit`.
        """
        seen = 0
        for number in range(ALL_SHARDS):
            if not ledger.record(number).counted:
                if seen >= COUNTED_AT_ONCE:
                    return False
                seen += len(self.visit_patiently(ledger, number))
        return True

    def is_sweep_due(self) -> bool:
        """Whether :meth:`sweep` has something to do. Costs next to nothing."""
        return bool(self._expiration) and self._clock() >= self._sweep_at

    def sweep(self, ledger: Ledger) -> None:
        """
        Visit the next shard, so that expired entries leave the disk: each process visits all of them in one
        ``expiration_time``.

        :raises OSError: as :meth:`visit`.
        """
        if self._expiration:
            # Two threads may come here at once. Then two shards are visited.
            self._sweep_at = self._clock() + min(self._expiration.values()) / SHARDS
            self._sweep_shard = (self._sweep_shard + 1) % SHARDS
            self.visit(ledger, self._sweep_shard)

    def _remove_expired(self, shard: Shard, listing: Listing, survey: Survey) -> list[Seen]:
        """Remove expired entries; the entries that stay."""
        now = self._clock()
        expired_ns = {kind: int((now - seconds) * 1e9) for kind, seconds in self._expiration.items()}
        found = []
        for name in listing.entries:
            seen = listing.see(name, *survey.contents.get(name, ("", 0)))
            kind = kind_of(name)
            is_expired = kind is not None and listing.entries[name].st_mtime_ns < expired_ns.get(kind.number, 0)
            if not is_expired or shard.remove_unused(seen) is None:
                found.append(seen)
        return found

    def _remove_cleared(self, shard: str) -> None:
        """Remove a shard of all trees that were cleared; with an empty string, all of them."""
        remove_cleared(shard, self._shards.directory.fd)
