"""
A third host: a virtual machine of its own, whose power is cut while it writes.

As a program it is what runs in that machine: it mounts the server's export, stores a value, says so, and goes on.
"""

from __future__ import annotations

import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from two_hosts.jobs import mix, set_one
from two_hosts.network import SERVER
from two_hosts.programs import find, repeat, run, wait_until
from two_hosts.uml import VirtualMachine

_KEYS = 40
_MODULES = ("nfs", "nfsv4")


def cut_machines(
    ask: Callable[..., Callable[[], dict[str, Any]]],
    directory: Path,
    wire: socket.socket,
    times: int,
    seconds: float = 1.0,
) -> dict[str, Any]:
    """
    A virtual machine that writes is killed, again and again, while B reads all values.

    :param ask: begins with a scenario where B is.
    :param directory: for the files of the machines.
    :param wire: the end of theirs.
    :param seconds: for which each one writes.
    :return: as :func:`.scenarios.killing.power_cuts`.
    """
    base_dir = ask("new_cache")()["base_dir"]
    found: Counter[str] = Counter()
    raised: list[str] = []
    for number in range(times):
        command = [sys.executable, "-m", "two_hosts.client", directory, base_dir, number]
        machine = VirtualMachine(f"client{number}", directory, command, wire)
        try:
            wait_until((directory / f"client{number}.writes").exists, f"a machine that writes: {machine.log}")
            during = ask("read", base_dir=base_dir, keys=_KEYS, seconds=3 * seconds)
            time.sleep(seconds)
        finally:
            machine.kill()
        for result in (during(), ask("read", base_dir=base_dir, keys=_KEYS, seconds=0)()):
            found.update({name: result[name] for name in ("hits", "misses", "wrong")})
            raised += result["raised"]
    return {**found, "raised": raised}


def main(directory: Path, base_dir: str, number: str) -> None:
    for module in _MODULES:
        run(["modprobe", "-d", "/run/m", module])
    run(["hostname", "machine"])
    run(["ip", "addr", "add", "10.77.0.4/24", "dev", "vec0"])
    run(["ip", "link", "set", "vec0", "up"])
    mount = Path(base_dir).parent
    mount.mkdir(parents=True)
    repeat([find("mount.nfs"), f"{SERVER}:/", mount, "-o", "vers=4.2,proto=tcp"], "mounting NFS")
    set_one(base_dir, "another key", "any")
    (directory / f"client{number}.writes").touch()
    mix(base_dir, f"machine {number}", 1e6, threads=4, keys=_KEYS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
