"""
Where what is known of a file or a directory stands in the cache: its URL without secrets, and a namespace.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

from dogpile_filesystem.remote.source import Source


class Place(NamedTuple):
    """Where what is known of a file stands: the fields of a record's key."""

    url: str
    namespace: str


class Places:
    """
    Places of the files of a source.

    :param namespace: what all files of the source have in common.
    :param is_shared: whether files belong together whose paths differ only in what their URL leaves out, such as a
     signature.
    """

    def __init__(self, source: Source, namespace: str, *, is_shared: bool) -> None:
        self._source = source
        self.namespace = namespace
        self._is_shared = is_shared

    def of(self, path: str) -> Place:
        """The place of a path."""
        url = self._source.url(path)
        # Of most sources the path is the end of the URL. Where something was left out of that, two paths may have one
        # URL. A signature, say: what one user may read is not another one's, unless they have a namespace in common.
        if url.endswith(path) or (self._is_shared and "\0" not in path):
            return Place(url, self.namespace)
        said = f"{self.namespace} {path}".encode("utf-8", "surrogatepass")
        return Place(url, blake2b(said, digest_size=16).hexdigest())
