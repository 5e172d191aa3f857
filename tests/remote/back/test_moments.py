"""
Writing back, when something else happens in the middle: each test has a guard that it fails without.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time

import pytest
from serving import wait_for

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")

from dogpile_filesystem.remote import CachedFileSystem, SourceChanged, UploadError  # noqa: E402 - it needs fsspec


@pytest.fixture
def strict(make, source):
    """One that does not overwrite what somebody else has changed, and knows a version of the source's file."""
    fs = make(on_conflict="error")
    source.fs.pipe_file("a", b"old")
    fs.cat_file("a")
    return fs


def test_put_that_does_nothing(fs, source, monkeypatch):
    """A source that has the version of before, once it took a file, does not have the file."""
    source.fs.pipe_file("a", b"before!")
    version = fs.versions.opened("a")
    fs.pipe_file("a", b"content")
    monkeypatch.setattr(fs.uploads, "put_held", lambda *_: version)
    assert [each.end.name for each in fs.uploader.run()] == []
    failed = fs.uploader.flush([fs.versions.key("a")], None)
    assert "another content" in str(failed)
    assert fs.cat_file("a") == b"content"


def test_written_while_sent_is_no_conflict(strict, source, monkeypatch):
    """What this cache sent of an older content is no change by somebody else."""
    put = strict.uploads.put_held

    def put_and_write(*arguments):
        version = put(*arguments)
        monkeypatch.undo()
        strict.pipe_file("a", b"second")
        return version

    strict.pipe_file("a", b"first")
    monkeypatch.setattr(strict.uploads, "put_held", put_and_write)
    strict.flush()
    assert strict.unsent() == []
    assert source.files() == {"a": b"second"}


def test_sent_and_not_noted(strict, source, monkeypatch):
    """A file whose process ended between the upload and the removal of its record is no change by somebody else."""
    strict.pipe_file("a", b"ours")
    monkeypatch.setattr(strict.store.unsent, "remove", raise_error)
    with pytest.raises(OSError, match="not sent"):
        strict.flush()
    monkeypatch.undo()
    assert source.files() == {"a": b"ours"}
    strict.flush()
    assert strict.unsent() == []


def raise_error(*_):
    raise OSError(errno.EIO, "broken")


def test_part_left_over(fs, source):
    """What a broken upload has left beside a file is gone when the file is removed."""
    source.control.fail("ConnectionError", "mv", times=1)
    source.control.fail("ConnectionError", "rm", times=1)
    fs.pipe_file("a", b"content")
    with pytest.raises(OSError, match="ConnectionError"):
        fs.flush()
    assert len(source.files()) == 1
    fs.rm("a")
    fs.flush()
    assert source.files() == {}


def test_removal_that_does_nothing(fs, source):
    """A source that says that it removed a file, and has it, is told again."""
    source.fs.pipe_file("a", b"old")
    source.control.lose("a", times=1, kind="rm")
    fs.pipe_file("a", b"new")
    fs.rm("a")
    assert [each.tries for each in fs.unsent()] == [1]
    assert not fs.exists("a")
    fs.flush()
    assert source.files() == {}


def test_written_while_renamed(fs, source, monkeypatch):
    """Of a file that is written while it is renamed, the new content is not thrown away."""
    fs.pipe_file("a", b"first")
    copy = fs._copy_back

    def copy_and_write(*arguments):
        copy(*arguments)
        monkeypatch.undo()
        fs.pipe_file("a", b"second")

    monkeypatch.setattr(fs, "_copy_back", copy_and_write)
    fs.mv("a", "b")
    assert fs.find("") == ["b"]
    assert fs.cat_file("b") == b"second"


@pytest.mark.parametrize("name", ["rm", "rm_file"])
def test_written_before_removal(fs, source, monkeypatch, name):
    """A file that is written just before it is removed is removed, here and at the source."""
    source.fs.pipe_file("a", b"old")
    hold = fs.uploads.holding

    @contextlib.contextmanager
    def write_and_hold(path):
        fs.pipe_file("a", b"new")
        with hold(path) as is_held:
            yield is_held

    monkeypatch.setattr(fs.uploads, "holding", write_and_hold)
    getattr(fs, name)("a")
    assert not fs.exists("a")
    fs.flush()
    assert source.files() == {}


def test_renewed(fs, source):
    """A reader whose version is gone gets the one that was written here."""
    source.fs.pipe_file("a", b"old")
    version = fs.versions.opened("a")
    fs.pipe_file("a", b"new")
    assert fs.versions.renewed(version).is_unsent
    with fs.open_version(version) as file:
        source.fs.pipe_file("a", b"another one")
        source.control.forget_requests()
        with pytest.raises(SourceChanged):
            file.read()
    assert len(source.control.requests("read")) == 1, "the source is not asked for bytes of an unsent file"


def test_directory_in_place_of_file(fs, source):
    """Where a file was removed, there may be a directory of unsent files."""
    source.fs.pipe_file("a", b"old")
    source.control.fail("ConnectionError", "rm")
    with contextlib.suppress(ConnectionError):
        fs.rm("a")
    fs.pipe_file("a", b"new")
    fs.rm("a")
    fs.pipe_file("a/b", b"")
    assert fs.exists("a")
    assert fs.isdir("a")
    source.control.forget_orders()
    fs.flush()
    assert source.files() == {"a/b": b""}


@pytest.mark.parametrize("name", ["isdir", "exists"])
def test_directory_made_meanwhile(fs, source, monkeypatch, name):
    """A directory whose files are sent in this moment is there."""
    fs.pipe_file("x/a", b"")
    ask = fs.fs.info

    def send_after_answer(path, **options):
        try:
            return ask(path, **options)
        except FileNotFoundError:
            monkeypatch.undo()
            fs.flush()
            raise

    monkeypatch.setattr(fs.fs, "info", send_after_answer)
    assert getattr(fs, name)("x")
    assert fs.unsent() == []


def test_written_while_thread_ends(source, base_dir, monkeypatch):
    """A file that is written while the last thread finds nothing left to send is sent."""
    fs = source.make(base_dir, write_after=0, max_uploads=1)
    look, written = fs.uploader.files, []

    def look_and_write(*arguments):
        found = look(*arguments)
        if not found and not written:
            written.append("b")
            fs.pipe_file("b", b"")
        return found

    monkeypatch.setattr(fs.uploader, "files", look_and_write)
    fs.pipe_file("a", b"")
    give_up_at = time.monotonic() + 10
    while set(source.files()) != {"a", "b"} and time.monotonic() < give_up_at:
        time.sleep(0.001)
    assert set(source.files()) == {"a", "b"}


def test_counted_while_written(fs):
    """What is being written counts before it is accepted."""
    with fs.open("a", "wb") as file:
        file.write(b"a" * 300_000)
        file.flush()
        assert fs.store.usage().size >= 300_000


def test_forked(fs):
    """A forked child cannot write to the file of its parent, and puts nothing into it when it ends."""
    with fs.open("a", "wb") as file:
        file.write(b"parent")
        pid = os.fork()
        if not pid:
            refused = False
            try:
                file.write(b"child")
                file.close()
            except OSError as error:
                refused = error.errno == errno.EPERM
            finally:
                os._exit(0 if refused else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert fs.cat_file("a") == b"parent"


def test_sent_before_it_was_opened(fs, monkeypatch):
    """A file that is sent between the look and the opening is one that changed, not one that is missing."""
    fs.pipe_file("a", b"content")
    version, stale = fs.versions.opened("a"), fs.store.unsent.find(fs.versions.key("a"))
    fs.flush()
    monkeypatch.setattr(fs.store.unsent, "find", lambda _: stale)
    with pytest.raises(SourceChanged):
        fs.open_version(version)
    monkeypatch.undo()
    assert fs.cat_file("a") == b"content"


def test_written_through_meanwhile(make, source):
    """A file that is written through replaces the one that became unsent while it was open: that is never sent."""
    fs = make()
    with make(write="through").open("a", "wb") as file:
        file.write(b"newest")
        fs.pipe_file("a", b"older")
    assert fs.cat_file("a") == b"newest"
    fs.flush()
    assert source.files() == {"a": b"newest"}


@pytest.mark.parametrize("is_sent", [False, True])
def test_made_by_two(make, source, is_sent):
    """Of two that make a new file at once, the second is told so, and the first one's file stays."""
    fs, other = make(), make()
    with pytest.raises(FileExistsError), other.open("a", "xb") as file:
        file.write(b"second")
        with fs.open("a", "xb") as first:
            first.write(b"first")
        if is_sent:
            fs.flush()
    other.flush()
    assert source.files() == {"a": b"first"}


def test_appended_by_two(make, source):
    """Of two that append to a file at once, the second is told so, and what the first one appended stays."""
    fs, other = make(), make()
    fs.pipe_file("a", b"0")
    with pytest.raises(SourceChanged), other.open("a", "ab") as file:
        file.write(b"2")
        with fs.open("a", "ab") as first:
            first.write(b"1")
    other.flush()
    assert source.files() == {"a": b"01"}


def test_appended_while_sent(make, source):
    """A file that is sent while it is appended to is appended to."""
    fs, other = make(), make()
    fs.pipe_file("a", b"0")
    with fs.open("a", "ab") as file:
        file.write(b"1")
        other.flush()
    fs.flush()
    assert source.files() == {"a": b"01"}


def test_directory_sent_while_renamed(make, source, monkeypatch):
    """A directory whose files are sent while it is renamed is renamed with all of them."""
    fs, other = make(), make()
    source.fs.makedirs("d")
    source.fs.pipe_file("d/sent", b"sent")
    fs.pipe_file("d/a", b"a")
    fs.pipe_file("d/b", b"b")
    exists = fs.exists

    def exists_and_flush(path, **options):
        if path == "e":
            other.flush()
        return exists(path, **options)

    monkeypatch.setattr(fs, "exists", exists_and_flush)
    fs.mv("d", "e", recursive=True)
    fs.flush()
    assert source.files() == {"e/a": b"a", "e/b": b"b", "e/sent": b"sent"}


@pytest.mark.parametrize("is_written_before", [True, False])
def test_sent_while_the_source_renames_the_directory(make, source, monkeypatch, is_written_before):
    """
    A file that is to be sent after the source has copied its directory, and before it removes the old one, is not lost:
    it is renamed too, or stays under the old name.
    """
    fs, other = make(), make()
    source.fs.makedirs("d")
    source.fs.pipe_file("d/sent", b"sent")
    if is_written_before:
        fs.pipe_file("d/a", b"a")
    rm = fs.fs.rm

    def send_and_rm(*arguments, **options):
        if not is_written_before:
            other.pipe_file("d/a", b"a")
        other.uploader.flush([other.versions.key("d/a")], 0.2)
        rm(*arguments, **options)

    monkeypatch.setattr(fs.fs, "rm", send_and_rm)
    fs.mv("d", "e", recursive=True)
    fs.flush()
    assert source.files() == {"e/sent": b"sent", "e/a" if is_written_before else "d/a": b"a"}


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_pattern_in_the_root(tmp_path, protocol):
    """While a source renames what matches a pattern in its root, who sends a file there finds the root held."""
    fs = CachedFileSystem(target_protocol=protocol, base_dir=tmp_path / "cache", write="back", max_uploads=0)
    pattern, file = map(fs._strip_protocol, ("/*.csv", "/a.csv"))
    assert fs._fixed_part(pattern) == fs.source.parent(file)


def test_being_sent_when_its_directory_is_renamed(make, source):
    """A directory is not renamed at the source while one of its files is being sent."""
    fs, other = make(), make()
    source.fs.makedirs("d")
    fs.pipe_file("d/a", b"a")
    with source.control.holding("put"):
        sending = threading.Thread(target=other.flush)
        sending.start()
        wait_for(lambda: source.control.requests("put"))
        with pytest.raises(TimeoutError, match="being sent"):
            fs.mv("d", "e", recursive=True)
    sending.join()
    fs.mv("d", "e", recursive=True)
    assert source.files() == {"e/a": b"a"}


def test_written_at_the_end_of_a_rename(make, source, monkeypatch):
    """A file that is written once it was copied to its new name, and before the old one is removed, is not lost."""
    fs, other = make(), make()
    fs.pipe_file("a", b"first")
    remove = fs.acceptance.remove

    def write_and_remove(*arguments):
        monkeypatch.undo()
        other.pipe_file("a", b"second")
        remove(*arguments)

    monkeypatch.setattr(fs.acceptance, "remove", write_and_remove)
    fs.mv("a", "b")
    fs.flush()
    assert source.files() == {"b": b"second"}


def test_sent_while_accepted(strict, make, source, monkeypatch):
    """A file that is sent while the next content of it is accepted is no change by somebody else."""
    strict.pipe_file("a", b"first")
    record = strict.acceptance._record

    def record_and_send(*arguments, **options):
        found = record(*arguments, **options)
        monkeypatch.undo()
        make().flush()
        return found

    monkeypatch.setattr(strict.acceptance, "_record", record_and_send)
    strict.pipe_file("a", b"second")
    strict.flush()
    assert source.files() == {"a": b"second"}


def test_directory_of_the_name(make, source, monkeypatch):
    """A directory of the source is kept when a file of its name was written here, and is sent, or removed."""

    def remove(path):
        local = source.fs.local(path)
        (shutil.rmtree if os.path.isdir(local) else os.remove)(local)

    def replace(path1, path2):
        remove(path2)
        os.rename(source.fs.local(path1), source.fs.local(path2))

    fs = make()
    source.fs.makedirs("d")
    source.fs.pipe_file("d/theirs", b"theirs")
    # As WebDAV does it.
    monkeypatch.setattr(fs.fs, "mv", replace)
    monkeypatch.setattr(fs.fs, "rm_file", remove)
    fs.pipe_file("d", b"ours")
    with pytest.raises(UploadError, match="Is a directory"):
        fs.flush()
    assert source.files()["d/theirs"] == b"theirs"
    fs.rm_file("d")
    fs.flush()
    assert source.files() == {"d/theirs": b"theirs"}
    assert fs.unsent() == []


def test_clock_set_back(make, source, clock):
    """A file that was written when the clock was years ahead is sent."""
    make().pipe_file("a", b"content")
    clock.now -= 10**8
    assert [each.end.name for each in make().uploader.run()] == ["SENT"]
    assert source.files() == {"a": b"content"}


def test_content_cut_off(make, base_dir):
    """A reader of an unsent file that the disk has lost a part of gets an error of the disk, and no part of it."""
    fs = make()
    fs.pipe_file("a", b"content")
    (name,) = (name for name in os.listdir(f"{base_dir}/unsent") if os.path.getsize(f"{base_dir}/unsent/{name}") == 7)
    os.truncate(f"{base_dir}/unsent/{name}", 3)
    with pytest.raises(OSError, match="damaged") as raised:
        fs.cat_file("a")
    assert raised.value.errno == errno.EIO
    with pytest.raises(UploadError, match="3 bytes instead of 7"):
        fs.flush()


def test_written_through_while_an_older_content_is_sent(make, source):
    """What is written through says that it has to wait, when an older content is being sent for too long."""
    fs = make()
    file = make(write="through", lock_timeout=0.01).open("a", "wb")
    file.write(b"newest")
    fs.pipe_file("a", b"older")
    mutex = fs.store.unsent.mutex(fs.versions.key("a"))
    assert mutex.acquire()
    with pytest.raises(TimeoutError):
        file.close()
    mutex.release()
    assert source.files() == {}


def test_removed_by_a_thread_in_a_directory(fs, source, monkeypatch):
    """A directory goes, though the thread that sends removes a file in it, so that the source ends early."""
    fs.pipe_file("d/sent", b"content")
    fs.flush()
    fs.pipe_file("d/a", b"content")
    remove, ended = fs.fs.rm, []

    def end_early(*arguments, **options):
        if not ended:
            ended.append(True)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return remove(*arguments, **options)

    monkeypatch.setattr(fs.fs, "rm", end_early)
    fs.rm("d", recursive=True)
    assert source.files() == {}
    assert ended


def test_removed_while_renamed(make, source, monkeypatch):
    """A file that is removed while it is renamed, and made once more, is not taken for a directory."""
    fs, other = make(), make()
    pending, isfile = fs._pending, fs.isfile

    def look_and_remove(path="", **options):
        found = pending(path, **options)
        if path == "b":
            other.rm_file("a")
        return found

    def look_and_write(path):
        found = isfile(path)
        other.pipe_file("a", b"second")
        return found

    fs.pipe_file("a", b"first")
    monkeypatch.setattr(fs, "_pending", look_and_remove)
    monkeypatch.setattr(fs, "isfile", look_and_write)
    with pytest.raises(FileNotFoundError):
        fs.mv("a", "b")
    fs.flush()
    assert source.files() == {}


def test_written_again_while_told(strict, source, monkeypatch):
    """What this cache sent is known to be its own also when the file is written once more just then."""
    put, tell = strict.uploads.put_held, strict.sender._tell_successor
    update = type(strict.store.unsent).update

    def put_and_write(*arguments):
        version = put(*arguments)
        monkeypatch.setattr(strict.uploads, "put_held", put)
        strict.pipe_file("a", b"second")
        return version

    def write_and_update(*arguments):
        monkeypatch.setattr(type(strict.store.unsent), "update", update)
        strict.pipe_file("a", b"third")
        return update(*arguments)

    def tell_late(*arguments):
        monkeypatch.setattr(type(strict.store.unsent), "update", write_and_update)
        tell(*arguments)

    strict.pipe_file("a", b"first")
    monkeypatch.setattr(strict.uploads, "put_held", put_and_write)
    monkeypatch.setattr(strict.sender, "_tell_successor", tell_late)
    strict.flush()
    assert source.files() == {"a": b"third"}


def test_written_while_a_part_is_sent(strict, source, monkeypatch):
    """What a broken upload of an older content has left is no change by somebody else."""
    source.control.truncate(times=1)
    put = strict.uploads.put_held

    def put_and_write(*arguments):
        monkeypatch.undo()
        try:
            return put(*arguments)
        finally:
            strict.pipe_file("a", b"the second")

    strict.pipe_file("a", b"the first")
    monkeypatch.setattr(strict.uploads, "put_held", put_and_write)
    strict.flush()
    assert source.files() == {"a": b"the second"}
