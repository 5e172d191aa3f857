"""
The faults of single files: a byte is changed, or the file is cut off, filled with garbage, or mistaken for another.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from jobs.application import Application
from jobs.caches import SEED, files_below, fill, forked, useless


def _harmed_keys(system: str, master: str, path: str, values: Mapping[str, bytes]) -> dict[str, list[str]]:
    """The keys that cannot be read without a file, by the file's name below the directory."""
    harmed = {}
    for file in files_below(master):
        name = os.path.relpath(file, master)
        shutil.copytree(master, path)
        os.unlink(os.path.join(path, name))

        def read() -> dict[str, int]:
            application = Application(system, path, values)
            return {key: 1 for key in values if not application.open() or application.get(key) != "right"}

        harmed[name] = list(forked(read, 0))
        shutil.rmtree(path)
    return harmed


def _use_harmed(system: str, path: str, values: Mapping[str, bytes], harmed: Collection[str]) -> Counter[str]:
    """
    Use everything in a directory in which a file was harmed.

    :param harmed: the keys that need this file. One miss among them does not count as lost.
    """
    application = Application(system, path, values)
    if not application.open():
        return application.counts + useless(len(values))
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


def flip(base: str, name: str, offset: int, generator: random.Random) -> None:
    with open(f"{base}/{name}", "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ generator.randrange(1, 256)]))


def cut(base: str, name: str, offset: int, _generator: random.Random) -> None:
    os.truncate(f"{base}/{name}", offset)


def fill_with_garbage(base: str, name: str, _offset: int, generator: random.Random) -> None:
    with open(f"{base}/{name}", "r+b") as file:
        file.write(generator.randbytes(os.path.getsize(file.name)))


def mistake_for_next(base: str, name: str, _offset: int, _generator: random.Random) -> None:
    """Overwrite a file with the bytes of another one, of the same length if there is one."""
    files = sorted(files_below(base), key=os.path.getsize)
    shutil.copyfile(files[(files.index(f"{base}/{name}") + 1) % len(files)], f"{base}/{name}")


def _spots(master: str, count: int) -> list[tuple[str, int]]:
    """
    The bytes to harm, as file and offset. All bytes of all files are equally likely. If ``count`` is 0, each file once.
    """
    files = [(os.path.relpath(file, master), os.path.getsize(file)) for file in files_below(master)]
    if not count:
        return [(name, 0) for name, _ in files]
    ends = list(itertools.accumulate(size for _, size in files))
    chosen = sorted(random.Random(SEED).sample(range(ends[-1]), min(count, ends[-1])))
    spots, number = [], 0
    for position in chosen:
        while position >= ends[number]:
            number += 1
        spots.append((files[number][0], position - ends[number] + files[number][1]))
    return spots


def harm_files(harm: _Harm, values: Mapping[str, bytes], count: int, directory: str, system: str) -> Counter[str]:
    """
    Harm one file at a time, use everything, and start again with the directory as it was.

    :param count: the number of bytes to harm, one at a time; 0: each file once.
    """
    master, path = f"{directory}/master", f"{directory}/cache"
    fill(system, master, values)
    harmed = _harmed_keys(system, master, path, values)
    spots = _spots(master, count)
    if harm is cut:
        spots += [(name, 0) for name in harmed]
    generator = random.Random(SEED)
    total: Counter[str] = Counter(cases=len(spots))
    for name, offset in spots:
        shutil.copytree(master, path)
        harm(path, name, offset, generator)
        total += forked(functools.partial(_use_harmed, system, path, values, harmed[name]), len(values))
        shutil.rmtree(path)
    return total
