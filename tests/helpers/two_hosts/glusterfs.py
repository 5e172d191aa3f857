"""
GlusterFS: a server with one brick on one host, and a client on each other one.
"""

from __future__ import annotations

from pathlib import Path

from two_hosts.host import Host
from two_hosts.network import SERVER
from two_hosts.programs import find, repeat
from two_hosts.trees import charged

PACKAGES = {
    "glusterd": "glusterfs-server",
    "gluster": "glusterfs-cli",
    "glusterfs": "glusterfs-client",
    "getfattr": "attr",
    "ip": "iproute2",
}
ONE_MACHINE = False
_CONFIGURATION = """
volume management
    type mgmt/glusterd
    option working-directory {0}/work
    option transport-type socket
    option transport.socket.bind-address {1}
    option ping-timeout 0
    option event-threads 1
end-volume
"""
_GLUSTER = ("gluster", "--mode=script", "volume")


def make_server(directory: Path) -> Host:
    """The host of the servers."""
    return Host("server", directory)


def serve(server: Host, directory: Path) -> None:
    """Start the servers, which keep everything in a directory."""
    for name in ("work", "brick", "log"):
        (directory / name).mkdir()
    (directory / "glusterd.vol").write_text(_CONFIGURATION.format(directory, SERVER))
    # Its servers tell one another by files of fixed names where they listen, and write their logs to fixed places.
    for path in ("/run", "/var/log/glusterfs"):
        Path(path).mkdir(exist_ok=True)
        server.run("mount", "-t", "tmpfs", "tmpfs", path)
    server.run("mkdir", "/run/gluster")
    server.run(find("glusterd"), "-f", directory / "glusterd.vol", "-p", directory / "glusterd.pid")
    repeat([*server.prefix, *_GLUSTER, "info"], "starting glusterd")
    server.run(*_GLUSTER, "create", "cache", f"{SERVER}:{directory}/brick", "force")
    server.run(*_GLUSTER, "start", "cache")


def mount(host: Host) -> None:
    """Mount it on a host, with its defaults."""
    log = host.mount.parent / f"log_{host.name}"
    options = [f"--volfile-server={SERVER}", "--volfile-id=cache", "-l", log]
    repeat([*host.prefix, find("glusterfs"), *options, host.mount], "mounting GlusterFS")


def settle(host: Host) -> None:
    """Wait until files can be written."""
    repeat([*host.prefix, "sh", "-c", f"echo x > {host.mount}/ready && rm {host.mount}/ready"], "writing to GlusterFS")


def used(host: Host, directory: Path, name: str) -> int:
    """Bytes charged to the files of a cache. See :func:`.trees.charged`."""
    return charged(directory / "brick" / name)
