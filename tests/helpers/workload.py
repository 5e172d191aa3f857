"""
Helper: what processes do with a cache: random work on both backends, in which every value that is got is checked, and
the creation of values that are logged.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
import time
import traceback
from collections.abc import Callable

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

KEYS = [f"key {number}" for number in range(120)]
_DIGEST_SIZE = hashlib.sha256().digest_size


class WrongValue(Exception):
    """A value that was not written under the requested key."""


def seal(key: str, body: bytes) -> bytes:
    """Returns a value that shows which key it belongs to."""
    return hashlib.sha256(key.encode() + body).digest() + body


def check(key: str, value: bytes) -> None:
    if seal(key, value[_DIGEST_SIZE:]) != value:
        msg = f"{len(value)} bytes under {key}"
        raise WrongValue(msg)


class Workload:
    """
    Two regions on a directory, for any number of threads.

    :param sources: a directory for files that are moved in, on the same filesystem.
    """

    def __init__(self, base_dir: str, sources: str, **arguments: object) -> None:
        arguments["base_dir"] = base_dir
        self._sources = sources
        self.values = make_region().configure("paylogic.filesystem", arguments=arguments)
        self.files = make_region().configure("paylogic.raw_filesystem", arguments={**arguments, "file_movable": True})
        self._work = {
            self.get: 30,
            self.get_file: 20,
            self.get_or_create: 12,
            self.get_or_create_file: 6,
            self.set: 12,
            self.set_copied: 8,
            self.set_moved: 8,
            self.delete: 6,
            self.prune: 0.5,
            self.flush: 0.5,
        }

    def step(self, rng: random.Random, thread: str) -> None:
        """
        Do one thing.

        :param thread: names the caller, among all processes.
        """
        (act,) = rng.choices(list(self._work), list(self._work.values()))
        act(rng, rng.choice(KEYS), thread)

    def get(self, rng: random.Random, key: str, thread: str) -> None:
        value = self.values.get(key)
        if value is not NO_VALUE:
            check(key, value)

    def get_file(self, rng: random.Random, key: str, thread: str) -> None:
        file = self.files.get(key)
        if file is not NO_VALUE:
            with file:
                check(key, file.read())

    def get_or_create(self, rng: random.Random, key: str, thread: str) -> None:
        check(key, self.values.get_or_create(key, lambda: _value(rng, key)))

    def get_or_create_file(self, rng: random.Random, key: str, thread: str) -> None:
        with self.files.get_or_create(key, lambda: io.BytesIO(_value(rng, key))) as file:
            check(key, file.read())

    def set(self, rng: random.Random, key: str, thread: str) -> None:
        self.values.set(key, _value(rng, key))

    def set_copied(self, rng: random.Random, key: str, thread: str) -> None:
        self.files.set(key, io.BytesIO(_value(rng, key)))

    def set_moved(self, rng: random.Random, key: str, thread: str) -> None:
        path = f"{self._sources}/{thread}"
        # A killed process of the same name left this file. Its content may be in the cache by now, and must not be
        # changed.
        if os.path.lexists(path):
            os.unlink(path)
        with open(path, "x+b") as file:
            file.write(_value(rng, key, most=4000))
            file.seek(0)
            self.files.set(key, file)

    def delete(self, rng: random.Random, key: str, thread: str) -> None:
        rng.choice([self.values, self.files]).delete(key)

    def prune(self, rng: random.Random, key: str, thread: str) -> None:
        self.values.backend.prune()

    def flush(self, rng: random.Random, key: str, thread: str) -> None:
        self.files.backend.store.flush()


def _value(rng: random.Random, key: str, most: int = 20_000) -> bytes:
    # Half of them are small, and are written in place.
    return seal(key, rng.randbytes(rng.randrange(1, rng.choice((most, 3_500)))))


def in_threads(count: int, act: Callable[[int], None], tell: Callable[[str], None]) -> None:
    """Calls ``act(number)`` in this many threads until all have ended, and reports their exceptions."""

    def run(number: int) -> None:
        try:
            act(number)
        except BaseException:
            tell(traceback.format_exc())

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def create_all(base_dir: str, log: str, keys: list[str]) -> None:
    """Asks a region of its own for every key, and logs each one that this process creates."""

    def create(key: str) -> str:
        with open(log, "a") as file:
            file.write(key + "\n")
        time.sleep(0.005)
        return f"value of {key}"

    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    for key in keys:
        assert region.get_or_create(key, create, creator_args=((key,), {})) == f"value of {key}"
