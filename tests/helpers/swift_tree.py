"""
Helper: a tree in a container of Swift, in which the situations of the pollers happen.
"""

from __future__ import annotations

from typing import Any


class SwiftTree:
    """
    A tree in a container, and another one for what lies outside.

    :param connection: of python-swiftclient.
    :param container: that is watched.
    """

    def __init__(self, connection: Any, container: str) -> None:
        self._connection = connection
        self._container = container
        for name in (container, f"{container}-outside"):
            connection.put_container(name)

    def _place(self, name: str) -> tuple[str, str]:
        return (f"{self._container}-outside", name[1:]) if name.startswith("@") else (self._container, name)

    def _below(self, name: str) -> list[str]:
        container, key = self._place(name)
        _, rows = self._connection.get_container(container, full_listing=True)
        return [row["name"] for row in rows if row["name"] == key or row["name"].startswith(f"{key}/")]

    def write(self, name: str, data: str | bytes = "data", content_type: str = "text/plain") -> None:
        self._connection.put_object(*self._place(name), data, content_type=content_type)

    def delete(self, name: str) -> None:
        self._connection.delete_object(*self._place(name))

    def rename(self, old: str, new: str) -> None:
        (source, key), (target, new_key) = self._place(old), self._place(new)
        for name in self._below(old):
            _, data = self._connection.get_object(source, name)
            self._connection.put_object(target, new_key + name.removeprefix(key), data)
            self._connection.delete_object(source, name)

    def delete_tree(self, name: str) -> None:
        container, _ = self._place(name)
        for key in self._below(name):
            self._connection.delete_object(container, key)
