"""
How files and directories are removed and renamed, of which something is unsent.

Concurrency. To remove a file at the source holds its mutex, so that what is written from then on is sent afterwards.
What is written while another thread or process renames the file is renamed too, or stays under the old name.
While the source renames a file or a directory, its mutex is held, and nothing is sent there.

Crash. Of a file that is renamed while it is unsent, the new name is accepted first: a kill leaves both names, and never
neither.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from typing import Any

from dogpile_filesystem.remote.back.overlay import Pending, below, is_pattern
from dogpile_filesystem.remote.back.writing_back import WrittenBackFileSystem
from dogpile_filesystem.remote.source import SourceChanged
from dogpile_filesystem.store import UnsentFile

#: How often to begin anew to remove a directory in which others remove files.
_TRIES = 100


class BackFileSystem(WrittenBackFileSystem):
    """
    What :class:`.CachedFileSystem` removes and renames.
    """

    # Removing

    def rm_file(self, path: str) -> None:
        """
        Remove a file. Of one that is unsent, the source need not know: it is removed there as soon as that can be.

        :raises TimeoutError: it is being sent for longer than ``lock_timeout``.
        """
        target = self._strip_protocol(path)
        if self._is_unsent(target) or not self._remove_sent(target):
            self._remove_unsent(target)

    def _remove_sent(self, path: str) -> bool:
        """Remove a file at the source, unless it is unsent by now."""
        # Who sends what is written from now on waits for this.
        with self.uploads.holding(path) as is_held:
            if self._is_unsent(path):
                return False
            if not is_held:
                raise _is_busy(path)
            super().rm_file(path)
            return True

    def _remove_unsent(self, path: str) -> None:
        self.versions.unsent(path)  # Raises FileNotFoundError: it was removed before.
        self._accept_removal(path)
        self.sender.send(self.versions.key(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """
        Remove files, or directories with all that is in them.

        :raises FileNotFoundError: there is nothing.
        :raises OSError: nobody can tell what is unsent.
        :raises Exception: whatever the source raises. What was unsent is removed nevertheless.
        """
        targets = self._strip_protocol(path if isinstance(path, list) else [path])
        with self._seeing(self._pending_change()):
            pending = [each for target in targets for each in self._pending(self._fixed_part(target))]
        if not pending:
            if not recursive and not isinstance(path, list) and not is_pattern(targets[0]):
                self._rm_one(path, targets[0])
            else:
                super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        expanded = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        if not recursive:
            for each in reversed(expanded):
                self.rm_file(each)
            return
        if maxdepth is not None:
            self._flush(pending)
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        self._rm_below(path, expanded, pending)

    def _rm_below(self, path: Any, expanded: Sequence[str], pending: Sequence[Pending]) -> None:
        wanted = set(expanded)
        for file, record in pending:
            if record.path in wanted and not record.removed:
                self._accept_removal(record.path)
                self.sender.send(file.key)
        for each in path if isinstance(path, list) else [path]:
            self._rm_at_source(each)

    def _rm_at_source(self, path: Any) -> None:
        """Remove what the source has of a path. It ends early when a file is gone that another thread has removed."""
        for _ in range(_TRIES):
            try:
                return super().rm(path, recursive=True)
            except FileNotFoundError:
                if not self.fs.exists(self._strip_protocol(path)):  # It had nothing of it, perhaps.
                    return None
        raise SourceChanged(path)

    def _rm_one(self, path: Any, target: str) -> None:
        with self.uploads.holding(target):
            if not self._is_unsent(target):
                super().rm(path)
                return
        self._remove_unsent(target)

    def _fixed_part(self, path: str) -> str:
        """The directory in which all matches of a pattern lie; of another path, itself."""
        if not is_pattern(path):
            return path
        at = min(path.index(sign) for sign in "*?[" if sign in path)
        return str(self._strip_protocol(path[:at].rpartition("/")[0] or "/"))

    def rmdir(self, path: str) -> None:
        """
        Remove an empty directory.

        :raises OSError: ENOTEMPTY: there are unsent files in it.
        """
        target = self._strip_protocol(path)
        pending = self._pending_change(target)
        if any(not record.removed for _, record in pending):
            raise OSError(errno.ENOTEMPTY, "there are unsent files in the directory", target)
        if pending:
            self._flush(pending)
        super().rmdir(path)

    # Renaming

    def mv(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        """
        Rename files and directories: at the source, and what is unsent of them here.

        :raises TimeoutError: something in them is being sent for longer than ``lock_timeout``.
        :raises UploadError: what has to be sent first cannot be.
        :raises OSError: nobody can tell what is unsent.
        :raises Exception: whatever the source raises.
        """
        everything = self._pending_change()
        if not everything:
            self._mv_at_source(path1, path2, **kwargs)
            return
        if isinstance(path1, list) or isinstance(path2, list) or is_pattern(str(path1)):
            self.flush()
            self._mv_at_source(path1, path2, **kwargs)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        with self._seeing(everything):
            mine, theirs = self._pending(source), self._pending(target)
            is_file = bool(mine or theirs) and self.info(source)["type"] != "directory"
            is_into = is_file and (str(path2).endswith("/") or self._is_directory(target))
        if not mine and not theirs:
            self._mv_at_source(path1, path2, **kwargs)
        elif is_file:
            self._mv_file(source, f"{target.rstrip('/')}/{source.rpartition('/')[2]}" if is_into else target)
        else:
            self._mv_directory(path1, path2, mine, theirs, kwargs)

    def _is_directory(self, path: str) -> bool:
        """As :meth:`isdir`, which takes any error for a no."""
        with contextlib.suppress(FileNotFoundError):  # It was removed here.
            if self._unsent_version(path) is not None:
                return False
            if self.fs.isdir(path):
                return True
        return self._is_implied(path)

    def _mv_at_source(self, path1: Any, path2: Any, **options: Any) -> None:
        """Many sources copy what they list, and remove what they list then: so nothing is sent there in between."""
        paths = self._strip_protocol(path1 if isinstance(path1, list) else [path1])
        with contextlib.ExitStack() as stack:
            held = sorted({self._fixed_part(path) for path in paths})
            for path in held:
                self._hold(path, stack)
            # What is being sent since before that.
            for _, record in [each for path in held for each in self._pending_change(path)]:
                if record.path not in held:
                    with contextlib.ExitStack() as waiting:
                        self._hold(record.path, waiting)
            super().mv(path1, path2, **options)

    def _hold(self, path: str, stack: contextlib.ExitStack) -> None:
        if not stack.enter_context(self.uploads.holding(path)):
            raise _is_busy(path)

    def _mv_file(self, source: str, target: str) -> None:
        """The new name first: a kill leaves both, and never neither."""
        if source == target:
            return
        if not self._is_back:
            self.cp_file(source, target)
            self.rm_file(source)
            return
        is_removed = False
        while not is_removed:
            before = self.store.unsent.find(self.versions.key(source))
            self._copy_back(source, target)
            is_removed = self._remove_copied(source, before)

    def _remove_copied(self, path: str, copied: UnsentFile | None) -> bool:
        """Remove a file, unless it was written, or sent, since it was copied."""
        if copied is None:
            return self._remove_sent(path)
        try:
            self._accept_removal(path, copied)
        except SourceChanged:
            return False
        self.sender.send(copied.key)
        return True

    def _mv_directory(
        self, path1: Any, path2: Any, mine: Sequence[Pending], theirs: Sequence[Pending], options: dict[str, Any]
    ) -> None:
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if theirs or self.exists(target) or not self._is_back:
            self._flush([*mine, *theirs])
            self._mv_at_source(path1, path2, **options)
            return
        # The source has nothing of it, perhaps.
        with contextlib.suppress(FileNotFoundError):
            self._mv_at_source(path1, path2, **{"recursive": True, **options})
        for _, record in mine:
            inner = below(record.path, source)
            if not inner:
                continue  # A file that was there before the directory.
            new = f"{target.rstrip('/')}/{inner}"
            if record.removed:
                self._accept_removal(new)
            else:
                # It was sent in between, and renamed by the source; or removed.
                with contextlib.suppress(FileNotFoundError):
                    self._mv_file(record.path, new)


def _is_busy(path: str) -> TimeoutError:
    return TimeoutError(f"{path!r} is being sent for longer than lock_timeout: try again later")
