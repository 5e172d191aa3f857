"""
A file in the cache that is no entry: it counts towards the bound, is never evicted, and stays until it is released.

It is a reservation (reservation.py) that is never published. So what holds for those holds here:

Crash. The file of a killed process is removed by the next visit to its shard, and its bytes are given back.

Limits. ``clear`` and a deletion of the directory remove it, as they remove everything.
"""

from __future__ import annotations

from dogpile_filesystem.layout import Place, charge
from dogpile_filesystem.lockfile import presence
from dogpile_filesystem.store.eviction import Room
from dogpile_filesystem.store.reservation import Reservation
from dogpile_filesystem.store.shard import Shards


class Pinned:
    """
    Got from :meth:`.Store.pin`.

    :ivar path: of the file, absolute. It is empty at first.
    """

    def __init__(self, reservation: Reservation, path: str) -> None:
        self._reservation = reservation
        self.path = path

    def release(self) -> None:
        """Remove the file, and give its bytes back. Never fails."""
        self._reservation.discard()


def pin(shards: Shards, room: Room, place: Place, size: int) -> Pinned:
    """
    Make a pinned file, and room for it.

    :param place: in whose shard it is to lie.
    :param size: its length in bytes, at most.
    :raises NoRoom: no room can be made for it.
    :raises OSError: it cannot be made.
    """
    directory = shards.directory
    directory.make(place.shard)
    directory.refuse_link(place.name[:2])
    ledger = directory.ledger()
    reservation = Reservation(shards, ledger, place, presence.unique(), charge(size))
    try:
        with shards.locked(ledger, place.shard) as shard:
            reservation.begin(shard, replaces=False)
        reservation.close()  # The caller opens it by its path.
        room.make(ledger, place, charge(size))
    except BaseException:
        reservation.discard()
        raise
    return Pinned(reservation, f"{directory.base_dir}/{reservation.path}")
