"""
The filesystems, each opened with two hosts, from wherever it can run.

What NFS needs is in few kernels. So there a virtual machine runs the hosts, and this process asks it, by files in a
directory that both see. All others run where this process runs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from patience import PATIENCE

from two_hosts import uml
from two_hosts.client import cut_machines
from two_hosts.host import verify_namespaces
from two_hosts.mounted import KINDS, Mounted
from two_hosts.programs import Unavailable, find, install, run
from two_hosts.scenarios import SCENARIOS

_DISK = 2 << 30
_FUSE = ("moosefs", "glusterfs")


class Filesystem(Protocol):
    """What runs scenarios on a filesystem."""

    def run(self, scenario: str, **parameters: object) -> dict[str, Any]:
        """
        Run a function of ``scenarios``.

        :return: what it returns.
        """


class _Here:
    """The hosts run on this kernel."""

    def __init__(self, mounted: Mounted) -> None:
        self._mounted = mounted

    def run(self, scenario: str, **parameters: object) -> dict[str, Any]:
        return SCENARIOS[scenario](self._mounted, **parameters)


class _Inside:
    """The hosts run in a virtual machine."""

    def __init__(self, machine: uml.VirtualMachine, directory: Path, wire: socket.socket) -> None:
        self._machine = machine
        self._directory = directory
        self._wire = wire
        self._count = 0

    def run(self, scenario: str, **parameters: object) -> dict[str, Any]:
        if scenario == "machine_cuts":
            return cut_machines(self._ask, self._directory, self._wire, **parameters)
        return self._ask(scenario, **parameters)()

    def _ask(self, scenario: str, **parameters: object) -> Callable[[], dict[str, Any]]:
        """Begin with a scenario; what is returned waits for the end."""
        self._count += 1
        path = self._directory / f"{self._count}.asked"
        path.with_suffix(".new").write_text(json.dumps([scenario, parameters]))
        path.with_suffix(".new").rename(path)
        return functools.partial(self._answer, path.with_suffix(".answer"))

    def _answer(self, path: Path) -> dict[str, Any]:
        deadline = time.monotonic() + 3 * PATIENCE
        while not path.exists():
            if not self._machine.runs() or time.monotonic() > deadline:
                msg = f"the virtual machine does not answer: {self._machine.log.read_text()[-3000:]}"
                raise RuntimeError(msg)
            time.sleep(0.05)
        found: dict[str, Any] = json.loads(path.read_text())
        if "error" in found:
            raise RuntimeError(found["error"])
        return found


@contextlib.contextmanager
def opened(name: str) -> Iterator[Filesystem]:
    """
    A filesystem with two hosts. What it needs is installed, and everything is taken down at the end.

    :param name: ``moosefs``, ``glusterfs``, ``nfs``, or ``ext4`` for the filesystem of the directory for temporary
     files.
    :raises Unavailable: it cannot run here. The message says what is missing.
    """
    install({"unshare": "util-linux", "nsenter": "util-linux", "hostname": "hostname"} | KINDS[name].PACKAGES)
    verify_namespaces()
    if name in _FUSE and not os.path.exists("/dev/fuse"):
        msg = "needs FUSE: there is no /dev/fuse here"
        raise Unavailable(msg)
    directory = Path(tempfile.mkdtemp(prefix="two-hosts-"))
    try:
        if name == "nfs":
            with _in_virtual_machine(directory) as inside:
                yield inside
        else:
            with contextlib.closing(Mounted(name, directory)) as mounted:
                yield _Here(mounted)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _in_virtual_machine(directory: Path) -> Iterator[_Inside]:
    install(uml.PACKAGES)
    disk = directory / "disk"
    disk.touch()
    os.truncate(disk, _DISK)
    run([find("mkfs.ext4"), "-q", disk])
    command = [sys.executable, "-m", "two_hosts.inside", "nfs", directory]
    with uml.wire() as (near, far):
        machine = uml.VirtualMachine("nfs", directory, command, near, disk)
        try:
            yield _Inside(machine, directory, far)
        finally:
            machine.kill()
