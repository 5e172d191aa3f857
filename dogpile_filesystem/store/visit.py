"""
The visit to a shard: everything in it is looked at, what is expired or left over goes, and its record is corrected.

What a killed process left is known at once: each process that writes locks a byte of the lock file as long as it lives
(:meth:`.Presence.show`), and the names of temporary files begin with the name of their process. A content belongs to
its entry, or to a temporary file with the same unique part in its name. Trees that were cleared (``values.*``) are
removed a shard at a time, so that their bytes are charged as long as they lie on the disk.

Concurrency. The shard is locked meanwhile: nobody publishes or removes anything in it. Readers are not disturbed.

Limits. By its ``mtime`` alone, an entry is known to be expired only when its last *use* is too long ago: one that was
used until it expired goes later.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.lockfile.ledger import SHARDS, Ledger, charge
from dogpile_filesystem.lockfile.presence import presence
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.files import (
    DIRECTORY_FLAGS,
    open_below,
    read_file_to_its_end,
    remove_tree,
    unlink_quietly,
)
from dogpile_filesystem.store.reservation import TEMPORARY_SUFFIX, parse_temporary

#: Behind it, the name of a tree that was cleared has a unique part.
CLEARED_PREFIX = "values."
#: When a lost ledger is counted again, a writer stops after so many entries, and leaves the rest to the next.
COUNTED_AT_ONCE = 1000
#: Seconds after which a temporary file that is not named like ours is taken for rubbish.
STALE = 3600.0


class Candidate(NamedTuple):
    """
    An entry as a visit saw it. Sorts by last use.

    :ivar used_ns: its last use, the file's mtime in nanoseconds.
    :ivar name: of the entry's file.
    :ivar content: name of the file with its content; empty for an entry that has none.
    :ivar size: bytes charged for both.
    """

    used_ns: int
    shard: int
    name: str
    content: str
    size: int


class Listing:
    """
    The files of a shard, by what their names say they are: every file is taken for one of the cache. Directories,
    symbolic links and the like are left alone, and so is what an NFS client keeps for who has it open (``.nfs...``).

    :raises OSError: they cannot be listed. A shard that is missing has no files.
    :ivar fd: the directory, open until the end of a ``with`` block; -1: missing.
    """

    def __init__(self, values_dir: str, shard: int) -> None:
        self.entries: dict[str, os.stat_result] = {}
        self.contents: dict[str, os.stat_result] = {}
        self.temporaries: dict[str, os.stat_result] = {}
        self.fd = -1
        try:
            self.fd = open_below(values_dir, f"{shard:02x}")
            self._list()
        except FileNotFoundError:
            pass
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Listing:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def _list(self) -> None:
        with os.scandir(self.fd) as files:
            for file in files:
                try:
                    found = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # Gone since it was listed: someone is deleting the directory.
                if stat.S_ISREG(found.st_mode) and not file.name.startswith(".nfs"):
                    self._of(file.name)[file.name] = found

    def _of(self, name: str) -> dict[str, os.stat_result]:
        if "." not in name:
            return self.entries
        return self.temporaries if name.endswith(TEMPORARY_SUFFIX) else self.contents


class Survey(NamedTuple):
    """
    What belongs to what in a shard.

    :ivar size: bytes charged for contents, and reserved for what is being written.
    :ivar entries: reserved likewise.
    :ivar contents: name and charge of the content of each entry that has one.
    :ivar left_over: what belongs to nothing, and what is charged for it.
    """

    size: int
    entries: int
    contents: dict[str, tuple[str, int]]
    left_over: dict[str, int]


class Visitor:
    """
    Visits, as this process makes them.

    :param base_dir: the cache directory.
    :param expiration_time: seconds since their last use after which entries are surely expired; None: never.
    :param clock: seconds since the epoch.
    :param failures: where trouble is reported.
    """

    def __init__(
        self, base_dir: str, expiration_time: float | None, clock: Callable[[], float], failures: Failures
    ) -> None:
        self.values_dir = os.path.join(base_dir, "values")
        self._base_dir = base_dir
        self._expiration_time = expiration_time
        self._clock = clock
        self._failures = failures
        self._sweep_shard = int.from_bytes(os.urandom(1), "little")
        self._sweep_at = 0.0

    def visit(self, ledger: Ledger, shard: int) -> list[Candidate]:
        """
        Look at every file of a shard: remove what is expired or left over, and correct the shard's record.

        :return: its entries. None of a shard that cannot be listed, whose record is left as it is.
        :raises OSError: the ledger cannot be written or locked.
        """
        with ledger.shard(shard):
            try:
                listing = Listing(self.values_dir, shard)
            except OSError as error:
                self._failures.report_error(error, "cannot look at a part of the cache")
                ledger.believe(shard)  # To wait for it to be counted would stop everything.
                return []
            with listing:
                # After the tree was opened: what is cleared from now on has been listed, and is charged.
                self._remove_cleared(f"{shard:02x}")
                survey = self.survey(listing, ledger)
                size = survey.size - sum(size for _, size in survey.contents.values())
                size += sum(size for name, size in survey.left_over.items() if not unlink_quietly(name, listing.fd))
                found = self._entries(listing, survey, shard)
            ledger.set(shard, size + sum(candidate.size for candidate in found), survey.entries + len(found))
        return found

    def visit_patiently(self, ledger: Ledger, shard: int) -> list[Candidate]:
        """As :meth:`visit`, but a shard that is held by a process which does not go on is passed over."""
        try:
            return self.visit(ledger, shard)
        except TimeoutError as error:
            self._failures.report_error(error, "cannot look at a part of the cache")
            return []

    def visit_all(self, ledger: Ledger) -> None:
        """
        Visit all shards, and remove what is left of cleared trees.

        :raises OSError: as :meth:`visit`.
        """
        for shard in range(SHARDS):
            self.visit_patiently(ledger, shard)
        self._remove_cleared("")

    def count(self, ledger: Ledger) -> bool:
        """
        Count shards of a ledger that was lost, for a part of them at a time.

        :return: whether now all are counted.
        :raises OSError: as :meth:`visit`.
        """
        seen = 0
        for shard in range(SHARDS):
            if not ledger.record(shard).counted:
                if seen >= COUNTED_AT_ONCE:
                    return False
                seen += len(self.visit_patiently(ledger, shard))
        return True

    def is_sweep_due(self) -> bool:
        """Whether :meth:`sweep` has something to do. Costs next to nothing."""
        return self._expiration_time is not None and self._clock() >= self._sweep_at

    def sweep(self, ledger: Ledger) -> None:
        """
        Visit the next shard, so that expired entries leave the disk: each process goes round all of them in one
        ``expiration_time``.

        :raises OSError: as :meth:`visit`.
        """
        if self._expiration_time is not None:
            # Two threads may come here at once. Then two shards are visited.
            self._sweep_at = self._clock() + self._expiration_time / SHARDS
            self._sweep_shard = (self._sweep_shard + 1) % SHARDS
            self.visit(ledger, self._sweep_shard)

    def survey(self, listing: Listing, ledger: Ledger) -> Survey:
        """Tell what belongs to what. The shard is locked."""
        left_over = {}
        unfinished = set()
        size = entries = 0
        for name, found in listing.temporaries.items():
            unique_part, reserved_size, reserved_entries = parse_temporary(name) or ("", charge(found.st_size), 0)
            if self._is_left_over(unique_part, found, ledger):
                left_over[name] = charge(found.st_size)
            else:
                unfinished.add(unique_part)
                size += reserved_size
                entries += reserved_entries
        contents = {}
        for name, found in listing.contents.items():
            owner, _, unique_part = name.partition(".")
            if unique_part in unfinished:  # Part of a reservation.
                continue
            # Under the shard's lock a content has its entry or its temporary file. Any other one was left behind.
            if owner in listing.entries and _refers_to(owner, name, listing.fd):
                contents[owner] = name, charge(found.st_size)
                size += charge(found.st_size)
            else:
                left_over[name] = charge(found.st_size)
        return Survey(size, entries, contents, left_over)

    def _is_left_over(self, unique_part: str, found: os.stat_result, ledger: Ledger) -> bool:
        if not unique_part:
            return self._clock() - found.st_mtime > STALE
        return presence.is_left_over(unique_part, ledger.file)

    def _entries(self, listing: Listing, survey: Survey, shard: int) -> list[Candidate]:
        """The entries; those that are expired go."""
        expired_ns = 0 if self._expiration_time is None else int((self._clock() - self._expiration_time) * 1e9)
        found = []
        for name, seen in listing.entries.items():
            content, size = survey.contents.get(name, ("", 0))
            candidate = Candidate(seen.st_mtime_ns, shard, name, content, charge(seen.st_size) + size)
            # Its last use is its creation or later, so an entry so old is expired.
            if candidate.used_ns >= expired_ns or remove_unused(candidate, listing.fd) is None:
                found.append(candidate)
        return found

    def _remove_cleared(self, shard: str) -> None:
        """Remove a shard of all trees that were cleared; with an empty string, all of them."""
        with contextlib.suppress(OSError):
            trees = [name for name in os.listdir(self._base_dir) if name.startswith(CLEARED_PREFIX)]
            if not trees:
                return
            base_fd = os.open(self._base_dir, DIRECTORY_FLAGS)
            try:
                for tree in trees:
                    _remove_shard(tree, shard, base_fd)
            finally:
                os.close(base_fd)


def remove_unused(candidate: Candidate, fd: int) -> int | None:
    """
    Remove an entry, unless it was used since it was seen. Its shard is locked.

    :param fd: the directory of the shard.
    :return: the bytes that were freed; None: the entry stays.
    """
    try:
        # A use between this look and the removal is lost: its reader has the value, the next one a miss.
        if os.stat(candidate.name, dir_fd=fd, follow_symlinks=False).st_mtime_ns != candidate.used_ns:
            return None
        os.unlink(candidate.name, dir_fd=fd)
    except OSError:  # Gone already; or it cannot be removed, and others go in its place.
        return None
    if candidate.content and not unlink_quietly(candidate.content, fd):
        return 0  # The ledger stays too high until the content can be removed, by a visit.
    return candidate.size


def _refers_to(owner: str, content: str, fd: int) -> bool:
    """
    Whether the content of an entry is the one of this name. One that cannot be read may be.

    :param fd: the directory that both lie in.
    """
    try:
        data = read_file_to_its_end(owner, fd)
        return entry.Content.unpack(entry.inspect(data)[2], owner).name == content
    except (FileNotFoundError, entry.Damaged):
        return False
    except OSError:
        return True


def _remove_shard(tree: str, shard: str, base_fd: int) -> None:
    if not shard:
        remove_tree(tree, base_fd)
        return
    with contextlib.suppress(OSError):
        fd = os.open(tree, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=base_fd)
        try:
            remove_tree(shard, fd)
        finally:
            os.close(fd)
        os.rmdir(tree, dir_fd=base_fd)  # Succeeds with the last shard.
