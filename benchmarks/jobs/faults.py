"""
The same faults for several caches, and what their application then gets. What is counted is told in ``../faults.py``.

Whatever uses a cache that was harmed runs in a fork: a hang or a crash ends with it, and nothing of it is left for the
next case. The forks are made before anything is opened, so that they inherit neither locks nor connections.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import systems
from dogpile.cache.api import NO_VALUE
from systems import System

#: Seconds after which a case hangs.
_PATIENCE = 30
_SEED = "faults"
#: What a call that raised returns.
_RAISED = object()
#: Bytes of a small value, and of a large one: diskcache keeps those of 32 KiB and more in files of their own.
_SMALL_SIZE, _LARGE_SIZE = 400, 40_000
#: Where C functions live that can change a file. The process is killed before each call of one of them.
_ACTING_MODULES = {"posix", "fcntl", "_io", "io", "sqlite3", "_sqlite3"}


def _raw(directory: str) -> System:
    region = systems.open_region("paylogic.raw_filesystem", {"base_dir": directory})

    def get(key: str) -> object:
        file = region.get(key)
        if file is NO_VALUE:
            return file
        with file:
            return file.read()

    return System(get, lambda key, value: region.set(key, io.BytesIO(value)), lambda: None, lambda *_: None, region)


#: How each is opened: with its own default for the bound, and without a time after which entries expire.
SYSTEMS: dict[str, Callable[[str], System]] = {
    "ours": functools.partial(systems.ours, cache_size=1 << 30),
    "raw": _raw,
    "diskcache": functools.partial(systems.diskcache_default, size_limit=1 << 30),
    "cachelib": functools.partial(systems.cachelib, threshold=500),
    "django": functools.partial(systems.django, max_entries=300),
}


def _maintain_diskcache(cache: Any) -> None:
    cache.expire()
    cache.cull()
    cache.check(fix=True)


#: The most thorough cleaning that each offers, given its handle.
_MAINTENANCE: dict[str, Callable[[Any], object]] = {
    "ours": lambda region: region.backend.prune(),
    "raw": lambda region: region.backend.prune(),
    "diskcache": _maintain_diskcache,
}


def _value(key: str, size: int, version: int = 0) -> bytes:
    # Without newlines: diskcache writes line by line, and would be killed at each of them.
    return random.Random(f"{_SEED} {key} {version}").randbytes(size).replace(b"\n", b" ")


def _values(small: int, large: int) -> dict[str, bytes]:
    sizes = {f"small{n}": _SMALL_SIZE for n in range(small)} | {f"large{n}": _LARGE_SIZE for n in range(large)}
    return {key: _value(key, size) for key, size in sizes.items()}


class Application:
    """
    Uses a cache, knows what it set, and counts what it gets.

    :param right: key → the values that are right to get; a miss never counts by itself.
    :ivar counts: ``raised`` and ``wrong``, each also by kind: once for each key, and for each operation on it.
    """

    def __init__(self, system: str, path: str, right: Mapping[str, Collection[bytes]]) -> None:
        self.counts: Counter[str] = Counter()
        self._counted: set[tuple[str, str, str]] = set()
        self._system, self._path = system, path
        self._right = {key: list(values) for key, values in right.items()}
        self._past: dict[str, list[bytes]] = {key: [] for key in right}
        self._cache: System | None = None

    def open(self) -> bool:
        """Open the cache, again if it is open; whether that could be done."""
        cache = self._call("open", "", lambda: SYSTEMS[self._system](self._path))
        self._cache = None if cache is _RAISED else cache
        return self._cache is not None

    @property
    def cache(self) -> System:
        """The opened cache."""
        if self._cache is None:
            msg = "the cache is not open"
            raise RuntimeError(msg)
        return self._cache

    def get(self, key: str) -> str:
        """Read a key: ``right``, ``miss``, ``wrong`` or ``raised``."""
        value = self._call("get", key, lambda: self.cache.get(key))
        if value is _RAISED:
            return "raised"
        if value is None or value is NO_VALUE:
            return "miss"
        if value in self._right[key]:
            return "right"
        self._count("wrong", "get", key, "stale" if value in self._past[key] else "never set")
        return "wrong"

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Read these keys: those that were misses."""
        return {key for key in keys if self.get(key) == "miss"}

    def present(self, keys: Iterable[str]) -> list[str]:
        """Read these keys: those whose value was right."""
        return [key for key in keys if self._right.get(key) and self.get(key) == "right"]

    def set(self, keys: Iterable[str], size: int = _SMALL_SIZE) -> None:
        """Set new values of so many bytes."""
        for key in keys:
            past = self._past.setdefault(key, [])
            past += self._right.get(key, [])
            value = _value(key, size, len(past) + 1)
            self._right[key] = [value]
            self._call("set", key, lambda k=key, v=value: self.cache.set(k, v))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete these."""
        for key in keys:
            self._past[key] += self._right[key]
            self._right[key] = []
            self._call("delete", key, lambda k=key: self.cache.handle.delete(k))

    def works(self, keys: Iterable[str]) -> None:
        """Set these keys, read them again, and count it as ``broken`` if that does not give the new values."""
        keys = list(keys)
        self.set(keys)
        if any(self.get(key) != "right" for key in keys):
            self.counts["broken"] = 1

    def lose(self, number: int) -> None:
        """Count entries as lost."""
        self.counts["lost"] += number

    def _count(self, what: str, operation: str, key: str, kind: str) -> None:
        if (what, operation, key) not in self._counted:
            self._counted.add((what, operation, key))
            self.counts[what] += 1
            self.counts[f"{what}: {operation}, {kind}"] += 1

    def _call(self, operation: str, key: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._count("raised", operation, key, type(error).__name__)
            return _RAISED


def _forked(call: Callable[[], Mapping[str, int]], entries: int) -> Counter[str]:
    """
    What a call counts, made in a fork.

    :param entries: what is lost if the fork is killed by a signal: by what it does, or since it hangs.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with _exiting():
            os.close(reader)
            signal.alarm(_PATIENCE)
            data = json.dumps(call()).encode()
            with open(writer, "wb") as pipe:
                pipe.write(data)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code > 0:
        msg = f"a fork failed, see above, with {code}"
        raise RuntimeError(msg)
    if code < 0:
        kind = f"raised: {signal.Signals(-code).name}"
        return Counter({"raised": 1, kind: 1, "lost": entries, "broken": 1})
    return Counter(json.loads(data))


@contextlib.contextmanager
def _exiting() -> Iterator[None]:
    """End the process, without what its parent has to do at its own end."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _fill(system: str, path: str, values: Mapping[str, bytes]) -> None:
    """Make a directory and fill it, with a process of its own that ends in order."""

    def fill() -> dict[str, int]:
        cache = SYSTEMS[system](path)
        for key, value in values.items():
            cache.set(key, value)
        cache.close()
        return {}

    os.makedirs(path)
    _forked(fill, 0)


def _files(path: str) -> list[str]:
    """All files below a directory, sorted."""
    return sorted(os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names)


# Harmed files


def _harmed_keys(system: str, master: str, path: str, values: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Which keys cannot be read without a file, by the file's name below the directory."""
    harmed = {}
    for file in _files(master):
        name = os.path.relpath(file, master)
        shutil.copytree(master, path)
        os.unlink(os.path.join(path, name))

        def read() -> dict[str, int]:
            application = Application(system, path, {key: [value] for key, value in values.items()})
            return {key: 1 for key in values if not application.open() or application.get(key) != "right"}

        harmed[name] = list(_forked(read, 0))
        shutil.rmtree(path)
    return harmed


def _use_harmed(system: str, path: str, values: Mapping[str, bytes], harmed: Collection[str]) -> Counter[str]:
    """
    Use everything in a directory of which a file was harmed.

    :param harmed: keys that need this file. One of them that is a miss is not counted as lost.
    """
    application = Application(system, path, {key: [value] for key, value in values.items()})
    if not application.open():
        return application.counts + Counter(lost=len(values), broken=1)
    keys = list(values)
    missing = application.missing(keys)
    application.lose(len(missing) - bool(missing & set(harmed)))
    some, others = keys[::2], keys[1::2]
    application.works(some)
    application.lose(len(application.missing(others) - missing))
    application.delete(others)
    application.works(keys)
    return application.counts


#: Harms a file, given the cache's directory, the file's name in it, an offset and a generator.
_Harm = Callable[[str, str, int, random.Random], None]


def _flip(base: str, name: str, offset: int, generator: random.Random) -> None:
    with open(f"{base}/{name}", "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ generator.randrange(1, 256)]))


def _cut(base: str, name: str, offset: int, _generator: random.Random) -> None:
    os.truncate(f"{base}/{name}", offset)


def _fill_with_garbage(base: str, name: str, _offset: int, generator: random.Random) -> None:
    with open(f"{base}/{name}", "r+b") as file:
        file.write(generator.randbytes(os.path.getsize(file.name)))


def _mistake_for_next(base: str, name: str, _offset: int, _generator: random.Random) -> None:
    """Put what another file contains into this one, of the same length if there is one."""
    files = sorted(_files(base), key=os.path.getsize)
    shutil.copyfile(files[(files.index(f"{base}/{name}") + 1) % len(files)], f"{base}/{name}")


def _spots(master: str, count: int) -> list[tuple[str, int]]:
    """
    Bytes to harm: file and offset, drawn from all bytes of all files alike; each file once if ``count`` is 0.
    """
    files = [(os.path.relpath(file, master), os.path.getsize(file)) for file in _files(master)]
    if not count:
        return [(name, 0) for name, _ in files]
    ends = list(itertools.accumulate(size for _, size in files))
    chosen = sorted(random.Random(_SEED).sample(range(ends[-1]), min(count, ends[-1])))
    spots, number = [], 0
    for position in chosen:
        while position >= ends[number]:
            number += 1
        spots.append((files[number][0], position - ends[number] + files[number][1]))
    return spots


def _harm_files(harm: _Harm, values: Mapping[str, bytes], count: int, directory: str, system: str) -> Counter[str]:
    """
    Harm one file at a time, use everything, and start over with the directory as it was.

    :param count: how many bytes are harmed, each for itself; 0: each file once.
    """
    master, path = f"{directory}/master", f"{directory}/cache"
    _fill(system, master, values)
    harmed = _harmed_keys(system, master, path, values)
    spots = _spots(master, count)
    if harm is _cut:
        spots += [(name, 0) for name in harmed]
    generator = random.Random(_SEED)
    total: Counter[str] = Counter(cases=len(spots))
    for name, offset in spots:
        shutil.copytree(master, path)
        harm(path, name, offset, generator)
        total += _forked(functools.partial(_use_harmed, system, path, values, harmed[name]), len(values))
        shutil.rmtree(path)
    return total


# Killed processes


def _count_calls(kill_before: int = 0) -> list[int]:
    """
    Count this process's calls from now on that can change a file, and have it killed before its so-manyeth.

    :returns: a list that holds the number.
    """
    made = [0]

    def count(_frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and _can_act(function):
            made[0] += 1
            if made[0] == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    return made


def _can_act(function: Any) -> bool:
    module = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
    return module in _ACTING_MODULES


def _set(system: str, path: str, key: str, value: bytes, kill_before: int, *, opening: bool) -> dict[str, int]:
    """Set a key and have the process killed before that call; else tell how many it made."""
    made = _count_calls(kill_before) if opening else [0]
    cache = SYSTEMS[system](path)
    if not opening:
        made = _count_calls(kill_before)
    cache.set(key, value)
    sys.setprofile(None)
    return {"calls": made[0]}


def _use_after_kill(system: str, path: str, values: Mapping[str, bytes], key: str, value: bytes) -> Counter[str]:
    """Use everything after a process was killed that set a key. ``left`` counts files that stay if all is deleted."""
    right = {k: [v] for k, v in values.items()}
    right[key] = [*right.get(key, []), value]
    application = Application(system, path, right)
    if not application.open():
        return application.counts + Counter(lost=len(values), broken=1)
    application.lose(len(application.missing(right) - {key}))
    application.works(right)
    application.delete(right)
    application.counts["left"] = len(_files(path))
    if maintain := _MAINTENANCE.get(system):
        maintain(application.cache.handle)
    application.counts["left after maintenance"] = len(_files(path))
    return application.counts


def _kill(directory: str, system: str) -> Counter[str]:
    """Kill a process at each of its steps: a new key, one that is there, a small value, a large one, in a new cache."""
    values = _values(6, 2)
    sizes = {"new": _SMALL_SIZE, "small0": _SMALL_SIZE, "new-large": _LARGE_SIZE, "large0": _LARGE_SIZE}
    total: Counter[str] = Counter()
    for key, size in sizes.items():
        total += _kill_each(f"{directory}/{key}", system, values, key, _value(key, size, 1))
    return total + _kill_each(f"{directory}/first", system, {}, "first", _value("first", _SMALL_SIZE))


def _kill_each(directory: str, system: str, values: Mapping[str, bytes], key: str, value: bytes) -> Counter[str]:
    master, path = f"{directory}/master", f"{directory}/cache"
    if values:
        _fill(system, master, values)
    else:
        os.makedirs(master)

    def case(kill_before: int) -> tuple[int, Counter[str]]:
        shutil.copytree(master, path)
        done = _forked(functools.partial(_set, system, path, key, value, kill_before, opening=not values), 0)
        used = _forked(functools.partial(_use_after_kill, system, path, values, key, value), len(values))
        shutil.rmtree(path)
        return done["calls"], used

    calls, undisturbed = case(0)
    total: Counter[str] = Counter()
    for number in _some_of(calls):
        made, counts = case(number)
        if not made:
            for left in ("left", "left after maintenance"):
                counts[left] = max(0, counts[left] - undisturbed[left])
            total += counts + Counter(cases=1)
    return total


def _some_of(calls: int) -> list[int]:
    """The numbers from 1; of more than 300 the first and the last hundred, and about a hundred in between."""
    numbers = range(1, calls + 1)
    return sorted({*numbers[:100], *numbers[-100:], *numbers[:: max(1, calls // 100)]})


# Filesystems


class SkippedError(Exception):
    """A fault that cannot be made here."""


@contextlib.contextmanager
def _tmpfs(path: str, size: str) -> Iterator[None]:
    """A tmpfs of its own."""
    if os.geteuid():
        raise SkippedError("only root can mount a tmpfs")
    os.makedirs(path)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},huge=never", "tmpfs", path], check=False, stderr=subprocess.PIPE
    )
    if done.returncode:
        raise SkippedError(done.stderr.decode().strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def _remount(path: str, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


def _fill_disk(directory: str, system: str) -> Counter[str]:
    """Set three times as much as fits on the disk, new keys and old ones; then let there be room again."""
    path = f"{directory}/disk"
    with _tmpfs(path, "3m"):
        return _forked(lambda: _use_full(system, path), 0)


def _use_full(system: str, path: str) -> Counter[str]:
    application = Application(system, f"{path}/cache", {})
    os.mkdir(f"{path}/cache")
    application.open()
    # Fewer than Django keeps by default; about half of them fill the disk.
    keys = [f"k{number}" for number in range(250)]
    sizes = itertools.cycle((10_000, _LARGE_SIZE))

    def kept(some: Iterable[str]) -> int:
        number = 0
        for key in some:
            application.set([key], next(sizes))
            number += application.get(key) == "right"
        return number

    kept(keys[:150])
    there = application.present(keys)
    counts = Counter({"entries when full": len(there), "new when full": 100, "old when full": len(there)})
    counts["new kept"] = kept(keys[150:])
    counts["entries after"] = len(application.present(keys))
    counts["old kept"] = kept(there)
    application.delete(keys[::2])
    _remount(path, "size=64m")
    application.works(keys)
    return application.counts + counts + Counter(cases=1)


def _read_only(directory: str, system: str) -> Counter[str]:
    """Open, read, overwrite, add and delete on a filesystem that is read-only; then let it be writable again."""
    path = f"{directory}/disk"
    values = _values(20, 4)
    with _tmpfs(path, "64m"):
        _fill(system, f"{path}/cache", values)
        _remount(path, "ro")
        return _forked(lambda: _use_read_only(system, path, values), len(values))


def _use_read_only(system: str, path: str, values: Mapping[str, bytes]) -> Counter[str]:
    application = Application(system, f"{path}/cache", {key: [value] for key, value in values.items()})
    keys = list(values)
    if application.open():
        application.lose(len(application.missing(keys)))
        overwritten, deleted, new = keys[::3], keys[1::3], [f"new{number}" for number in range(8)]
        application.set([*overwritten, *new])
        application.delete(deleted)
        application.missing([*overwritten, *new, *deleted])
        _remount(path, "rw")
    else:
        application.lose(len(keys))
        _remount(path, "rw")
        if not application.open():
            return application.counts + Counter(cases=1, broken=1)
    application.works(keys)
    application.counts["cases"] = 1
    return application.counts


def _delete_directory(directory: str, system: str) -> Counter[str]:
    """
    Delete the directory while it is in use. Whether it works then is a question to a second process, which reads what
    the first one set after that.
    """
    path = f"{directory}/cache"
    values = _values(20, 4)
    _fill(system, path, values)

    def use() -> Counter[str]:
        application = Application(system, path, {key: [value] for key, value in values.items()})
        application.open()
        application.missing(values)
        shutil.rmtree(path)
        application.missing(values)
        application.works(values)
        return application.counts + _forked(lambda: read_elsewhere(application), len(values))

    def read_elsewhere(application: Application) -> Counter[str]:
        application.counts.clear()
        if not application.open():
            return application.counts + Counter(lost=len(values), broken=1)
        missing = application.missing(values)
        return application.counts + Counter(lost=len(missing), broken=bool(missing))

    counts = _forked(use, len(values)) + Counter(cases=1)
    counts["broken"] = min(1, counts["broken"])
    return counts


_SMALL, _LARGE, _BOTH = _values(20, 0), _values(0, 4), _values(20, 4)
#: What is done, given a directory and a system, by the name that results use.
FAULTS: dict[str, Callable[[str, str], Counter[str]]] = {
    "flip-small": functools.partial(_harm_files, _flip, _SMALL, 1000),
    "flip-large": functools.partial(_harm_files, _flip, _LARGE, 200),
    "cut-small": functools.partial(_harm_files, _cut, _SMALL, 300),
    "cut-large": functools.partial(_harm_files, _cut, _LARGE, 100),
    "garbage": functools.partial(_harm_files, _fill_with_garbage, _BOTH, 0),
    "mistaken": functools.partial(_harm_files, _mistake_for_next, _BOTH, 0),
    "deleted": _delete_directory,
    "full": _fill_disk,
    "read-only": _read_only,
    "kill": _kill,
}


def fault(directory: str, fault: str, system: str) -> dict[str, Any]:
    """
    Put one fault to one system.

    :returns: counts by name; or ``skipped``: why there are none.
    """
    logging.disable()
    warnings.simplefilter("ignore")
    warm_up = f"{directory}/warm-up"
    os.mkdir(warm_up)
    # What is imported and computed once is done before the forks.
    cache = SYSTEMS[system](warm_up)
    cache.set("key", b"value")
    cache.close()
    try:
        return dict(FAULTS[fault](directory, system))
    except SkippedError as reason:
        return {"skipped": str(reason)}
