"""
A virtual machine: user-mode Linux, which shows the files of this machine, and runs one program in place of ``init``.

It is one process of a namespace of its own, with the processes that it makes. So it ends when it is killed, and when
this process ends in any way, with all that runs in it. That is a power cut: what it had not sent is lost.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from two_hosts.programs import Unavailable, find

PACKAGES = {"linux.uml": "user-mode-linux", "modprobe": "kmod", "ip": "iproute2", "mkfs.ext4": "e2fsprogs"}

#: What is there before the program runs. The modules of Debian's package are found by their version alone.
_INIT = """#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TMPDIR=/tmp
mount -t proc proc /proc; mount -t sysfs sysfs /sys
for place in /run /mnt /var/lib/nfs; do mount -t tmpfs tmpfs $place; done
mkdir -p /dev/shm /run/m/lib/modules; mount -t tmpfs tmpfs /dev/shm
ln -s /usr/lib/uml/modules/$(uname -r) /run/m/lib/modules/
ip link set lo up
{command} >{directory}/{name}.log 2>&1
echo o >/proc/sysrq-trigger; sleep 60
"""


@contextlib.contextmanager
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a wire between two virtual machines."""
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield ends[0], ends[1]


class VirtualMachine:
    """
    A virtual machine that runs.

    :param name: of its files in a directory: the program's output goes to ``<name>.log``.
    :param command: the program, which runs as root.
    :param disk: an image, which the machine sees as ``/dev/ubda``; None: none.
    :param wire: one of a pair of sockets for datagrams, which the machine sees as the network device ``vec0``.
    :raises Unavailable: there is no user-mode Linux for this machine.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        command: Sequence[object],
        wire: socket.socket,
        disk: Path | None = None,
    ) -> None:
        if platform.machine() != "x86_64" or find("linux.uml") is None:
            msg = f"user-mode Linux is not there for {platform.machine()}"
            raise Unavailable(msg)
        self.log = directory / f"{name}.log"
        init = directory / f"{name}.init"
        words = " ".join(shlex.quote(str(word)) for word in command)
        environment = f"PYTHONPATH={shlex.quote(os.pathsep.join(filter(None, sys.path)))} PYTHONDONTWRITEBYTECODE=1"
        init.write_text(_INIT.format(command=f"{environment} {words}", directory=directory, name=name))
        init.chmod(0o700)
        kernel = [find("linux.uml"), "mem=768M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]
        devices = ["con=null", "con0=null,fd:1", "quiet", f"vec0:transport=fd,fd={wire.fileno()},depth=64"]
        devices += [f"ubd0={disk}"] if disk else []
        self._console = (directory / f"{name}.console").open("wb")
        self._process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                *kernel,
                f"init={init}",
                *devices,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            pass_fds=[wire.fileno()],
            # It keeps its memory in a file there, which has no name any more.
            env=os.environ | {"TMPDIR": "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(directory)},
        )

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Cut its power."""
        # `unshare` takes the first process of its namespace with it, and that one all others.
        self._process.kill()
        self._process.wait()
        self._console.close()
