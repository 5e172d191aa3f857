"""
Helper: operations of regions that meet an error at each of their calls, and the checks afterwards. Run as a program:
``errno_cases.py OPERATION DIRECTORY`` prints its findings as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import injection
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from ondisk import difference, usage_on_disk

from dogpile_filesystem.layout import BLOCK

#: Errors that may last, and errors that only come once. A lasting EDQUOT would equal ENOSPC, EACCES and ESTALE EIO.
_LASTING = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EXDEV]
_ONCE = [*_LASTING, errno.EDQUOT, errno.EACCES, errno.ESTALE, errno.EINTR]
#: After these the engine may evict other entries and try again.
_FULL_DISK = ("ENOSPC", "EDQUOT")
#: The number of calls from one place of the program that meet an error.
_FROM_EACH_PLACE = 1
#: The most regions on one directory, with one that was replaced.
_REGIONS = 6
#: Cases after which garbage is collected.
_COLLECTED_AFTER = 50


def _content(name: str, length: int) -> bytes:
    """Returns bytes of which each part shows where it belongs."""
    return b"".join(hashlib.sha256(b"%s %d" % (name.encode(), number)).digest() for number in range(length // 32))


OLD, NEW, LARGE = _content("old", 6_400), _content("new", 12_800), _content("large", 96_000)
# Written in place, the first two without a change of length.
SMALL, AS_SMALL, SMALLER = _content("small", 1_600), _content("as small", 1_600), _content("smaller", 960)
_VALUES = {"k": OLD, "small": SMALL, "other": _content("other", 6_400), "third": _content("third", 6_400)}
_FILES = {"k": _content("old file", 20_000), "other": _content("other file", 6_400)}
_PARTS = {"k": _content("old part", 40_000), "other": _content("other part", 3_200)}
_NEW_FILE = _content("new file", 40_000)
_AGAIN = _content("again", 3_200)


class _Unbuffered(io.RawIOBase):
    """A file without a descriptor, whose reading is a call that may fail."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, len(_NEW_FILE))[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._fd, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


class _Parts:
    """The parts of a store, with the methods of a region."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self, key: str) -> Any:
        length = self._store.has_part(key.encode())
        part = None if length is None else self._store.read_part(key.encode(), 0, length)
        return NO_VALUE if part is None else part

    def set(self, key: str, value: bytes) -> None:
        self._store.put_part(key.encode(), value)


class Cache:
    """
    A cache directory, with a region for values, one for files that are copied and one for files that are moved; parts;
    and a file to be stored.
    """

    def __init__(self, path: str) -> None:
        self.base_dir = os.path.join(path, "cache")
        self.source_path = os.path.join(path, "source")
        self.source = open(self.source_path, "rb")
        self.unbuffered = _Unbuffered(self.source_path)

    @functools.cached_property
    def values(self) -> Any:
        return self.region("paylogic.filesystem")

    @functools.cached_property
    def files(self) -> Any:
        return self.region("paylogic.raw_filesystem")

    @functools.cached_property
    def movable(self) -> Any:
        return self.region("paylogic.raw_filesystem", file_movable=True)

    @functools.cached_property
    def full(self) -> Any:
        return self.region("paylogic.filesystem", cache_size=30 * BLOCK)

    @functools.cached_property
    def kept(self) -> Any:
        """A region for values that has one of them in memory."""
        region = self.region("paylogic.filesystem", memory_size="1MiB")
        region.get("k")
        return region

    @property
    def store(self) -> Any:
        return self.values.backend.store

    @property
    def parts(self) -> _Parts:
        return _Parts(self.store)

    def region(self, backend: str, **arguments: Any) -> Any:
        return make_region().configure(backend, arguments={"base_dir": self.base_dir, **arguments})

    def regions(self) -> list[Any]:
        return [self.values, self.files, self.movable, self.full, self.kept]

    def counts(self) -> Counter[str]:
        return sum((region.backend.store.failures.counts for region in self.regions()), Counter())

    def own_descriptors(self) -> set[str]:
        return {str(self.source.fileno()), str(self.unbuffered.fileno())}

    def close(self) -> None:
        self.source.close()
        self.unbuffered.close()


def content(value: Any) -> Any:
    """Returns a value, or the content of the file if it is one: the files of hits are closed."""
    if isinstance(value, bytes | bool) or value is NO_VALUE or value is None:
        return value
    if isinstance(value, list):
        return [content(each) for each in value]
    data = value.read()
    if "cache/values" in str(getattr(value, "name", "")):
        value.close()
    return data


def read(region: Any, key: str) -> Any:
    return content(region.get(key))


class Operation(NamedTuple):
    """
    What meets an error.

    :ivar act: does it; returns what a caller gets.
    :ivar results: what a caller may get, first what it gets without an error.
    :ivar values: what keys it writes, and what they may hold afterwards, besides nothing.
    :ivar files: likewise, of files.
    :ivar parts: likewise, of parts.
    :ivar moves: whether files are moved; they are read through the region that wrote them.
    :ivar evicts: whether any entry may be missing afterwards.
    :ivar first: whether there is no directory yet, and no region.
    """

    act: Callable[[Cache], Any]
    results: tuple[Any, ...] = (None,)
    values: Mapping[str, tuple[Any, ...]] = {}
    files: Mapping[str, tuple[Any, ...]] = {}
    parts: Mapping[str, tuple[Any, ...]] = {}
    moves: bool = False
    evicts: bool = False
    first: bool = False


def _cached(cache: Cache) -> Any:
    return cache.values.cache_on_arguments(function_key_generator=lambda *_: lambda: "absent")(lambda: NEW)()


def _configure_and_get(cache: Cache) -> Any:
    del cache.values
    return cache.values.get("k")


OPERATIONS = {
    "configure": Operation(_configure_and_get, (OLD, NO_VALUE)),
    "get": Operation(lambda cache: cache.values.get("k"), (OLD, NO_VALUE)),
    "get of nothing": Operation(lambda cache: cache.values.get("absent"), (NO_VALUE,)),
    "get_multi": Operation(
        lambda cache: cache.values.get_multi(["k", "other"]),
        tuple(map(list, itertools.product((OLD, NO_VALUE), (_VALUES["other"], NO_VALUE)))),
    ),
    "set": Operation(lambda cache: cache.values.set("absent", NEW), values={"absent": (NEW,)}),
    "set small": Operation(lambda cache: cache.values.set("absent", SMALL), values={"absent": (SMALL,)}),
    "set small over": Operation(lambda cache: cache.values.set("small", AS_SMALL), values={"small": (AS_SMALL,)}),
    "set smaller over": Operation(lambda cache: cache.values.set("small", SMALLER), values={"small": (SMALLER,)}),
    "set over": Operation(lambda cache: cache.values.set("k", NEW), values={"k": (NEW,)}),
    "set large over": Operation(lambda cache: cache.values.set("k", LARGE), values={"k": (LARGE,)}),
    "set_multi": Operation(
        lambda cache: cache.values.set_multi({"k": NEW, "absent": LARGE}), values={"k": (NEW,), "absent": (LARGE,)}
    ),
    "set that evicts": Operation(
        lambda cache: cache.full.set("absent", LARGE), values={"absent": (LARGE,)}, evicts=True
    ),
    "delete": Operation(lambda cache: cache.values.delete("k"), values={"k": ()}),
    "delete_multi": Operation(lambda cache: cache.values.delete_multi(["k", "other"]), values={"k": (), "other": ()}),
    "get_or_create of a hit": Operation(
        lambda cache: cache.values.get_or_create("k", lambda: NEW), (OLD, NEW), values={"k": (OLD, NEW)}
    ),
    "cache_on_arguments": Operation(_cached, (NEW,), values={"absent": (NEW,)}),
    "get from memory": Operation(
        lambda cache: [cache.kept.get("k") for _ in range(2)],
        tuple(map(list, itertools.product((OLD, NO_VALUE), repeat=2))),
    ),
    "set over what is in memory": Operation(
        lambda cache: cache.kept.set("k", NEW) or cache.kept.get("k"), (NEW, NO_VALUE), values={"k": (NEW,)}
    ),
    "delete what is in memory": Operation(
        lambda cache: cache.kept.delete("k") or cache.kept.get("k"), (NO_VALUE,), values={"k": ()}
    ),
    "first use": Operation(lambda cache: cache.values.set("absent", NEW), values={"absent": (NEW,)}, first=True),
    "get of a file": Operation(lambda cache: cache.files.get("k"), (_FILES["k"], NO_VALUE)),
    "copy": Operation(lambda cache: cache.files.set("absent", cache.source), files={"absent": (_NEW_FILE,)}),
    "copy over": Operation(lambda cache: cache.files.set("k", cache.source), files={"k": (_NEW_FILE,)}),
    "copy in memory": Operation(lambda cache: cache.files.set("k", cache.unbuffered), files={"k": (_NEW_FILE,)}),
    "move": Operation(
        lambda cache: cache.movable.set("absent", cache.source), files={"absent": (_NEW_FILE,)}, moves=True
    ),
    "move over": Operation(lambda cache: cache.movable.set("k", cache.source), files={"k": (_NEW_FILE,)}, moves=True),
    "delete of a file": Operation(lambda cache: cache.files.delete("k"), files={"k": ()}),
    "get_or_create of a file": Operation(
        lambda cache: cache.movable.get_or_create("absent", lambda: cache.source),
        (_NEW_FILE,),
        files={"absent": (_NEW_FILE,)},
        moves=True,
    ),
    "put_part": Operation(
        lambda cache: cache.store.put_part(b"absent", LARGE), (True, False), parts={"absent": (LARGE,)}
    ),
    "put_part over": Operation(lambda cache: cache.store.put_part(b"k", NEW), (True, False), parts={"k": (NEW,)}),
    "read_part": Operation(lambda cache: cache.store.read_part(b"k", 100, 30_000), (_PARTS["k"][100:30_000], None)),
    "read_part of nothing": Operation(lambda cache: cache.store.read_part(b"absent", 0, 1)),
    "prune": Operation(lambda cache: cache.full.backend.prune()),
    "flush": Operation(lambda cache: cache.values.get("k") and cache.values.backend.store.flush(), (None, NO_VALUE)),
}


class Trouble(NamedTuple):
    """
    What is met.

    :ivar cause: the name under which it is counted if it does harm.
    :ivar only: which calls may meet it.
    :ivar lasting: whether it lasts from the first of them on.
    """

    cause: str
    fault: injection.Fault
    only: Callable[[injection.Call], bool]
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.cause} {'from' if self.lasting else 'at'}"


def troubles() -> Iterator[Trouble]:
    for code in _ONCE:
        trouble = Trouble(errno.errorcode[code], injection.fail(code), injection.can_fail_with(code))
        yield trouble
        if code in _LASTING:
            yield trouble._replace(lasting=True)
    yield Trouble("damaged", injection.half, injection.can_be_short)
    yield Trouble("damaged", injection.half, injection.can_be_halved, lasting=True)


class Driver:
    """
    Lets one operation meet each errno, and short reads and writes, at each call, once and from there on for ever.
    """

    def __init__(self, name: str, directory: str) -> None:
        self.operation = OPERATIONS[name]
        self.directory = directory
        self.template = os.path.join(directory, "template")
        self.wrong: list[str] = []
        self.cases = self.struck = 0

    def run(self) -> dict[str, Any]:
        self.prepare()
        for trouble in troubles():
            for number in injection.thinned(self.calls(trouble.only), _FROM_EACH_PLACE):
                self.case(trouble, number)
        return {"cases": self.cases, "struck": self.struck, "wrong": self.wrong}

    def prepare(self) -> None:
        os.mkdir(self.template)
        with open(os.path.join(self.template, "source"), "wb") as file:
            file.write(_NEW_FILE)
        if not self.operation.first:
            cache = Cache(self.template)
            cache.values.set_multi(_VALUES)
            cache.files.set_multi({key: io.BytesIO(value) for key, value in _FILES.items()})
            for key, value in _PARTS.items():
                cache.parts.set(key, value)
            cache.close()

    def cache(self, name: str) -> Cache:
        path = os.path.join(self.directory, name)
        shutil.copytree(self.template, path)
        cache = Cache(path)
        if not self.operation.first:
            cache.regions()
        return cache

    def calls(self, only: Callable[[injection.Call], bool]) -> list[injection.Call]:
        cache = self.cache("dry")
        with injection.Faults(only=only) as context:
            self.operation.act(cache)
        cache.close()
        shutil.rmtree(os.path.dirname(cache.base_dir))
        return context.calls

    def case(self, trouble: Trouble, number: int) -> None:
        cache = self.cache(f"{trouble} {number}")
        context = injection.Faults(trouble.fault, number, lasting=trouble.lasting, only=trouble.only)
        wrong = Check(self.operation, cache, trouble).run(context)
        cache.close()
        shutil.rmtree(os.path.dirname(cache.base_dir))
        self.cases += 1
        if self.cases % _COLLECTED_AFTER == 0:
            gc.collect()
        self.struck += len(context.struck)
        where = f"{trouble} call {number}, {context.struck[0] if context.struck else 'which was not made'}"
        self.wrong += [f"{where}: {what}" for what in wrong]


class Check:
    """
    One case: the operation meets the error, and what must hold then.
    """

    #: Descriptors of the lock files of all cases so far, which stay open.
    lock_files: ClassVar[set[str]] = set()

    def __init__(self, operation: Operation, cache: Cache, trouble: Trouble) -> None:
        self.operation = operation
        self.cache = cache
        self.trouble = trouble
        self.wrong: list[str] = []
        self.is_complete = True

    @property
    def files(self) -> Any:
        return self.cache.movable if self.operation.moves else self.cache.files

    def run(self, context: injection.Faults) -> list[str]:
        try:
            with context:
                result = self.operation.act(self.cache)
                self.check_result(content(result))
                if self.trouble.lasting:
                    self.check_written()
            self.check_written()
            self.check_rest()
            self.check_source()
            self.check_counted()
            self.check_ledger()
            self.check_goes_on()
            self.check_descriptors()
        except Exception as error:  # This must not happen.
            self.wrong.append(f"raised {error!r}")
        return self.wrong

    def check_result(self, result: Any) -> None:
        if result not in self.operation.results:
            self.wrong.append(f"the caller got {_short(result)}")
        self.is_complete = result == self.operation.results[0]

    def check_written(self) -> None:
        """A written value is there or missing, never an older one, even while the error lasts."""
        for region, written in [
            (self.cache.values, self.operation.values),
            (self.files, self.operation.files),
            (self.cache.parts, self.operation.parts),
        ]:
            for key, allowed in written.items():
                value = read(region, key)
                if value not in (*allowed, NO_VALUE):
                    self.wrong.append(f"{key} reads as {_short(value)}")
                self.is_complete &= value == (allowed or (NO_VALUE,))[0]

    def check_rest(self) -> None:
        """All other values are still there."""
        may_miss = self.operation.evicts or self.trouble.cause in _FULL_DISK
        before = [
            (self.cache.values, self.operation.values, _VALUES),
            (self.files, self.operation.files, _FILES),
            (self.cache.parts, self.operation.parts, _PARTS),
        ]
        for region, written, entries in before if not self.operation.first else []:
            for key in entries.keys() - written.keys():
                value = read(region, key)
                if value != entries[key] and not (may_miss and value is NO_VALUE):
                    self.wrong.append(f"{key}, which was not touched, reads as {_short(value)}")

    def check_source(self) -> None:
        """The caller's file can be read, and keeps its name unless it was moved in."""
        self.cache.source.seek(0)
        if self.cache.source.read() != _NEW_FILE:
            self.wrong.append("the caller's file is not as it was")
        stored = [read(self.files, key) for key in self.operation.files]
        if not self.trouble.lasting and not os.path.exists(self.cache.source_path) and _NEW_FILE not in stored:
            self.wrong.append("the caller's file is lost")

    def check_counted(self) -> None:
        """Each failure is counted; a fault that did no harm need not be."""
        if not self.is_complete and not self.cache.counts()[self.trouble.cause]:
            self.wrong.append(f"not counted: {dict(self.cache.counts())}")

    def check_ledger(self) -> None:
        """The ledger is never too low, and equals the disk after a prune."""
        store = self.cache.values.backend.store
        usage, disk = store.usage(), usage_on_disk(self.cache.base_dir)
        if usage.counted == disk.counted and (usage.size < disk.size or usage.entries < disk.entries):
            self.wrong.append(f"the ledger is too low: {usage}, the disk {disk}")
        store.prune()
        self.wrong += difference(store.usage(), self.cache.base_dir)

    def check_goes_on(self) -> None:
        """The next operations work."""
        for key in {"k", *self.operation.values, *self.operation.files, *self.operation.parts}:
            self.cache.values.set(key, _AGAIN)
            self.cache.files.set(key, io.BytesIO(_AGAIN))
            self.cache.parts.set(key, _AGAIN)
            if [read(each, key) for each in (self.cache.values, self.cache.files, self.cache.parts)] != [_AGAIN] * 3:
                self.wrong.append(f"{key} cannot be written: {dict(self.cache.counts())}")

    def check_descriptors(self) -> None:
        """No descriptor of the cache is left open, except the lock file once and the directory once per region."""
        left = []
        for fd in set(os.listdir("/proc/self/fd")) - self.lock_files - self.cache.own_descriptors():
            with contextlib.suppress(FileNotFoundError):  # The descriptor of the listing itself.
                target = os.readlink(f"/proc/self/fd/{fd}")
                if target == os.path.join(self.cache.base_dir, "lock"):
                    self.lock_files.add(fd)
                if target.startswith(self.cache.base_dir):
                    left.append(os.path.relpath(target, self.cache.base_dir))
        if left.count("lock") > 1 or left.count(".") > _REGIONS or set(left) - {"lock", "."}:
            self.wrong.append(f"descriptors: {sorted(left)}")


def _short(value: Any) -> str:
    names = {OLD: "the old value", NEW: "the new value", _FILES["k"]: "the old file", _NEW_FILE: "the new file"}
    return repr(value) if isinstance(value, list) or value is NO_VALUE else names.get(value, repr(value)[:40])


if __name__ == "__main__":
    logging.disable()
    # Otherwise collected objects would close their descriptors among the counted calls.
    gc.disable()
    print(json.dumps(Driver(sys.argv[1], sys.argv[2]).run()))
