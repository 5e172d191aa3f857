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
from collections.abc import Callable, Iterator, Mapping
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
    :ivar directory: where the server has it on this machine; None: nowhere.
    """

    protocol: str
    options: Mapping[str, Any]
    root: str
    directory: Path | None = None


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

    def command(port: int) -> list[str]:
        (directory / "sshd_config").write_text(_SSHD.format(port=port, directory=directory))
        return [program, "-D", "-e", "-f", str(directory / "sshd_config")]

    with _at_free_port(directory, command, "Server listening on") as port:
        yield {
            "host": "127.0.0.1",
            "port": port,
            "username": getpass.getuser(),
            "key_filename": str(directory / "user"),
            "allow_agent": False,
            "look_for_keys": False,
        }


@contextlib.contextmanager
def ftpd(directory: Path) -> Iterator[dict[str, Any]]:
    """FTP, by pyftpdlib: the arguments of fsspec's filesystem ``ftp``. It serves what is below ``root`` there."""
    pytest.importorskip("pyftpdlib")
    command = [sys.executable, "-m", "pyftpdlib", "-i", "127.0.0.1", "-p", "0", "-w", "-d", str(_root(directory))]
    with _running(directory, command) as (process, log):
        yield {"host": "127.0.0.1", "port": int(_until(process, log, r"FTP server on 127\.0\.0\.1:(\d+)"))}


@contextlib.contextmanager
def webdav(directory: Path) -> Iterator[str]:
    """WebDAV, by wsgidav: its URL. It serves what is below ``root`` there."""
    pytest.importorskip("wsgidav")
    pytest.importorskip("cheroot")
    program = [sys.executable, "-m", "wsgidav.server.server_cli", "--no-config", "--auth", "anonymous"]
    program += ["--host", "127.0.0.1", "--root", str(_root(directory))]
    with _at_free_port(directory, lambda port: [*program, "--port", str(port)], "Serving on") as port:
        yield f"http://127.0.0.1:{port}"


def _root(directory: Path) -> Path:
    root = directory / "root"
    root.mkdir()
    return root


@contextlib.contextmanager
def _at_free_port(directory: Path, command: Callable[[int], list[str]], listening: str) -> Iterator[int]:
    """
    Start a server at a free port. It cannot choose one itself, and another process may be faster.

    :param listening: what it logs when it has the port.
    """
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with _running(directory, command(port)) as (process, log):
            if _until(process, log, rf"({listening}|Address already in use)") == listening:
                yield port
                return
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
