"""
A filesystem that hosts have mounted, in the kernel that they run on.
"""

from __future__ import annotations

import itertools
import time
import types
import uuid
from pathlib import Path

from two_hosts import glusterfs, local, moosefs, nfs
from two_hosts.host import Here, Host
from two_hosts.network import Network
from two_hosts.worker import Worker

KINDS = {"moosefs": moosefs, "glusterfs": glusterfs, "nfs": nfs, "ext4": local}


class Mounted:
    """
    A filesystem and its hosts A and B.

    :param name: of :data:`KINDS`.
    :param directory: for its files.
    :ivar a: a host; another one after :meth:`restart`.
    :ivar b: a host, which stays.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.kind: types.ModuleType = KINDS[name]
        self._directory = directory
        self._hosts: list[Host | Here] = []
        self._numbers = itertools.count(1)
        self._boot_id = str(uuid.uuid4()) if self.kind.ONE_MACHINE else None
        try:
            server = self.kind.make_server(directory)
            self._hosts.append(server)
            self._network = None if self.kind.ONE_MACHINE else Network(server)
            self.kind.serve(server, directory)
            self.a, self.b = self._start("a", 2), self._start("b", 3)
            self.kind.settle(self.b)
        except BaseException:
            self.close()
            raise

    def _start(self, name: str, number: int) -> Host:
        host = Host(name, self._directory, self._boot_id)
        self._hosts.append(host)
        if self._network is not None:
            self._network.attach(host, number)
        self.kind.mount(host)
        return host

    def new_cache(self) -> str:
        """The path of a cache of its own, which all hosts see under it. It is not made."""
        return str(self.b.mount / f"cache{next(self._numbers)}")

    def workers(self) -> list[Worker]:
        """Four processes: two of A, and then two of B."""
        return [host.worker() for host in (self.a, self.a, self.b, self.b)]

    def used(self, base_dir: str) -> int:
        """Bytes that the files of a cache take at one instant, as the server says."""
        found: int = self.kind.used(self.b, self._directory, Path(base_dir).name)
        return found

    def cut_power(self) -> float:
        """
        Nothing comes from A any more, and all its processes are gone.

        :return: when, by the clock that all hosts have in common.
        """
        if self._network is not None:
            self._network.cut_off(self.a)
        now = time.monotonic()
        self.a.kill()
        return now

    def restart(self) -> None:
        """Start A again, after its power was cut."""
        self._hosts.remove(self.a)
        self.a.end()
        self.a = self._start("a", 2)

    def close(self) -> None:
        """End all hosts."""
        while self._hosts:
            self._hosts.pop().end()
