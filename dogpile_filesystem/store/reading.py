"""
Stored entries, read with all checks: the file that an entry stands for, opened, and whether an entry is whole.

Limits. The content of a file is checked for its length, and for holes where the filesystem makes them of what it lost.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from dogpile_filesystem.store import entry
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.entry import FILE
from dogpile_filesystem.store.files import Reader, has_holes, open_reader, read_file_to_its_end
from dogpile_filesystem.store.reservation import Place


class StoredFile(NamedTuple):
    """
    A hit on a file.

    :ivar file: opened at the position that it was stored with.
    :ivar metadata: the bytes that it was stored with.
    """

    file: Reader
    metadata: bytes


class Inspector:
    """
    Looks at the entries of a directory.

    :param signing_keys: one of which has to have signed an entry; none: it need not be signed.
    """

    def __init__(self, directory: Directory, signing_keys: Sequence[bytes]) -> None:
        self._directory = directory
        self._signing_keys = signing_keys

    def open_file(self, place: Place) -> StoredFile:
        """
        Read the entry of a file, and open its content.

        :raises Damaged: it does not pass the checks.
        :raises OtherKey: it is that of another key.
        :raises FileNotFoundError: the entry or its content is missing.
        :raises OSError: it cannot be read.
        """
        data = read_file_to_its_end(place.path)
        payload, _ = entry.decode(place.kind, place.key, data, self._signing_keys)
        return self.open_content(place, payload)

    def open_content(self, place: Place, payload: bytes) -> StoredFile:
        """
        Open the content that the payload of an entry names.

        :raises OSError: as :meth:`open_file`.
        """
        content = entry.Content.unpack(payload, place.digest)
        try:
            file = open_reader(f"{place.directory}/{content.name}")
        except OSError as error:
            if is_no_file(error):
                raise entry.Damaged(str(error)) from error
            raise
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size != content.length:
            file.close()
            msg = f"the content is no file of {content.length} bytes"
            raise entry.Damaged(msg)
        if content.is_dense and self._directory.loses_content and has_holes(file.fileno(), content.length):
            file.close()
            msg = "the content has holes where something was written"
            raise entry.Damaged(msg)
        file.seek(content.position)
        return StoredFile(file, content.metadata)

    def is_whole(self, place: Place) -> bool:
        """Whether an entry, be it of another key, passes the checks. Yes, where that cannot be found out."""
        try:
            if place.kind == FILE:
                self.open_file(place).file.close()
            else:
                entry.decode(place.kind, place.key, read_file_to_its_end(place.path), self._signing_keys)
        except (entry.Damaged, FileNotFoundError):
            return False
        except entry.OtherKey:
            return True
        except OSError as error:
            return not is_no_file(error)
        return True


def is_no_file(error: OSError) -> bool:
    """Whether something else than a file lies where an entry or a content should."""
    return error.errno in (errno.EISDIR, errno.ELOOP)
