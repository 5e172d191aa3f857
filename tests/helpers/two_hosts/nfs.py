"""
NFS 4.2: Linux's server on one host, with ext4, and Linux's client on each other one.

It runs in a virtual machine (see ``uml.py``), whose kernel has both. In there, the hosts are what they are elsewhere.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from two_hosts.host import Here, Host
from two_hosts.network import SERVER
from two_hosts.programs import find, repeat, run
from two_hosts.trees import charged

PACKAGES = {
    "rpc.nfsd": "nfs-kernel-server",
    "exportfs": "nfs-kernel-server",
    "mount.nfs": "nfs-common",
    "ip": "iproute2",
}
#: Seconds for which the server keeps what a client has locked that it does not hear of any more.
LEASE = 10
ONE_MACHINE = False
_MODULES = ("nfsd", "nfs", "nfsv4", "veth", "bridge")
EXPORT = Path("/mnt/export")


def load() -> None:
    """Load what the kernel of the virtual machine needs, and mount its disk."""
    for module in _MODULES:
        run(["modprobe", "-d", "/run/m", module])
    run(["mount", "-t", "ext4", "/dev/ubda", "/mnt"])
    EXPORT.mkdir(exist_ok=True)
    EXPORT.chmod(0o1777)


def make_server(directory: Path) -> Here:
    """The virtual machine itself: only there does Linux remember the clients of a server."""
    load()
    return Here()


def serve(server: Here, directory: Path) -> None:
    """Start the server, as Linux starts it, but with a short lease."""
    # The other end of this wire may be another virtual machine.
    run(["ip", "link", "set", "vec0", "master", "br0", "up"])
    for name in ("sm", "sm.bak", "v4recovery", "rpc_pipefs", "nfsdcltrack"):
        Path("/var/lib/nfs", name).mkdir(exist_ok=True)
    for name in ("etab", "rmtab", "xtab", "state"):
        Path("/var/lib/nfs", name).touch()
    server.run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    server.run(find("exportfs"), "-o", "rw,no_root_squash,insecure,fsid=0,sync,no_subtree_check", f"*:{EXPORT}")
    subprocess.Popen([*server.prefix, find("rpc.mountd"), "-F", "-N", "2", "-N", "3"])
    for name in ("nfsv4leasetime", "nfsv4gracetime"):
        server.run("sh", "-c", f"echo {LEASE} > /proc/fs/nfsd/{name}")
    server.run(find("rpc.nfsd"), "-N", "3", "4")
    # Nobody had locks before, for whom the server would have to wait.
    server.run("sh", "-c", "echo Y > /proc/fs/nfsd/v4_end_grace")


def mount(host: Host) -> None:
    """Mount it on a host, with its defaults."""
    repeat([*host.prefix, find("mount.nfs"), f"{SERVER}:/", host.mount, "-o", "vers=4.2,proto=tcp"], "mounting NFS")


def settle(host: Host) -> None:
    """Wait until files can be written."""
    repeat([*host.prefix, "sh", "-c", f"echo x > {host.mount}/ready && rm {host.mount}/ready"], "writing to NFS")


def used(host: Host, directory: Path, name: str) -> int:
    """Bytes charged to the files of a cache. See :func:`.trees.charged`."""
    return charged(EXPORT / name)
