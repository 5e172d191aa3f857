"""
A host: namespaces of its own for the network, mounts, processes and the name, and a boot id of its own.

Its first process reads from a pipe of this one. So the host ends, with all its processes, when this process ends in any
way, when it is told to, and when it is killed. Its mounts and its end of the network end with it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from pathlib import Path

from two_hosts.programs import Unavailable, find, run, wait_until
from two_hosts.worker import Worker

#: What the first process of a host does, before it waits for its end.
_FIRST = """
mount --bind "$1" /proc/sys/kernel/random/boot_id && hostname "$2" && ip link set lo up && echo up && exec cat
"""

_FLAGS = ("--net", "--mount", "--uts", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")


def verify_namespaces() -> None:
    """
    Make a host's namespaces, to see whether it can be done.

    :raises Unavailable: it cannot.
    """
    try:
        run(["unshare", *_FLAGS, "true"])
    except RuntimeError as error:
        msg = f"cannot make namespaces here: {error}"
        raise Unavailable(msg) from error


class Here:
    """
    Where this process runs, as a host that is neither started nor killed.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.prefix: list[str] = []

    def run(self, *command: object, check: bool = True) -> str:
        """Run a program to its end. See :func:`.programs.run`."""
        return run(command, check=check)

    def end(self) -> None:
        """Nothing: it was not started."""


class Host:
    """
    A host that runs.

    :param name: its host name.
    :param directory: for its files; of this machine's own filesystem.
    :param boot_id: that its kernel seems to have; None: one of its own.
    :ivar mount: the path under which processes of the host find the shared filesystem.
    :ivar port: the name of its port on the bridge; empty as long as it is not attached to a network.
    """

    def __init__(self, name: str, directory: Path, boot_id: str | None = None) -> None:
        self.name, self.port = name, ""
        self.mount = directory / "mount"
        self.mount.mkdir(parents=True, exist_ok=True)
        self._workers: list[Worker] = []
        seen = directory / f"boot_id_{name}"
        seen.write_text(f"{boot_id or uuid.uuid4()}\n")
        self._outer = subprocess.Popen(
            ["unshare", *_FLAGS, "sh", "-c", _FIRST, "sh", str(seen), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._outer.stdout.readline() != "up\n":
            self.kill()
            msg = f"the host {name} cannot be started"
            raise RuntimeError(msg)
        self.pid = _only_child(self._outer.pid)

    @property
    def prefix(self) -> list[str]:
        """What to put before a command to run it on this host."""
        return [find("nsenter") or "nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-p", "-i", "--"]

    def run(self, *command: object, check: bool = True) -> str:
        """Run a program on this host to its end. See :func:`.programs.run`."""
        return run([*self.prefix, *command], check=check)

    def outside(self, path: Path) -> Path:
        """The path under which a process outside of the host finds what the host has mounted at a path."""
        return Path(f"/proc/{self.pid}/root{path}")

    def worker(self) -> Worker:
        """A process on this host that does what it is told. It ends with the host, if it does not before."""
        worker = Worker(self.prefix)
        self._workers.append(worker)
        return worker

    def kill(self) -> None:
        """SIGKILL for all processes of the host, at once. Returns when no worker of it is left."""
        # The first process has its end with this one, and takes all others with it.
        self._outer.kill()
        self._outer.wait()
        for worker in self._workers:
            worker.forget()
        self._workers.clear()

    def end(self) -> None:
        """As :meth:`kill`, and forget it."""
        self.kill()
        for pipe in (self._outer.stdin, self._outer.stdout):
            pipe.close()


def _only_child(pid: int) -> int:
    """The process that another one has started."""
    found: list[int] = []

    def is_there() -> bool:
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name of the program, in parentheses, may have blanks in it.
                if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(path.parent.name))
        return bool(found)

    wait_until(is_there, f"the child of the process {pid}")
    return found[0]
