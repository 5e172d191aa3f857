"""
What an interrupt leaves: KeyboardInterrupt, or an exception that a handler of a signal raises, anywhere in a write.
"""

from __future__ import annotations

import io
import os

import pytest
from patching import replace_here

from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.lockfile import presence
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.shard import Shard


def interrupt_after(monkeypatch, owner, name):
    """Interrupts the next call of a method at its end."""
    method = getattr(owner, name)

    def interrupted(*arguments, **options):
        monkeypatch.undo()
        method(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


def test_interrupted_when_published(make_store, monkeypatch):
    """A file whose writer is interrupted after its entry was published keeps its content."""
    store = make_store()
    assert store.put_file(b"a", io.BytesIO(b"old"))
    interrupt_after(monkeypatch, Shard, "publish")
    with pytest.raises(KeyboardInterrupt):
        store.put_file(b"a", io.BytesIO(b"new"))
    with store.get_file(b"a").file as file:
        assert file.read() == b"new"
    assert store.usage() == (2 * BLOCK, 1, 257)


def test_interrupted_when_reserved(make_store, files, monkeypatch):
    """A writer that is interrupted when it has made its temporary file leaves no reservation."""
    store = make_store()
    assert store.put(b"a", b"old")
    monkeypatch.setattr(store.directory, "is_local", False)
    interrupt_after(monkeypatch, Access, "create")
    with pytest.raises(KeyboardInterrupt):
        store.put(b"a", b"new")
    assert presence.unfinished == set()
    assert len(files()) == 1
    assert store.usage() == (BLOCK, 1, 257)


def test_interrupted_when_moved(make_store, tmp_path, monkeypatch):
    """A file that was moved in has its name again when its writer is interrupted."""
    store = make_store()
    path = tmp_path / "file"
    path.write_bytes(b"content")
    rename = os.rename

    def interrupted(*arguments, **options):
        monkeypatch.undo()
        rename(*arguments, **options)
        raise KeyboardInterrupt

    with path.open("rb") as file:
        replace_here(monkeypatch, os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put_file(b"a", file, movable=True)
    assert path.read_bytes() == b"content"
