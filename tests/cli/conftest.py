"""
The fixtures of the command line's tests: caches, and ways to run a command on them.
"""

from __future__ import annotations

import io
import os
import pty
import shutil
import signal
import subprocess
import tempfile

import pytest

from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.store.store import Store


@pytest.fixture
def store(base_dir):
    """A store on the real clock, which the commands compare with."""
    store = Store(base_dir)
    store.open()
    store.prune()  # Counts its ledger.
    return store


@pytest.fixture
def filled(store):
    """A store with a value and a file."""
    assert store.put(b"value", b"payload")
    assert store.put_file(b"file", io.BytesIO(bytes(BLOCK + 1)))
    flusher.settle_before_fork()  # Otherwise its statistics are written while a test looks at the directory.
    return store


@pytest.fixture
def cached(tmp_path, base_dir):
    """
    Files of a source, of which a filesystem has read some blocks of 64 KiB: their directory, and what it says of each.
    """
    pytest.importorskip("fsspec")
    from dogpile_filesystem.remote import CachedFileSystem  # noqa: PLC0415 - skips the test without the extra

    source = tmp_path / "source"
    (source / "far").mkdir(parents=True)
    fs = CachedFileSystem(target_protocol="file", base_dir=base_dir, block_size="64KiB")
    for name, size in (("some", 300_000), ("whole", 100_000), ("empty", 0), ("far/away", 1000), ("whole too", 5000)):
        (source / name).write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
        fs.cat_file(f"{source}/{name}", *((100_000, 190_000) if name == "some" else ()))
    flusher.settle_before_fork()
    return source


@pytest.fixture
def run(base_dir):
    """Runs a command on the directory, in this process: its exit code, and what it prints on the two streams."""
    from commands import invoke  # noqa: PLC0415 - skips the test where the packages of the command line are missing

    return lambda command, *arguments, directory=base_dir: invoke(command, directory, *arguments)


@pytest.fixture
def start():
    """Starts a command in a process of its own. A process that still runs at the end of the test is killed."""
    from commands import COMMAND  # noqa: PLC0415 - as above

    started = []

    def start(*arguments, **options):
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            # Tests that run in the background of a shell ignore SIGINT, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def terminal():
    """Both ends of a terminal: that of the person, and that of the program."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def parent():
    """A directory that every user can reach, unlike the directories of pytest."""
    path = tempfile.mkdtemp()
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)
