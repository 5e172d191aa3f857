"""
What stores list, as the content of directories. Pure but for what is known: no I/O here.

A store has keys, and no directories: what lies before each slash of a key stands for one. An empty file whose key ends
with a slash marks a directory, and is none of the files.

Where a store tells the time of change in whole seconds, a file that has just been changed is *young*: another change
may leave its identity as it is. A young file keeps what is known of it, and so is reported by the first look that finds
it old enough. It would not be known otherwise whether the version that was reported is the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dogpile_filesystem.poller.known import Known
from dogpile_filesystem.poller.options import Options
from dogpile_filesystem.poller.snapshot import Content, contents_of
from dogpile_filesystem.sources import Identity

#: Seconds from which on the times of a store are coarse.
_COARSE = 1.0
# The directory of the keys that begin with a slash: the empty path is the root's. No store has a lone surrogate.
_SLASH = "\udfff"


def to_path(key: str) -> str:
    """The path below the root that a key has in a snapshot."""
    return _SLASH + key if key.startswith("/") else key


def to_key(path: str) -> str:
    """The key that :func:`to_path` was given."""
    return path.removeprefix(_SLASH)


class Keys:
    """
    Turns what a store lists into what a look yields.

    :param options: of the poller.
    :param clock: seconds since the epoch.
    """

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        self._options = options
        self._patterns = options.patterns
        self._clock = clock
        self._now = 0.0
        self._is_silent = False

    def begin(self, known: Known) -> None:
        """A look begins, before anything is listed."""
        self._now = self._clock()
        # What is there at the first look is known from it, and never reported.
        self._is_silent = known.is_new and not self._options.existing

    def is_reported(self, key: str) -> bool:
        """Whether a file can be a subject."""
        return not self._patterns or self._patterns.report_below(key)

    def is_pruned(self, directory: str) -> bool:
        """Whether nothing in a directory can be a subject, if nothing above it is pruned."""
        return bool(self._patterns) and self._patterns.prune(directory)

    def contents(
        self,
        listing: Iterable[tuple[str, Identity | None]],
        known: Known,
        marked: Iterable[str] = (),
        missing: Iterable[str] = (),
    ) -> Iterator[tuple[str, Content]]:
        """
        A complete listing of keys, as the content of directories.

        :param listing: each key below the root, and its identity; None: the store tells nothing.
        :param marked: directories that are listed themselves, or have a marker.
        :param missing: keys that are not in the listing, although the files are there: what is known of them stays.
        """
        directories = {to_path(directory) for directory in marked} if self._options.directories else set()
        files = []
        for key, identity in listing:
            path = to_path(key)
            directory = path.rpartition("/")[0]
            if self.is_reported(key):
                files.append((path, identity if self._options.contents else None))
            if self._options.directories and directory:
                directories.add(directory)
        kept = [directory for directory in directories if not self._is_below_pruned(directory)]
        unreadable: dict[str, set[str]] = {}
        for key in missing:
            directory, _, name = to_path(key).rpartition("/")
            unreadable.setdefault(directory, set()).add(name)
        for directory, content in contents_of(files, [*kept, *unreadable]):
            content.unreadable |= unreadable.get(directory, set())
            yield directory, self.without_young(directory, content, known)

    def _is_below_pruned(self, directory: str) -> bool:
        parts = directory.split("/")
        return any(self.is_pruned("/".join(parts[:number])) for number in range(1, len(parts) + 1))

    def without_young(self, directory: str, content: Content, known: Known) -> Content:
        """What was found in a directory, but of young files what is known."""
        young = [] if self._is_silent else [name for name in content.files if self._is_young(content.identity(name))]
        before = known.files(directory) if young else {}
        for name in young:
            if name in before:
                content.files[name] = before[name]
            else:
                del content.files[name]
        return content

    def _is_young(self, identity: Identity) -> bool:
        if identity.resolution < _COARSE or identity.changed is None or identity.is_settled(self._now):
            return False
        # One from further ahead was set, or the clocks differ, and it would be young for too long.
        return identity.changed - self._now <= 2 * identity.resolution
