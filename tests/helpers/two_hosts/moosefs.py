"""
MooseFS: a master and a chunk server on one host, and a client on each other one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from two_hosts.host import Host
from two_hosts.network import SERVER
from two_hosts.programs import find, repeat

PACKAGES = {
    "mfsmaster": "moosefs-master",
    "mfschunkserver": "moosefs-chunkserver",
    "mfsmount": "moosefs-client",
    "mfsdirinfo": "moosefs-client",
    "ip": "iproute2",
}
#: Of Debian's package: what a master starts with.
_EMPTY = Path("/var/lib/mfs/metadata.mfs.empty")

ONE_MACHINE = False
_COMMON = "WORKING_USER = root\nWORKING_GROUP = root\nLOCK_MEMORY = 0\nNICE_LEVEL = 0\n"
_MASTER = """
DATA_PATH = {0}/master
EXPORTS_FILENAME = {0}/exports
TOPOLOGY_FILENAME = {0}/topology
MATOCS_LISTEN_HOST = {1}
MATOCL_LISTEN_HOST = {1}
MATOML_LISTEN_HOST = {1}
"""
_CHUNKS = """
DATA_PATH = {0}/chunks
HDD_CONF_FILENAME = {0}/disks
HDD_LEAVE_SPACE_DEFAULT = 100MiB
MASTER_HOST = {1}
CSSERV_LISTEN_HOST = {1}
"""


def make_server(directory: Path) -> Host:
    """The host of the servers."""
    return Host("server", directory)


def serve(server: Host, directory: Path) -> None:
    """Start the servers, which keep everything in a directory."""
    for name in ("master", "chunks", "disk"):
        (directory / name).mkdir()
    shutil.copy(_EMPTY, directory / "master" / "metadata.mfs")
    (directory / "exports").write_text("* / rw,alldirs,maproot=0:0\n")
    (directory / "topology").write_text("")
    (directory / "disks").write_text(f"{directory}/disk\n")
    (directory / "master.cfg").write_text(_COMMON + _MASTER.format(directory, SERVER))
    (directory / "chunks.cfg").write_text(_COMMON + _CHUNKS.format(directory, SERVER))
    server.run(find("mfsmaster"), "-c", directory / "master.cfg", "start")
    server.run(find("mfschunkserver"), "-c", directory / "chunks.cfg", "start")


def mount(host: Host) -> None:
    """Mount it on a host."""
    repeat([*host.prefix, find("mfsmount"), host.mount, "-H", SERVER], "mounting MooseFS")


def settle(host: Host) -> None:
    """Wait until files can be written."""
    # A file has two copies unless it is told otherwise, and there is one chunk server.
    host.run("mfssetgoal", "-r", "1", host.mount)
    repeat([*host.prefix, "sh", "-c", f"echo x > {host.mount}/ready && rm {host.mount}/ready"], "writing to MooseFS")


def used(host: Host, directory: Path, name: str) -> int:
    """
    Bytes of the files of a cache, at one instant: the server's own sum. They are charged that much, if each takes whole
    blocks.
    """
    for line in host.run("mfsdirinfo", "-n", host.mount / name / "values").splitlines():
        if line.strip().startswith("length"):
            return int(line.split(":")[1].split()[0])
    msg = f"no length of {name} is known"
    raise RuntimeError(msg)
