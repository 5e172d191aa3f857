"""
A record of an unsent file that cannot be read for a moment does not count as none: nothing is guessed or lost.
"""

from __future__ import annotations

import errno
import os
import threading

import pytest
from patching import replace_here

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")

from cached_files import until  # noqa: E402 - it needs fsspec

ERRNOS = [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EACCES]
CHANGES = {
    "write": lambda fs: fs.pipe_file("a", b"newer"),
    "append": lambda fs: fs.open("a", "ab").close(),
    "create": lambda fs: fs.open("a", "xb").close(),
    "rename": lambda fs: fs.mv("a", "b"),
    "rename onto": lambda fs: fs.mv("other", "a"),
    "copy": lambda fs: fs.cp_file("a", "b"),
    "copy a pattern": lambda fs: fs.copy("a*", "d/"),
    "remove": lambda fs: fs.rm("a"),
    "remove a file": lambda fs: fs.rm_file("a"),
    "remove all": lambda fs: fs.rm("", recursive=True),
    "remove a pattern": lambda fs: fs.rm("a*"),
    "flush": lambda fs: fs.flush(),
    "list": lambda fs: fs.unsent(),
    "send": lambda fs: fs.sender.send(fs.versions.key("a")),
}


@pytest.fixture
def unreadable(fs, source):
    """
    Makes a filesystem fail to open the record of "a", of which the source has an older content.
    """
    fs.pipe_file("other", b"other")
    fs.pipe_file("a", b"old")
    fs.flush()
    fs.pipe_file("a", b"new")

    def fail(patch, other, code):
        record = other.store.unsent.find(other.versions.key("a"))
        name, real = record._content.name.partition(".")[0], os.open

        def refuse(path, *arguments, **options):
            if str(path).endswith(name):
                raise OSError(code, os.strerror(code), path)
            return real(path, *arguments, **options)

        replace_here(patch, os, "open", refuse)

    return fail


def check_nothing_is_lost(fs, source):
    """Once the trouble is over, readers see what was accepted, and a flush sends it."""
    assert fs.cat_file("a") == b"new"
    fs.flush()
    assert source.files() == {"a": b"new", "other": b"other"}


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("change", CHANGES)
def test_changes(fs, make, source, unreadable, monkeypatch, change, code):
    """Whatever would change something, or lists what is unsent, raises, and has changed nothing."""
    new = make()  # It knows no record yet.
    with monkeypatch.context() as patch:
        unreadable(patch, new, code)
        with pytest.raises(OSError, match="cannot be read") as raised:
            CHANGES[change](new)
    assert raised.value.errno == code
    assert source.files() == {"a": b"old", "other": b"other"}
    check_nothing_is_lost(new, source)


@pytest.mark.parametrize("change", ["write", "rename", "copy", "remove", "remove all"])
def test_changes_through(fs, make, source, unreadable, monkeypatch, change):
    """A filesystem that writes through raises as well: what another one has written back is not overlooked."""
    through = make(write="through")
    with monkeypatch.context() as patch:
        unreadable(patch, through, errno.EIO)
        with pytest.raises(OSError, match="cannot be read"):
            CHANGES[change](through)
    assert source.files() == {"a": b"old", "other": b"other"}
    check_nothing_is_lost(fs, source)


@pytest.mark.parametrize("write", ["back", "through"])
def test_readers(fs, make, unreadable, monkeypatch, write):
    """
    Who opens the file, asks for it, or reads all of a directory, gets the error and never the older version. Another
    file is read.
    """
    reader = make(write=write)
    with monkeypatch.context() as patch:
        unreadable(patch, reader, errno.EIO)
        for read in (reader.cat_file, reader.info, reader.exists, reader.open):
            with pytest.raises(OSError, match="cannot be read"):
                read("a")
        assert reader.cat_file("other") == b"other"
        assert reader.cat("other") == b"other"
        assert reader.cat(["other"]) == {"other": b"other"}
        for read in (lambda: reader.cat("*"), lambda: reader.cat("", recursive=True)):
            with pytest.raises(OSError, match="cannot be read"):
                read()
        assert reader.ls("", detail=False) == ["a", "other"]
    assert reader.store.failures.counts["EIO"]
    assert reader.cat_file("a") == b"new"


def test_directory_that_cannot_be_looked_at(make, source, monkeypatch):
    """Where nobody can tell whether something is unsent at all, a rename raises, and takes no older content."""
    fs = make()
    fs.pipe_file("a", b"old")
    fs.flush()
    fs.pipe_file("a", b"new")
    real = os.stat

    def refuse(path, *arguments, **options):
        if path == "unsent":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        replace_here(patch, os, "stat", refuse)
        with pytest.raises(OSError, match="Input/output"):
            fs.mv("a", "b")
    fs.mv("a", "b")
    fs.flush()
    assert source.files() == {"b": b"new"}


def test_no_descriptors(make, monkeypatch):
    """Where nothing is unsent, readers need no descriptor to know it: they get the source's bytes."""
    fs = make()
    fs.pipe_file("a", b"content")
    fs.flush()

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        replace_here(patch, os, "open", refuse)
        assert fs.store.unsent.find(fs.versions.key("a")) is None


def test_nobody_can_tell(make, source, monkeypatch):
    """Where nobody can tell whether something is unsent, who writes back gets the error, others the source's bytes."""
    make().pipe_file("a", b"content")
    make().flush()
    back, through = make(), make(write="through")

    def refuse(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for fs in (back, through):
        monkeypatch.setattr(fs.store.unsent, "find", refuse)
    with pytest.raises(OSError, match="Input/output"):
        back.cat_file("a")
    assert through.cat_file("a") == b"content"
    assert through.store.failures.counts["EIO"]


def test_others_are_flushed(fs, make, source, unreadable, monkeypatch):
    """A flush of a file that cannot be read says so; threads send the others, and go on."""
    fs.pipe_file("b", b"another")
    new = make()
    with monkeypatch.context() as patch:
        unreadable(patch, new, errno.EIO)
        found, is_complete = new.uploader._list()
        assert ([record.path for _, record in found], is_complete) == (["b"], False)
    assert [record.path for _, record in new.uploader._list()[0]] == ["a", "b"]


def test_threads_go_on(base_dir, source, monkeypatch):
    """The thread that sends survives a record that cannot be read, and sends the file when it can be."""
    fs = source.make(base_dir, write_after=0, max_uploads=1)
    find, failed = fs.store.unsent.find, []

    def fail_once(key):
        if not failed and threading.current_thread().name == "dogpile_filesystem uploads":
            failed.append(key)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return find(key)

    monkeypatch.setattr(fs.store.unsent, "find", fail_once)
    fs.pipe_file("a", b"content")
    until(lambda: source.files() == {"a": b"content"})
    assert failed


def test_a_file_in_place_of_the_directory(make, source, tmp_path):
    """Where a file has the name of the directory of unsent files, nothing is unsent: readers get the source's bytes."""
    source.fs.pipe_file("a", b"content")
    fs = make()
    (tmp_path / "cache" / "unsent").write_bytes(b"")
    assert fs.cat_file("a") == b"content"
    with pytest.raises(NotADirectoryError):
        fs.pipe_file("a", b"new")
