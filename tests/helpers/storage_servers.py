"""
Helper: real storage servers on the loopback, each a process with a directory of its own, stopped by its pid.

A test that needs one is skipped if its program is not installed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from patience import PATIENCE
from serving import wait_for

_SSHD = """
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
Subsystem sftp internal-sftp
"""


class Storage(NamedTuple):
    """
    A place on a storage server.

    :ivar protocol: of its filesystem of fsspec.
    :ivar options: of this filesystem.
    :ivar root: the path below which a test puts its files; empty, and the test's own.
    """

    protocol: str
    options: Mapping[str, Any]
    root: str


@contextlib.contextmanager
def moto(directory: Path) -> Iterator[str]:
    """S3, by moto: the URL of its endpoint."""
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _running(directory, command) as (process, log):
        yield _until(process, log, r"Running on (http://127\.0\.0\.1:\d+)")


@contextlib.contextmanager
def sshd(directory: Path) -> Iterator[dict[str, Any]]:
    """SFTP, by OpenSSH: the arguments of fsspec's own filesystem ``sftp``, with keys that are thrown away."""
    program = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))
    if program is None:
        pytest.skip("needs the program sshd: install openssh-server")
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)]
        subprocess.run(keygen, check=True)
    if os.geteuid() == 0:
        # Where sshd separates its privileges; the start script of a system makes it.
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    with contextlib.ExitStack() as stack:
        port = _start_sshd(stack, program, directory)
        yield {
            "host": "127.0.0.1",
            "port": port,
            "username": getpass.getuser(),
            "key_filename": str(directory / "user"),
            "allow_agent": False,
            "look_for_keys": False,
        }


def _start_sshd(stack: contextlib.ExitStack, program: str, directory: Path) -> int:
    """Start it at a free port. It cannot choose one itself, and another process may be faster."""
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (directory / "sshd_config").write_text(_SSHD.format(port=port, directory=directory))
        command = [program, "-D", "-e", "-f", str(directory / "sshd_config")]
        process, log = stack.enter_context(_running(directory, command))
        if _until(process, log, rf"(Server listening on 127\.0\.0\.1 port {port}|Address already in use)")[0] == "S":
            return port
    raise AssertionError("no free port")


@contextlib.contextmanager
def _running(directory: Path, command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = directory / "log"
    with log.open("wb") as opened:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=opened, stderr=opened, cwd=directory)
    try:
        yield process, log
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _until(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    """Wait until a server has logged something, and return the first group of it."""

    def look() -> re.Match[str] | None:
        found = re.search(pattern, log.read_text())
        assert found or process.poll() is None, log.read_text()
        return found

    return wait_for(look)[1]
