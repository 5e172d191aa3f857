"""
Helper: what the tests of the command line share: the commands, what lies in a directory, and reading from a terminal.
"""

from __future__ import annotations

import errno
import os
import re
import select
import sys
import time
from collections.abc import Callable
from typing import Any

import ondisk
import pytest
from patience import PATIENCE

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from dogpile_filesystem import cli, layout
from dogpile_filesystem.lockfile.ledger import Ledger

#: The command as a program.
COMMAND = [sys.executable, "-m", "dogpile_filesystem"]
#: Every command on a cache, with the arguments that it needs besides a directory.
COMMANDS = {
    "stats": [],
    "ls": [],
    "show": ["a"],
    "check": [],
    "evict": ["--to", "1"],
    "remove": ["a"],
    "clear": ["--yes"],
    "unsent": [],
    "flush": [],
    "discard": ["file:///a", "--yes"],
}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to act as several users")


def invoke(*arguments: object) -> Any:
    """Run a command in this process: its exit code, and what it prints on the two streams."""
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def snapshot(base_dir: object) -> dict[str, object]:
    """Everything below a directory: names, modes, owners, times of change, bytes."""
    found: dict[str, object] = {}
    for directory, directories, names in os.walk(base_dir):
        for path in (directory, *(os.path.join(directory, name) for name in (*directories, *names))):
            seen = os.lstat(path)
            data = None
            if not os.path.isdir(path):
                with open(path, "rb") as file:
                    data = file.read()
            found[path] = seen.st_mode, seen.st_uid, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, data
    return found


def path_of(base_dir: str, kind: int, key: bytes) -> str:
    """The path of a key's entry."""
    name = layout.entry_name(kind, key)
    return f"{base_dir}/values/{name[:2]}/{name}"


def difference(base_dir: str) -> list[str]:
    """How the ledger and the disk differ, and what is left over."""
    return ondisk.difference(Ledger.open(f"{base_dir}/lock").usage(), base_dir)


def read_until(fd: int, pattern: bytes, meanwhile: Callable[[], object] = lambda: None) -> bytes:
    """
    The output of a terminal, up to a pattern.

    :param meanwhile: called again and again until the pattern is there.
    """
    data = b""
    deadline = time.monotonic() + PATIENCE
    while not re.search(pattern, data):
        assert time.monotonic() < deadline, data
        meanwhile()
        if select.select([fd], [], [], 0.1)[0]:
            try:
                data += os.read(fd, 65536)
            except OSError as error:  # Linux: the other end was closed.
                assert error.errno == errno.EIO
                raise AssertionError(data) from error
    return data
