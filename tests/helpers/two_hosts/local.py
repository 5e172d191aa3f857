"""
For comparison: a directory of this machine's own filesystem, which two hosts of one boot see under their own paths.
"""

from __future__ import annotations

from pathlib import Path

from two_hosts.host import Here, Host
from two_hosts.programs import run
from two_hosts.trees import charged

PACKAGES = {"unshare": "util-linux"}
#: Two namespaces on one directory are one machine.
ONE_MACHINE = True


def make_server(directory: Path) -> Here:
    """There is none."""
    return Here()


def serve(server: Here, directory: Path) -> None:
    """Make the directory."""
    (directory / "export").mkdir()


def mount(host: Host) -> None:
    """Let a host see the directory under the path of its mount."""
    host.run("mount", "--bind", host.mount.parent / "export", host.mount)


def settle(host: Host) -> None:
    """Nothing: files can be written."""


def used(host: Host, directory: Path, name: str) -> int:
    """Bytes charged to the files of a cache. See :func:`.trees.charged`."""
    return charged(directory / "export" / name)


def filesystem(directory: Path) -> str:
    """The type of the filesystem that the directory lies on."""
    return run(["stat", "-f", "-c", "%T", directory]).strip()
