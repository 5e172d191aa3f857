"""
Helper: faults at a chosen call of the operating system.

:class:`Faults` wraps the functions through which the package reaches the filesystem, in ``os``, in ``fcntl`` and
wherever the package has imported them. It counts their calls, and at the n-th one something happens: the process is
killed, half of the bytes are written, an error is raised. What the standard library calls in ``os`` is counted too;
what it does in C, as the buffers of ``open``, is not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_LOCKING = frozenset({"fcntl", "flock", "lockf"})
_OPENING = frozenset({"open", "scandir", "listdir"})
_BETWEEN_NAMES = frozenset({"rename", "replace", "link", "copy_file_range"})
_WRITING = frozenset({"write", "writev", "pwrite", "pwritev", "copy_file_range", "sendfile"})
#: Calls that do not change the disk.
_LOOKING = _LOCKING | {
    *{"access", "close", "fstat", "fstatvfs", "listdir", "lseek", "lstat", "posix_fadvise", "pread", "preadv", "read"},
    *{"readdir", "readlink", "readv", "scandir", "stat", "statvfs"},
}
#: Calls that need no room and work on a full disk.
_FREEING = frozenset({"chmod", "chown", "fchmod", "fchown", "fdatasync", "fsync", "remove", "rmdir", "unlink", "utime"})
_OTHERS = {"ftruncate", "mkdir", "open", "posix_fallocate", "symlink", "truncate"}
_NAMES = (_LOOKING | _FREEING | _BETWEEN_NAMES | _WRITING | _OTHERS) - _LOCKING - {"readdir"}
#: A record of the ledger: one aligned word is neither written nor read in parts by the kernel.
_WORD = 8

_WRAPPED: dict[Any, str] = {getattr(os, name): name for name in _NAMES if hasattr(os, name)}
_WRAPPED |= {getattr(fcntl, name): name for name in (*_LOCKING, "ioctl")}


class Call(NamedTuple):
    """
    A call of one of the functions.

    :ivar place: the instructions of the package from which it was made; recorded where there is no fault.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: tuple[tuple[str, int], ...] = ()

    def go(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    def as_data(self) -> Call:
        """The call as it can be sent to another process, which cannot make it."""
        # What a call reads into is its caller's, and may be gone by now.
        args = [None if isinstance(each, list) and self.name in _LOOKING else _as_data(each) for each in self.args]
        return self._replace(function=len, args=tuple(args), kwargs={})

    def __str__(self) -> str:
        """The call, with the last parts of paths."""
        paths = [os.path.basename(argument) for argument in self.args if isinstance(argument, str)]
        return f"{self.name}({', '.join(paths)})"

    @property
    def changes(self) -> bool:
        """Returns whether the call may change the disk."""
        if self.name == "open":
            return bool(self.args[1] & (os.O_CREAT | os.O_TRUNC))
        return self.name not in _LOOKING

    @property
    def length(self) -> int:
        """Returns the number of bytes to write, or 0 for other calls."""
        if self.name not in _WRITING:
            return 0
        data = self.args[2 if self.name == "copy_file_range" else 3 if self.name == "sendfile" else 1]
        return data if isinstance(data, int) else sum(map(len, data)) if isinstance(data, list) else len(data)


Fault = Callable[[Call], Any]


def kill(_: Call) -> None:
    """Kills the process before the call."""
    os.kill(os.getpid(), signal.SIGKILL)


def half(call: Call) -> Any:
    """Only half of the bytes are written or read, which is not an error."""
    half_length = call.length // 2
    match call.name, call.args:
        case "read", (fd, length):
            return call.function(fd, min(length, os.fstat(fd).st_size) // 2)
        case "pread", (fd, length, at):
            return call.function(fd, -(-min(length, max(0, os.fstat(fd).st_size - at)) // 2), at)
        case "preadv", (fd, [buffer], at):
            return call.function(fd, [buffer[: -(-len(buffer) // 2)]], at)
        case "copy_file_range", (source, target, _, *rest):
            return call.function(source, target, half_length, *rest)
        case "sendfile", (target, source, offset, _):
            return call.function(target, source, offset, half_length)
        case "writev" | "pwritev", (fd, parts, *rest):
            return call.function(fd, [b"".join(parts)[:half_length]], *rest)
        case _, (fd, data, *rest):
            return call.function(fd, data[:half_length], *rest)


def half_and_kill(call: Call) -> None:
    """Half of the bytes are written, and then the process is killed."""
    half(call)
    kill(call)


def fail(code: int) -> Fault:
    """The call raises an ``OSError``. A ``close`` that fails has closed even so."""

    def fault(call: Call) -> None:
        if call.name == "close":
            call.go()
        raise OSError(code, os.strerror(code))

    return fault


def can_be_halved(call: Call) -> bool:
    return call.length > _WORD


def can_be_short(call: Call) -> bool:
    is_word = call.name == "pread" and call.args[1] <= _WORD
    return can_be_halved(call) or (call.name in ("read", "pread", "preadv") and not is_word)


def can_fail_with(code: int) -> Callable[[Call], bool]:
    """
    Which calls a kernel may let fail with this errno. Of a lock, EACCES says no more than that it is held; a position
    in a file can always be set, but to look for a hole is to read from the disk.
    """

    def can_fail(call: Call) -> bool:
        if call.name == "lseek":
            return call.args[2] == os.SEEK_HOLE and code == errno.EIO
        if code in (errno.ENOSPC, errno.EDQUOT):
            return call.changes and call.name not in _FREEING
        if code == errno.EROFS:
            return call.changes
        if code == errno.EMFILE:
            return call.name in _OPENING
        if code == errno.EXDEV:
            return call.name in _BETWEEN_NAMES
        return code != errno.EACCES or call.name not in _LOCKING

    return can_fail


class Faults:
    """
    A context in which calls of this thread are counted, and one or all from one on meet a fault.

    :param at: which call, from 1 on; 0: none.
    :param lasting: whether all behind it meet the fault too.
    :param only: which calls are counted.
    :ivar calls: those counted.
    :ivar struck: those that met the fault.
    """

    def __init__(
        self,
        fault: Fault = kill,
        at: int = 0,
        *,
        lasting: bool = False,
        only: Callable[[Call], bool] = lambda _: True,
    ) -> None:
        self.calls: list[Call] = []
        self.struck: list[Call] = []
        self._fault = fault
        self._at = at
        self._lasting = lasting
        self._only = only
        self._patched: list[tuple[Any, str, Any]] = []

    def __enter__(self):
        self._thread = threading.get_ident()
        package = [module for name, module in sys.modules.items() if name.partition(".")[0] == "dogpile_filesystem"]
        for module in [os, fcntl, *package]:
            for name, function in list(vars(module).items()):
                if isinstance(function, types.BuiltinFunctionType) and function in _WRAPPED:
                    self._patched.append((module, name, function))
                    setattr(module, name, self._wrap(function))
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, function in self._patched:
            setattr(module, name, function)

    def meet(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Makes a call, or lets it meet the fault."""
        call = Call(name, function, args, kwargs)
        if threading.get_ident() != self._thread or not self._only(call):
            return call.go()
        self.calls.append(call if self._at else call._replace(place=_place()))
        number = len(self.calls)
        if not self._at or (number < self._at if self._lasting else number != self._at):
            return call.go()
        self.struck.append(call)
        return self._fault(call)

    def _wrap(self, function: Any) -> Any:
        name = _WRAPPED[function]
        if name == "scandir":
            return lambda *args: _Scan(self, self.meet(name, function, *args))
        return lambda *args, **kwargs: self.meet(name, function, *args, **kwargs)


class _Scan:
    """The result of ``scandir``: its steps, and the ``stat`` of its entries, are calls as well."""

    def __init__(self, faults: Faults, scan: Any) -> None:
        self._faults = faults
        self._scan = scan
        self.close = scan.close

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._scan.close()

    def __iter__(self) -> Iterator[_Found]:
        return self

    def __next__(self) -> _Found:
        return _Found(self._faults, self._faults.meet("readdir", self._scan.__next__))


class _Found:
    def __init__(self, faults: Faults, found: Any) -> None:
        self._faults = faults
        self._found = found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)

    def __fspath__(self) -> str:
        return self._found.path

    def stat(self, **kwargs: Any) -> Any:
        return self._faults.meet("stat", self._found.stat, **kwargs)


def _as_data(argument: Any) -> Any:
    if isinstance(argument, list):
        return [bytes(part) for part in argument]
    return argument if isinstance(argument, str | bytes | int | float | tuple | None) else str(argument)


def _place() -> tuple[tuple[str, int], ...]:
    place = []
    frame = sys._getframe(2)
    while frame is not None:
        if str(frame.f_globals.get("__package__")).partition(".")[0] == "dogpile_filesystem":
            place.append((frame.f_code.co_filename, frame.f_lasti))
        frame = frame.f_back
    return tuple(place)


def thinned(calls: list[Call], most: int) -> list[int]:
    """Returns the numbers of the first calls from each place, since all 256 shards are handled alike."""
    seen: Counter[object] = Counter()
    numbers = []
    for number, call in enumerate(calls, 1):
        seen[call.name, call.place] += 1
        if seen[call.name, call.place] <= most:
            numbers.append(number)
    return numbers


def after_changes(calls: list[Call], most: int) -> list[int]:
    """Returns those thinned calls before which a kill leaves a state that one call earlier does not."""
    return [1, *(number + 1 for number in thinned(calls, most) if calls[number - 1].changes and number < len(calls))]
