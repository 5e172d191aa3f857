"""
The network between hosts: a bridge on the server's host, to which each other host is attached.

No name in it is seen outside of the hosts, so that any number of networks may be there at once.
"""

from __future__ import annotations

from two_hosts.host import Host
from two_hosts.programs import run

SERVER = "10.77.0.1"


class Network:
    """
    :param server: the host with the bridge; its address is :data:`SERVER`.
    """

    def __init__(self, server: Host) -> None:
        self.server = server
        self._count = 1
        _ip(server, "link", "add", "name", "br0", "type", "bridge")
        _ip(server, "addr", "add", f"{SERVER}/24", "dev", "br0")
        _ip(server, "link", "set", "br0", "up")

    def attach(self, host: Host, number: int) -> str:
        """
        Attach a host, in place of the one that had the number before.

        :return: its address.
        """
        address = f"10.77.0.{number}"
        self._count += 1
        # A host that has been killed may keep its end for a while, and with it the name of this one.
        host.port = f"p{number}x{self._count}"
        _ip(self.server, "link", "add", "name", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.pid)
        _ip(self.server, "link", "set", host.port, "master", "br0", "up")
        _ip(host, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip(host, "link", "set", "eth0", "up")
        return address

    def cut_off(self, host: Host) -> None:
        """From now on nothing reaches the host, and nothing of it reaches anybody."""
        _ip(self.server, "link", "set", host.port, "down")


def _ip(host: Host, *arguments: object) -> None:
    """Change the network of a host. It is asked from outside, where processes of all hosts have a number."""
    run(["nsenter", "-t", host.pid, "-n", "ip", *arguments])
