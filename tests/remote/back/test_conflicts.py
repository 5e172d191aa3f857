"""
Conflicts that keep both: somebody else has changed a file at the source that was written back here.
"""

from __future__ import annotations

import errno

import pytest

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")

from dogpile_filesystem.remote import UploadError, unsent  # noqa: E402 - it needs fsspec
from dogpile_filesystem.remote.back.conflicts import path_beside  # noqa: E402 - likewise

NOW = 1_795_726_623.9
BESIDE = "report (conflict 2026-11-26T20-57-03Z).csv"
SECOND = "report (conflict 2026-11-26T20-57-03Z 2).csv"


@pytest.fixture
def make(base_dir, source, clock):
    """
    Makes filesystems that write back, on one directory, by a clock that stands. Only what the test calls sends.
    """
    clock.now = NOW

    def make(**arguments):
        fs = source.make(base_dir, clock, **{"on_conflict": "keep", **arguments})
        fs.listings._clock = fs.listings._kept._judge.clock = clock
        return fs

    return make


@pytest.fixture
def fs(make, source):
    return conflicting(make(), source)


def conflicting(fs, source):
    """Have a file that was written here, and that somebody else has changed since."""
    source.fs.pipe_file("report.csv", b"old")
    fs.cat_file("report.csv")
    fs.pipe_file("report.csv", b"ours")
    source.fs.pipe_file("report.csv", b"theirs")
    return fs


def seen(fs):
    """What readers of the cache see."""
    return fs.cat(fs.ls("", detail=False))


# Names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("report.csv", BESIDE),
        ("bucket/a.b/report", "bucket/a.b/report (conflict 2026-11-26T20-57-03Z)"),
        ("/.profile", "/.profile (conflict 2026-11-26T20-57-03Z)"),
        ("a.not an extension at all", "a.not an extension at all (conflict 2026-11-26T20-57-03Z)"),
        ("\udcff.txt", "\udcff (conflict 2026-11-26T20-57-03Z).txt"),
    ],
)
def test_name(path, name):
    """Ours gets a name with the time when it was written, in the same directory, with the same extension."""
    assert path_beside(path, NOW) == name


def test_name_that_is_taken():
    """Where a name is taken, a number is added."""
    assert path_beside("report.csv", NOW, 2) == SECOND


@pytest.mark.parametrize("letter", ["a", "ä", "\U0001f600", "\udcff"])
def test_long_name(letter):
    """A name that would be too long for a filesystem is cut, and never within a character."""
    name = path_beside(f"d/{letter * 250}.csv", NOW).removeprefix("d/")
    assert len(name.encode("utf-8", "surrogateescape")) <= 255
    assert name.endswith(" (conflict 2026-11-26T20-57-03Z).csv")
    assert set(name.partition(" ")[0]) <= {letter}


# Keeping both


def test_keeps_both(fs, make, source, caplog):
    """The other version stays, ours goes beside it, readers see both, and the log says so."""
    other = make()
    assert other.cat_file("report.csv") == b"ours"
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours"}
    assert fs.unsent() == []
    for each in (fs, other):
        assert seen(each) == {"report.csv": b"theirs", BESIDE: b"ours"}
        assert each.info("report.csv")["size"] == 6
    assert f"send ours as {BESIDE}" in caplog.text


def test_sent_by_threads(fs, make, source, clock):
    """What is due is kept beside, without a flush."""
    clock.move(6)
    assert [each.end.name for each in fs.uploader.run()] == ["SENT"]
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours"}


def test_listings_that_are_kept(make, source):
    """Listings that are kept show both, without waiting until they expire, and so do readers that never ask again."""
    fs = make(listings_expiry_time=3600, check="never")
    other = make(listings_expiry_time=3600, check="never")
    source.fs.pipe_file("report.csv", b"old")
    assert [row["size"] for row in fs.ls("")] == [3]
    conflicting(fs, source)
    fs.flush()
    for each in (fs, other):
        assert {row["name"]: row["size"] for row in each.ls("")} == {"report.csv": 6, BESIDE: 4}
        assert each.cat_file("report.csv") == b"theirs"
        assert each.cat_file(BESIDE) == b"ours"


def test_next_write(fs, source):
    """What is written after that replaces the other version, which is no conflict any more."""
    fs.flush()
    fs.pipe_file("report.csv", b"newer")
    fs.flush()
    assert source.files() == {"report.csv": b"newer", BESIDE: b"ours"}


def test_flush_decides(make, source):
    """A person may decide for it, file by file."""
    fs = conflicting(make(on_conflict="error"), source)
    with pytest.raises(UploadError, match="Conflict"):
        fs.flush()
    with pytest.raises(ValueError, match="'keep'"):
        fs.flush(on_conflict="keeps")
    fs.flush(path="report.csv", on_conflict="keep")
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours"}


def test_equal(fs, source):
    """What somebody else wrote with the same content is no conflict."""
    source.fs.pipe_file("report.csv", b"ours")
    fs.flush()
    assert source.files() == {"report.csv": b"ours"}


def test_removed_by_somebody_else(fs, source):
    """Where somebody else has removed the file, there is nothing to keep: ours has its own name."""
    source.fs.rm_file("report.csv")
    fs.flush()
    assert source.files() == {"report.csv": b"ours"}


def test_removed_here(fs, source, caplog):
    """A file that was removed here, and changed by somebody else, stays, and the log says so."""
    fs.rm("report.csv")
    fs.flush()
    assert fs.unsent() == []
    assert source.files() == {"report.csv": b"theirs"}
    assert fs.cat_file("report.csv") == b"theirs"
    assert "do not remove report.csv" in caplog.text


def test_source_without_versions(make, source, monkeypatch):
    """Of a source that tells no version from another one, no conflict is made up."""
    fs = make(check=3600)
    look = fs.source.look
    monkeypatch.setattr(fs.source, "look", lambda path: look(path)._replace(identity=None))
    source.fs.pipe_file("report.csv", b"old")
    fs.cat_file("report.csv")
    fs.pipe_file("report.csv", b"ours")
    fs.flush()
    assert source.files() == {"report.csv": b"ours"}


# Names that are taken


def test_taken(fs, source):
    """Nothing that the source has is replaced."""
    source.fs.pipe_file(BESIDE, b"another")
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"another", SECOND: b"ours"}


def test_many_taken(fs, source):
    """However many are taken, there is one."""
    for number in range(1, 13):
        source.fs.pipe_file(path_beside("report.csv", NOW, number), b"another")
    fs.flush()
    assert source.files()[path_beside("report.csv", NOW, 13)] == b"ours"


def test_taken_by_a_directory(fs, source):
    """Nor is a directory."""
    source.fs.makedirs(BESIDE)
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", SECOND: b"ours"}


def test_taken_by_what_is_unsent(fs, source):
    """Nor does ours get a name under which something else is still to be sent, and would replace it."""
    fs.pipe_file(BESIDE, b"another")
    fs.flush(path="report.csv")
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"another", SECOND: b"ours"}


def test_taken_by_what_is_unsent_since(fs, source):
    """Nor does ours keep a name that something else got here before it was sent."""
    source.control.fail("ConnectionError", "put", times=1)
    with pytest.raises(UploadError):
        fs.flush()
    fs.pipe_file(BESIDE, b"another")
    fs.flush(path="report.csv")
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"another", SECOND: b"ours"}


def test_taken_meanwhile(fs, source, monkeypatch):
    """Nor is what somebody else makes under the name just before ours."""
    put = fs.uploads.put_held

    def put_later(local_path, path, **options):
        monkeypatch.undo()
        source.fs.pipe_file(path, b"another")
        return put(local_path, path, **options)

    monkeypatch.setattr(fs.uploads, "put_held", put_later)
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"another", SECOND: b"ours"}


# What goes wrong


@pytest.mark.parametrize("kind", ["put", "mv"])
@pytest.mark.parametrize("order", ["fail", "break_off"])
def test_failure(fs, source, clock, kind, order):
    """A put that fails, or whose answer is lost, leaves ours unsent. The next one takes the same name."""
    getattr(source.control, order)("ConnectionError", kind, times=1)
    with pytest.raises(UploadError, match="ConnectionError"):
        fs.flush()
    assert fs.cat_file("report.csv") == b"ours"
    clock.move(100)
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours"}


@pytest.mark.parametrize(("order", "times"), [("lose", 2), ("truncate", 1)])
def test_source_that_loses(fs, source, order, times):
    """A source that accepts ours, and loses it or a part of it, is noticed."""
    getattr(source.control, order)(times=times)
    with pytest.raises(UploadError):
        fs.flush()
    assert fs.cat_file("report.csv") == b"ours"
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours"}


def test_part_is_replaced(fs, source, monkeypatch):
    """A part that a put has left under the name is ours, and is replaced by the next one."""

    def put_part(_, path, **options):
        assert options == {"mode": "create"}
        source.fs.pipe_file(path, b"ou")
        raise ConnectionError

    monkeypatch.setattr(fs.uploads, "put_held", put_part)
    with pytest.raises(UploadError):
        fs.flush()
    monkeypatch.undo()
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours"}


def test_refused_twice(fs, source, monkeypatch):
    """A source that is asked again after an answer that was lost, and finds ours, says that it is there: it is."""
    put = fs.uploads.put_held

    def put_twice(local_path, path, **options):
        put(local_path, path, **options)
        raise FileExistsError(errno.EEXIST, "there", path)

    monkeypatch.setattr(fs.uploads, "put_held", put_twice)
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours"}


@pytest.mark.parametrize("moment", ["fs.uploads.put_held", "fs.store.unsent.remove"])
def test_killed(fs, make, source, spawn, clock, moment):
    """A process that is killed before or after the put leaves ours unsent; the next one sends it under that name."""
    program = f"""
    import os, signal
    def kill(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)
    {moment} = kill
    fs.flush()
    """
    process = spawn(backed.PROGRAM + program, backed.HELPERS, fs.to_json())
    assert process.wait() == -9
    [file] = fs.store.unsent.all()
    assert unsent.unpack(file.metadata).beside == BESIDE
    clock.move(100)
    after = make()
    assert after.cat_file("report.csv") == b"ours"
    after.flush()
    assert seen(after) == {"report.csv": b"theirs", BESIDE: b"ours"}
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours"}
    assert after.unsent() == []


def test_listing_after_a_kill(make, source, monkeypatch):
    """A listing that is kept shows what was put beside by a process that was killed before it could note that."""
    fs = conflicting(make(listings_expiry_time=3600), source)
    fs.ls("")

    def put_and_end(_, path, **__):
        source.fs.pipe_file(path, b"ours")
        raise KeyboardInterrupt

    monkeypatch.setattr(fs.uploads, "put_held", put_and_end)
    with pytest.raises(KeyboardInterrupt):
        fs.sender.send(fs.versions.key("report.csv"))
    monkeypatch.undo()
    # Somebody lists the directory without what is shown later.
    fs.listings.removed(BESIDE)
    fs.flush()
    assert fs.exists(BESIDE)


def test_goes_on_though_theirs_is_gone(fs, source, monkeypatch):
    """What was put beside before a kill is not put again under its own name, whatever became of the other version."""
    monkeypatch.setattr(fs.store.unsent, "remove", raise_error)
    with pytest.raises(UploadError):
        fs.flush()
    monkeypatch.undo()
    source.fs.rm_file("report.csv")
    fs.flush()
    assert source.files() == {BESIDE: b"ours"}


def raise_error(*_):
    raise OSError(errno.EIO, "broken")


def test_written_anew_meanwhile(fs, source, monkeypatch, clock):
    """A file that is written anew while it is put beside keeps both contents, and replaces nothing."""
    put = fs.uploads.put_held

    def put_and_write(*arguments, **options):
        version = put(*arguments, **options)
        monkeypatch.undo()
        clock.move(1)
        fs.pipe_file("report.csv", b"newer")
        return version

    monkeypatch.setattr(fs.uploads, "put_held", put_and_write)
    fs.flush()
    newer = path_beside("report.csv", NOW + 1)
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"ours", newer: b"newer"}


def test_written_anew_before_it_is_named(fs, source, monkeypatch, caplog):
    """Nor is a content put that was replaced before it had a name, which is no failure."""
    update = fs.store.unsent.update

    def write_and_update(*arguments):
        monkeypatch.undo()
        fs.pipe_file("report.csv", b"newer")
        return update(*arguments)

    monkeypatch.setattr(fs.store.unsent, "update", write_and_update)
    fs.flush()
    assert source.files() == {"report.csv": b"theirs", BESIDE: b"newer"}
    assert "cannot send" not in caplog.text
