"""
Helper: a program, run by the Python that has Swift: one of its servers, and what its own tools take longer for. See
swift_server.py.

Swift reads one file at a path that it does not let anybody choose, ``/etc/swift/swift.conf``. So the name of this path
is replaced before the rest of Swift is imported, and nothing has to be written there.
"""

from __future__ import annotations

import argparse
import glob
import os
import time
from typing import Any

from swift.common import utils

# ruff: noqa: PLC0415 - see above

#: The servers of a Swift, in the order of their ports, as in swift_server.py.
KINDS = ("proxy", "account", "container", "object")


def make_rings(directory: str, port: int) -> None:
    """Make the rings of an account, a container and an object server on this machine, at the ports after this one."""
    from swift.common.ring import RingBuilder

    for number, kind in enumerate(KINDS[1:], port + 1):
        ring = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
        place = {"ip": "127.0.0.1", "port": number, "replication_ip": "127.0.0.1", "replication_port": number}
        ring.add_dev({**place, "region": 1, "zone": 1, "device": "disk", "weight": 1.0, "meta": ""})
        ring.rebalance()
        ring.get_ring().save(os.path.join(directory, f"{kind}.ring.gz"))


def serve(directory: str, kind: str) -> None:
    """Be a server, until killed."""
    from swift.common.wsgi import run_wsgi

    more: dict[str, Any] = {}
    if kind == "object":
        from swift.obj.server import global_conf_callback

        more["global_conf_callback"] = global_conf_callback
    raise SystemExit(run_wsgi(os.path.join(directory, f"{kind}.conf"), f"{kind}-server", **more))


def update(directory: str) -> None:
    """Tell the container server, once, what it has missed."""
    from swift.common.daemon import run_daemon
    from swift.obj.updater import ObjectUpdater

    run_daemon(ObjectUpdater, os.path.join(directory, "object.conf"), section="object-updater", once=True)


def listing_of(directory: str, account: str, container: str) -> Any:
    """The listing of a container."""
    from swift.common.ring import Ring
    from swift.container.backend import ContainerBroker

    part = Ring(directory, ring_name="container").get_part(account, container)
    digest = utils.hash_path(account, container)
    where = os.path.join(directory, "disk", "containers", str(part), digest[-3:], digest, f"{digest}.db")
    [path] = glob.glob(where)
    return ContainerBroker(path)


def forget(directory: str, account: str, container: str, names: list[str]) -> None:
    """Have a listing lag behind: leave out these objects, as if it had not heard of them yet."""
    listing = listing_of(directory, account, container)
    listing._commit_puts()
    with listing.get() as database:
        database.executemany("DELETE FROM object WHERE name=?", [(name,) for name in names])
        database.commit()


def fill(directory: str, account: str, container: str, count: int) -> None:
    """Put rows of objects into a listing. The objects themselves are not there."""
    begin = time.time()
    listing_of(directory, account, container).merge_items(
        [
            {
                "name": f"row-{number:07}",
                "created_at": utils.Timestamp(begin + number / 1e5).internal,
                "size": 1,
                "content_type": "text/plain",
                "etag": f"{number:032x}",
                "deleted": 0,
                "storage_policy_index": 0,
                "ctype_timestamp": None,
                "meta_timestamp": None,
            }
            for number in range(count)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("command", choices=[*KINDS, "rings", "update", "fill", "forget"])
    parser.add_argument("more", nargs="*")
    said = parser.parse_args()
    utils.SWIFT_CONF_FILE = os.path.join(said.directory, "swift.conf")
    if said.command == "rings":
        make_rings(said.directory, int(said.more[0]))
        return
    utils.HASH_PATH_PREFIX = utils.HASH_PATH_SUFFIX = b""
    utils.validate_configuration()
    if said.command == "update":
        update(said.directory)
    elif said.command == "fill":
        account, container, count = said.more
        fill(said.directory, account, container, int(count))
    elif said.command == "forget":
        account, container, *names = said.more
        forget(said.directory, account, container, names)
    else:
        serve(said.directory, said.command)


if __name__ == "__main__":
    main()
