"""
The face of the package: an fsspec filesystem that reads another one through a cache directory.

What is read is answered from blocks in the cache, and fetched from the source where they are missing. Everything else
is passed on to the source: listings, and what writes, removes and renames. What is written or removed through this
filesystem is dropped from the cache.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from dogpile_filesystem.layout import CHANGES, LISTING, PART, VERSION
from dogpile_filesystem.lockfile import Stats
from dogpile_filesystem.remote.back.rearranging import BackFileSystem
from dogpile_filesystem.remote.metadata.changes import Judge
from dogpile_filesystem.remote.metadata.entries import Entries
from dogpile_filesystem.remote.metadata.kept import Kept
from dogpile_filesystem.remote.metadata.listings import Listings
from dogpile_filesystem.remote.metadata.places import Places
from dogpile_filesystem.remote.metadata.versions import Version, Versions
from dogpile_filesystem.remote.metadata.watched import Poller, Watched
from dogpile_filesystem.remote.namespace import namespace_of
from dogpile_filesystem.remote.options import OWN, SHARED, Options
from dogpile_filesystem.remote.reading import ranges
from dogpile_filesystem.remote.reading.blocks import Blocks
from dogpile_filesystem.remote.reading.file import CachedFile
from dogpile_filesystem.remote.reading.fill import filler
from dogpile_filesystem.remote.reading.local import LocalCopies, copy, copy_to_path
from dogpile_filesystem.remote.reading.raw import RawCachedFile
from dogpile_filesystem.remote.reading.stream import RawStreamedFile
from dogpile_filesystem.remote.reading.unsent_reader import open_unsent
from dogpile_filesystem.remote.source import Source, SourceChanged
from dogpile_filesystem.remote.through.upload import Uploads
from dogpile_filesystem.sources import lists_all, protocols_of
from dogpile_filesystem.store import Store

#: How often to open a file anew because it is written all the time.
_CHANGES = 20
#: Arguments that fsspec passes to every filesystem, or that it takes for itself.
_FSSPEC = ("fo", "asynchronous", "loop", "use_listings_cache", "max_paths", "batch_size")


# ruff: noqa: ARG002 - signatures are fsspec's


class CachedFileSystem(BackFileSystem):
    """
    A filesystem whose files are cached in ``base_dir``, in blocks.

    ::

        import fsspec

        with fsspec.open("dogpile::s3://bucket/key", dogpile={"base_dir": "/var/cache/myapp-files"}) as file:
            data = file.read()

        fs = fsspec.filesystem("dogpile", target_protocol="s3", target_options={"anon": True}, cache_size="50GiB")

    Each argument may also be a string, as an INI file gives it.

    :param target_protocol: the source's protocol, such as ``"s3"``.
    :param target_options: its options, as ``fsspec.filesystem`` takes them.
    :param fs: the source itself, instead of these two.
    :param base_dir: the directory of the cache. Default None: ``dogpile_filesystem`` in the user's cache directory.
     Several filesystems, and regions of dogpile.cache, may share one.
    :param cache_size: the most bytes that all entries in ``base_dir`` take, or a string such as ``"50GiB"``. Default 10
     GiB. None: unbounded.
    :param max_entries: the largest number of entries; a block is one. Default None: unbounded.
    :param min_free_space: bytes to leave free on the disk. Default None: nothing is left free.
    :param block_size: bytes of a block, or a string: a power of two from 64 KiB to 64 MiB. Default 1 MiB.
    :param check: when to ask the source for a file's version: ``"always"`` when it is opened; a number of seconds: when
     it was last asked longer ago; ``"never"``: once, for sources whose files do not change. Default ``"always"``.
    :param listings_expiry_time: seconds for which listings, and what the source says of a file or a directory, are
     kept, in ``base_dir``, for all processes. Default 0: they are not. ``open`` obeys ``check`` nevertheless.
    :param stale_if_error: whether to serve the last known version, or listing, while the source fails. Default False:
     its errors are raised. That a file is missing or denied is always raised.
    :param fill: whether files that were opened are fetched whole, by a thread of this process. Default False.
    :param namespace: readers share blocks if they have the same namespace. Default None: the same source with the same
     options, credentials included. Pass a name if credentials change while the files stay the same.
    :param write: ``"through"``: what is written is at the source when its ``close()`` returns. ``"back"``: it is safe
     on the local disk then, and sent to the source later. Default ``"through"``.
    :param write_after: seconds after which a file that is written back is sent. Default 5.
    :param max_uploads: how many of them this process sends at once. Default 4. 0: only :meth:`flush` sends.
    :param on_conflict: when somebody else has changed a file at the source that was written back here: ``"overwrite"``
     it, and say so in the log; ``"keep"`` it, and send ours beside it, under a name with the time; or ``"error"``: keep
     ours unsent, until :meth:`flush` is told. Default ``"overwrite"``.
    :param high_watermark: the part of ``cache_size``, more than 0, beyond which entries are evicted. Default 1.0.
    :param low_watermark: the part of ``cache_size`` down to which they are evicted then. Default: ``high_watermark``.
    :param signing_key: bytes or a string, or a list of them: as the backends of dogpile.cache take it. Default None.
    :param dir_mode: permission bits of directories. Default 0o700.
    :param file_mode: permission bits of files. Default: those of ``dir_mode`` that apply to files.
    :param allow_shared: whether to use a directory that everybody can write to. Default False.
    :param lock_timeout: seconds that a reader waits while another one fetches a block, before it fetches the block
     itself. Default 60. None: no limit. A reader that dies keeps nobody waiting.

    :raises TypeError: an argument is unknown or has a wrong type, or there is no source.
    :raises ValueError: an argument is out of range.
    :raises PermissionError: others could plant entries in the directory. The message says what to do.

    Concurrency. Any number of threads and processes, forked or spawned, may share ``base_dir``. A block that many
    readers want is fetched once. The filesystem and its open files can be pickled.

    Crash. A killed process leaves what it fetched. There is nothing to mend.

    Limits. Trouble with the cache never reaches the reader: the bytes come from the source then. Errors of the source
    are raised as they are. A reader never gets bytes of two versions, as far as the source tells versions apart: where
    its times have whole seconds, a file changed in the last second is read but not kept.
    """

    protocol = "dogpile"
    # For fsspec's own reads in pieces, as in `get_file`.
    blocksize = 4 << 20

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        fs: fsspec.AbstractFileSystem | None = None,
        **arguments: Any,
    ) -> None:
        _refuse_unknown(arguments)
        super().__init__(**{name: arguments[name] for name in _FSSPEC if name in arguments})
        self.options = Options.parse({name: arguments[name] for name in (*SHARED, *OWN) if name in arguments})
        source = _source(target_protocol, target_options, fs)
        self.store = _store(self.options)
        self.store.open_if_possible()
        namespace = self.options.namespace or namespace_of(source)
        self.source = Source(source, self.store.source_counter)
        self._begin_reading(namespace)
        self._begin_writing(namespace)
        self._watched = Watched(self)

    def _begin_reading(self, namespace: str) -> None:
        store, source, options, shared = self.store, self.source, self.options, self.options.shared
        places = Places(source, namespace, is_shared=options.namespace is not None)
        kept = _kept(store, source, places, options)
        self.versions = Versions(
            store,
            source,
            places,
            kept,
            listings_expiry_time=options.listings_expiry_time,
            block_size=options.block_size,
            check=options.check,
            stale_if_error=options.stale_if_error,
            is_back=options.write_back,
        )
        self.listings = Listings(
            store,
            source,
            self.versions,
            kept,
            expiry=options.listings_expiry_time,
            stale_if_error=options.stale_if_error,
        )
        self.blocks = Blocks(
            store, source, self.versions, lock_timeout=shared.lock_timeout, cache_size=shared.cache_size
        )
        self._copies = LocalCopies(self)

    def _begin_writing(self, namespace: str) -> None:
        shared = self.options.shared
        self.uploads = Uploads(
            self.store,
            self.source,
            self.versions,
            self.listings,
            lock_timeout=shared.lock_timeout,
            cache_size=shared.cache_size,
        )
        self._begin_writing_back(namespace)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The source's filesystem."""
        return self.source.fs

    def stats(self) -> Stats:
        """
        What was done with the cache, by this process and by all, and what is in it. Never fails.

        What concerns sources is in ``stats().process.source`` and ``stats().total.source``.
        """
        return self.store.stats()

    def watch(self, poller: Poller, to_path: Callable[[str], str] | None = None) -> None:
        """
        Have a poller tell :meth:`poll` what has changed at the source, so that ``check="never"`` serves fresh files.

        What was cached before the poller's first look, nobody tells of: make it with ``existing=True``, or with a
        ``state`` that is as old as the cache. A file that is reported in the version that is cached stays cached.

        :param poller: of the source, such as ``make_poller("s3://bucket", recurse=True, existing=True)``.
        :param to_path: makes a path of the source from the subject of an event. Default None: a subject is a URL of the
         source.
        :raises ValueError: the poller's URL is none of the source, and there is no ``to_path``.
        """
        self._watched.add(poller, to_path)

    def poll(self) -> list[Any]:
        """
        Ask the pollers of :meth:`watch` what has changed, and drop it from the cache: blocks, metadata, and what the
        source's filesystem has listed of the directories.

        :return: the events, as the pollers report them. They are acknowledged.
        :raises OSError: a poller cannot look at the source now. What the others reported is dropped nevertheless.

        Concurrency. One process that polls is enough for all that share the cache and the ``namespace``. A reader that
        asked the source before the change and gets its answer after this call may serve that until the next call.
        """
        return self._watched.poll()

    # Reading

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if mode != "rb":
            return self._open_written(path, mode, autocommit=autocommit, block_size=block_size, **kwargs)
        self._take_over()
        for _ in range(_CHANGES):
            with contextlib.suppress(SourceChanged):  # An unsent file was sent or replaced in this moment.
                return self.open_version(self.versions.opened(path))
        raise SourceChanged(path)

    def open_version(self, version: Version) -> Any:
        """
        Open a version.

        :return: a :class:`.CachedFile`; or the source's own file, where the cache could not tell one version of it from
         the next.
        :raises Exception: whatever the source raises.
        """
        if version.info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), version.path)
        if version.is_unsent:
            return CachedFile(self, open_unsent(self, version))
        if not version.identity or version.info.get("type") == "other":  # Such as a pipe.
            return self.source.open(version.path)
        # A web server may say that it answers no ranges.
        if version.size < 0 or version.info.get("partial") is False:
            return CachedFile(self, RawStreamedFile(self, version))
        if self.options.fill:
            filler.add(self.blocks, version)
        return CachedFile(self, RawCachedFile(self, version))

    def count_opening(self, *, has_hit: bool, has_missed: bool) -> None:
        """Count a file that is closed, by where its bytes came from."""
        counter = self.store.source_counter
        counter.open_hits += has_hit and not has_missed
        counter.open_partials += has_hit and has_missed
        counter.open_misses += has_missed and not has_hit

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """
        Read a file, or a part of it.

        :param start: where to begin; negative: counted from the end; None: at the beginning.
        :param end: where to stop, likewise; None: at the end.
        :raises SourceChanged: the source changes the file each time it is read.
        :raises Exception: whatever the source raises.
        """
        self._take_over()
        data: bytes = ranges.read(self, self._strip_protocol(path), [(start, end)])[0]
        return data

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int],
        ends: int | list[int],
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """
        Read many ranges, of one file or several. Each file's version is looked up once.

        :param starts: where each begins; one number: all of them.
        :param ends: where each stops; likewise.
        :param max_gap: not used: the ranges that lie in one block are read from it together.
        :param on_error: ``"return"``: an exception takes the place of what it kept from being read; ``"raise"``.
        :return: the bytes of each range.
        """
        if not isinstance(paths, list):
            msg = "paths: pass a list"
            raise TypeError(msg)
        self._take_over()
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(starts) == len(ends) == len(paths):
            msg = "starts and ends: pass as many as paths"
            raise ValueError(msg)
        found: list[Any] = [None] * len(paths)
        numbers: dict[str, list[int]] = {}
        for number, path in enumerate(paths):
            numbers.setdefault(path, []).append(number)
        for path, wanted in numbers.items():
            parts: list[ranges.Range] = [(starts[number], ends[number]) for number in wanted]
            read = ranges.read(self, self._strip_protocol(path), parts, is_tolerant=on_error == "return")
            for number, data in zip(wanted, read, strict=True):
                found[number] = data
        return found

    def get_file(
        self, rpath: str, lpath: Any, callback: Callback = DEFAULT_CALLBACK, outfile: Any = None, **kwargs: Any
    ) -> None:
        """
        Copy a file, or make a directory for one, on the local disk. A copy that fails leaves nothing under its name.

        :param lpath: a path; or a file that is open for writing.
        :param callback: is told the size, and each piece that was copied.
        :raises Exception: whatever the source raises.
        """
        target = outfile if outfile is not None else lpath
        if hasattr(target, "write"):
            with self.open(rpath, "rb") as file:
                copy(file, target, callback)
        elif self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with self.open(rpath, "rb") as file:
                copy_to_path(file, os.fspath(lpath), callback)

    def open_local(self, path: Any, callback: Callback = DEFAULT_CALLBACK) -> Any:
        """
        Local copies of whole files, for programs that need a path. They count towards ``cache_size``, and stay until
        :meth:`release` is called, this object is gone, or its process ends.

        :param path: of a file; or a list of paths; or a pattern such as ``bucket/*.csv``.
        :param callback: of one path, it is told the size, and each piece that was copied; of others, as ``get`` tells
         it, how many files there are, each file that is done, and by its branches the sizes and pieces.
        :return: the path of the copy; a list of paths, if not one path was passed. The copies are for reading only.
        :raises OSError: a copy cannot be written.
        :raises Exception: whatever the source raises.
        """
        paths = self.expand_path(path)
        # A question mark makes no pattern of a URL.
        if not isinstance(path, list) and paths == [self._strip_protocol(path)]:
            return self._local_copy(paths[0], callback)
        callback.set_size(len(paths))
        copies = []
        for each in callback.wrap(paths):
            with callback.branched(each, "") as branch:
                copies.append(self._local_copy(each, branch))
        return copies

    def _local_copy(self, path: str, callback: Callback) -> str:
        return ranges.unchanged(self, path, lambda version: self._copies.path(self, version, callback))

    def release(self) -> None:
        """Let go of all local copies that :meth:`open_local` made. Their paths lead nowhere afterwards."""
        self._copies.release()


def _store(options: Options) -> Store:
    """The store of the blocks, and of what is known of their files."""
    shared = options.shared
    return Store(
        shared.base_dir,
        cache_size=shared.cache_size,
        max_entries=shared.max_entries,
        min_free_space=shared.min_free_space,
        access=shared.access,
        kinds=[PART, VERSION, LISTING, CHANGES],
        signing_keys=shared.signing_keys,
        high_watermark=options.high_watermark,
        low_watermark=options.low_watermark,
    )


def _kept(store: Store, source: Source, places: Places, options: Options) -> Kept:
    """The store, as the listings of the source are kept in it."""
    entries = Entries(store, places, options.shared.lock_timeout)
    judge = Judge(protocols_of(source.fs), time.time)
    return Kept(entries, judge, parent=source.parent, lists_all=lists_all(source.fs))


def _refuse_unknown(arguments: Mapping[str, Any]) -> None:
    known = (*SHARED, *OWN, *_FSSPEC)
    for name in arguments:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "options of the source go into target_options"
            msg = f"unknown argument {name!r}: {hint}"
            raise TypeError(msg)


def _source(
    protocol: str | None, options: Mapping[str, Any] | None, fs: fsspec.AbstractFileSystem | None
) -> fsspec.AbstractFileSystem:
    if (fs is None) == (protocol is None):
        msg = "pass either fs, or target_protocol and its target_options: the source of the files"
        raise TypeError(msg)
    source = fsspec.filesystem(protocol, **dict(options or {})) if fs is None else fs
    if getattr(source, "asynchronous", False):
        msg = "the source is asynchronous=True: pass one that can be used from synchronous code"
        raise ValueError(msg)
    return source
