"""
Unsent files: drafts that grow within the bound, what is accepted, and that nothing but their own methods removes it.
"""

from __future__ import annotations

import errno
import os
import time

import pytest
from forked import in_child

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, UNSENT, VALUE, unsent_place
from dogpile_filesystem.lockfile import Usage
from dogpile_filesystem.maintenance import check, check_cache, remove_matching
from dogpile_filesystem.maintenance.cache import Cache
from dogpile_filesystem.store import NoRoom

MIB = 1 << 20


@pytest.fixture
def unsent_names(base_dir):
    """The names of the files in the shard of unsent files."""
    return lambda: sorted(os.listdir(f"{base_dir}/unsent"))


def written(store, key, content, metadata=b"{}"):
    """Accepts a content; its token."""
    draft = store.unsent.draft(key)
    draft.reserve(len(content))
    with open(draft.path, "wb") as file:
        file.write(content)
    return draft.accept(metadata)


def content_of(store, key):
    found = store.unsent.find(key)
    if found is None:
        return None
    with found.open() as file:
        return file.read()


def test_accepted(make_store):
    """What was accepted is found with its content and its metadata, by another store too."""
    token = written(make_store(), b"k", b"content", b"metadata")
    found = make_store().unsent.find(b"k")
    assert (found.key, found.token, found.metadata, found.size) == (b"k", token, b"metadata", 7)
    assert content_of(make_store(), b"k") == b"content"
    assert make_store().unsent.find(b"other") is None


def test_a_draft_is_not_found(make_store, unsent_names):
    """Before it is accepted, a draft is nothing that is unsent; discarded, it leaves nothing."""
    store = make_store()
    draft = store.unsent.draft(b"k")
    draft.reserve(10_000)
    assert store.unsent.find(b"k") is None
    assert store.unsent.all() == []
    assert len(unsent_names()) == 2
    draft.discard()
    draft.discard()
    assert unsent_names() == []
    assert store.usage() == Usage(0, 0, ALL_SHARDS)


def test_a_draft_is_counted_as_it_grows(make_store, usage_on_disk):
    """At each size the ledger has what the draft reserved, and after it was accepted exactly what lies on the disk."""
    store = make_store()
    draft = store.unsent.draft(b"k")
    with open(draft.path, "wb") as file:
        for size in range(5000, 3 * MIB, 300_000):
            draft.reserve(size)
            file.write(b"x" * (size - file.tell()))
            file.flush()
            assert draft.reserved >= size
            assert store.usage().size == draft.reserved + BLOCK
            assert store.usage().size >= usage_on_disk().size
    draft.accept(b"")
    assert store.usage() == usage_on_disk()


def test_a_draft_evicts_values(make_store, usage_on_disk):
    """A growing draft takes the place of values, and never takes the total beyond the bound."""
    store = make_store(cache_size=MIB)
    for number in range(200):
        store.put(b"%d" % number, bytes(5000))
    draft = store.unsent.draft(b"k")
    with open(draft.path, "wb") as file:
        for size in range(50_000, 900_000, 50_000):
            draft.reserve(size)
            file.write(b"x" * 50_000)
            file.flush()
            assert store.usage().size <= MIB
            assert usage_on_disk().size <= MIB
    draft.accept(b"")
    assert store.usage() == usage_on_disk()


def test_no_room_beside_unsent_files(make_store):
    """Unsent files are not evicted for others: where they leave no room, no value has to go in vain."""
    store = make_store(cache_size=MIB)
    written(store, b"k", bytes(600_000))
    store.put(b"value", b"kept")
    draft = store.unsent.draft(b"other")
    draft.reserve(100_000)
    with pytest.raises(NoRoom):
        draft.reserve(500_000)
    assert draft.reserved >= 100_000
    assert store.get(b"value") == b"kept"
    assert len(content_of(store, b"k")) == 600_000
    with open(draft.path, "wb") as file:
        file.write(bytes(500_000))
    with pytest.raises(OSError, match="raise cache_size") as raised:
        draft.accept(b"")
    assert raised.value.errno == errno.ENOSPC
    draft.discard()
    assert [file.key for file in store.unsent.all()] == [b"k"]


def test_records_have_room_beside_contents(make_store):
    """Where drafts have taken all they get, the record of an unsent file can still be written anew."""
    store = make_store(cache_size=MIB)
    token = written(store, b"k", b"content")
    draft = store.unsent.draft(b"other")
    size = 4096
    with pytest.raises(NoRoom):
        while True:
            draft.reserve(size := size + 4096)
    assert store.unsent.update(b"k", token, b"tried")
    draft.discard()


def test_values_are_evicted_not_unsent_files(make_store):
    """However much is stored, what is unsent stays."""
    store = make_store(cache_size=MIB)
    written(store, b"k", b"u" * 300_000)
    for number in range(400):
        assert store.put(b"%d" % number, bytes(20_000))
    assert content_of(store, b"k") == b"u" * 300_000


def test_replaced(make_store, usage_on_disk, unsent_names):
    """A file accepted again takes the place of the one before, whose readers go on with what they opened."""
    store = make_store()
    first = written(store, b"k", b"old" * 5000)
    with store.unsent.find(b"k").open() as old:
        second = written(store, b"k", b"new")
        assert old.read() == b"old" * 5000
    assert first != second
    assert content_of(store, b"k") == b"new"
    assert len(unsent_names()) == 2
    assert store.usage() == usage_on_disk()


def test_open_of_what_was_replaced(make_store):
    """A content that was replaced before it was opened is not found, and no other is opened for it."""
    store = make_store()
    written(store, b"k", b"old")
    found = store.unsent.find(b"k")
    written(store, b"k", b"new")
    with pytest.raises(FileNotFoundError):
        found.open()


def test_updated(make_store, usage_on_disk):
    """A record written anew has other metadata, and the content, the token and the time that it had."""
    store = make_store()
    token = written(store, b"k", b"content", b"one")
    before = store.unsent.find(b"k")
    assert store.unsent.update(b"k", token, b"two" * 3000)
    after = store.unsent.find(b"k")
    assert after.metadata == b"two" * 3000
    assert (after.token, after.size, after.accepted_ns) == (before.token, before.size, before.accepted_ns)
    assert content_of(store, b"k") == b"content"
    assert store.usage() == usage_on_disk()


@pytest.mark.parametrize("method", ["update", "remove"])
def test_another_content(make_store, usage_on_disk, method):
    """A record is not changed by whoever knows only the content before, or one that is gone."""
    store = make_store()
    old = written(store, b"k", b"old")
    written(store, b"k", b"new", b"newer")
    change = getattr(store.unsent, method)
    arguments = (b"metadata",) if method == "update" else ()
    assert not change(b"k", old, *arguments)
    assert not change(b"absent", old, *arguments)
    assert store.unsent.find(b"k").metadata == b"newer"
    assert store.usage() == usage_on_disk()


@pytest.mark.parametrize("method", ["update", "remove"])
def test_written_anew_meanwhile(make_store, monkeypatch, method):
    """A file that is written anew while its record is changed or removed keeps the new content and record."""
    store, other = make_store(), make_store()
    token = written(store, b"k", b"old")
    ledger = type(store.unsent._means).ledger

    def ledger_after_a_write(means):
        monkeypatch.undo()
        written(other, b"k", b"new", b"newer")
        return ledger(means)

    monkeypatch.setattr(type(store.unsent._means), "ledger", ledger_after_a_write)
    arguments = (b"metadata",) if method == "update" else ()
    assert not getattr(store.unsent, method)(b"k", token, *arguments)
    assert content_of(store, b"k") == b"new"
    assert store.unsent.find(b"k").metadata == b"newer"


def test_accepted_on_condition(make_store, usage_on_disk):
    """A draft is accepted only in place of what it is to replace; and may be once more, if that is another file."""
    store, other = make_store(), make_store()
    written(store, b"k", b"old")
    expected = store.unsent.find(b"k")
    draft = store.unsent.draft(b"k")
    draft.reserve(7)
    with open(draft.path, "wb") as file:
        file.write(b"content")
    written(other, b"k", b"newer", b"other")
    assert draft.accept(b"longer than before" * 500, lambda: store.unsent.find(b"k") == expected) == ""
    assert content_of(store, b"k") == b"newer"
    expected = store.unsent.find(b"k")
    token = draft.accept(b"metadata", lambda: store.unsent.find(b"k") == expected)
    assert store.unsent.find(b"k").token == token
    assert content_of(store, b"k") == b"content"
    assert store.unsent.accept(b"k", b"tombstone", lambda: False) == ""
    assert content_of(store, b"k") == b"content"
    assert store.usage() == usage_on_disk()


def test_removed(make_store, unsent_names):
    """A removed file is gone with its content, and its bytes are free; who has it open reads on."""
    store = make_store()
    token = written(store, b"k", b"content")
    with store.unsent.find(b"k").open() as file:
        assert store.unsent.remove(b"k", token)
        assert file.read() == b"content"
    assert store.unsent.find(b"k") is None
    assert unsent_names() == []
    assert store.usage() == Usage(0, 0, ALL_SHARDS)


def test_a_record_without_content(make_store, usage_on_disk):
    """A record alone takes the place of a file, as one that says that it was removed does."""
    store = make_store()
    written(store, b"k", b"content" * 1000)
    token = store.unsent.accept(b"k", b"removed")
    found = store.unsent.find(b"k")
    assert (found.token, found.metadata, found.size) == (token, b"removed", 0)
    assert store.usage() == usage_on_disk() == Usage(BLOCK, 1, ALL_SHARDS)


def test_oldest_first(make_store, clock):
    """Unsent files are told by the time of their content: an update leaves one in its place, a replacement does not."""
    store = make_store()
    tokens = {}
    for key in (b"c", b"a", b"b"):
        clock.move(1)
        tokens[key] = written(store, key, key)
    store.unsent.update(b"c", tokens[b"c"], b"tried")
    assert [file.key for file in store.unsent.all()] == [b"c", b"a", b"b"]
    assert store.unsent.all()[0].metadata == b"tried"
    written(store, b"a", b"anew")
    assert [file.key for file in store.unsent.all()] == [b"c", b"b", b"a"]


def test_records_are_read_once(make_store, monkeypatch):
    """A record that has not changed is not read again, and one that has is."""
    store = make_store()
    tokens = {key: written(store, key, key, b"one") for key in (b"a", b"b")}
    # As if all this was long ago: a file that has just changed may change again within one tick of its times.
    monkeypatch.setattr(time, "time_ns", lambda: 1 << 62)
    assert len(store.unsent.all()) == 2
    read = []
    inspect = store.unsent._inspect
    monkeypatch.setattr(store.unsent, "_inspect", lambda path: read.append(path) or inspect(path))
    assert len(store.unsent.all()) == 2
    assert read == []
    make_store().unsent.update(b"a", tokens[b"a"], b"two")
    assert {file.key: file.metadata for file in store.unsent.all()} == {b"a": b"two", b"b": b"one"}
    assert read == [unsent_place(b"a").path]


def test_nothing_else_removes_it(make_store, base_dir, clock):
    """Clearing, pruning, expiry, a removal by prefix and a repair leave what is unsent."""
    store = make_store(expiration_time=10, kinds=(VALUE, UNSENT - 1))
    written(store, b"k", b"content")
    clock.move(1000)
    store.prune()
    store.clear()
    remove_matching(store, b"", kinds=range(10))
    check(store, repair=True)
    assert Cache(base_dir).clear()
    Cache(base_dir).recount(store.directory.ledger(fresh=True))
    assert content_of(store, b"k") == b"content"
    assert [file.key for file in store.unsent.all()] == [b"k"]


def test_a_lost_lock_file(make_store, base_dir, usage_on_disk):
    """A lock file that was lost is counted again with what is unsent, and with a draft that is being written."""
    store = make_store(cache_size=MIB)
    written(store, b"k", b"content" * 1000)
    draft = store.unsent.draft(b"draft")
    draft.reserve(50_000)
    os.unlink(f"{base_dir}/lock")
    store.directory.distrust()
    store.put(b"value", b"x")
    assert store.usage() == Usage(BLOCK + 2 * BLOCK + 13 * BLOCK + BLOCK + BLOCK, 3, ALL_SHARDS)
    draft.reserve(100_000)
    with open(draft.path, "wb") as file:
        file.write(bytes(100_000))
    draft.accept(b"")
    assert store.usage() == usage_on_disk()
    assert len(store.unsent.all()) == 2


@pytest.mark.parametrize("is_cleared", [False, True])
def test_a_damaged_lock_file(base_dir, make_store, is_cleared):
    """A lock file that was overwritten is mended beside unsent files too, in a directory that the user made."""
    os.mkdir(base_dir, 0o700)
    store = make_store()
    written(store, b"k", b"content")
    if not is_cleared:
        store.put(b"value", b"x")
    assert not os.path.exists(f"{base_dir}/CACHEDIR.TAG")
    with open(f"{base_dir}/lock", "r+b") as file:
        file.write(b"something else " * 1000)
    assert make_store().unsent.all()[0].key == b"k"
    written(make_store(), b"k", b"anew")


def test_a_record_of_before(make_store, base_dir):
    """A lock file without a byte that says whether unsent files were counted has them counted."""
    store = make_store(cache_size=MIB)
    written(store, b"k", b"content")
    with open(f"{base_dir}/lock", "r+b") as file:
        file.truncate(6400)
    assert store.usage().counted < ALL_SHARDS
    store.put(b"value", b"x")
    assert store.usage() == Usage(3 * BLOCK, 2, ALL_SHARDS)


@pytest.mark.parametrize("is_content_written", [False, True])
def test_a_draft_of_a_killed_process(make_store, unsent_names, is_content_written):
    """The draft of a process that was killed is removed as soon as somebody asks for what is unsent."""
    store = make_store(cache_size=MIB)
    written(store, b"k", b"content")

    def write_and_die():
        draft = make_store().unsent.draft(b"draft")
        draft.reserve(500_000)
        if is_content_written:
            with open(draft.path, "wb") as file:
                file.write(bytes(400_000))
        os._exit(0)

    assert in_child(write_and_die) is None
    assert len(unsent_names()) == 4
    assert [file.key for file in store.unsent.all()] == [b"k"]
    assert len(unsent_names()) == 2
    assert store.usage() == Usage(2 * BLOCK, 1, ALL_SHARDS)


def test_room_of_a_killed_process(make_store):
    """What a killed process reserved for a draft is no obstacle to the next draft, or to a value."""
    store = make_store(cache_size=MIB)
    store.put(b"value", b"x")

    def reserve_and_die():
        make_store(cache_size=MIB).unsent.draft(b"draft").reserve(900_000)
        os._exit(0)

    for use in (
        lambda: store.put(b"large", bytes(800_000)),
        lambda: written(store, b"k", bytes(800_000)),
    ):
        assert in_child(reserve_and_die) is None
        assert use()


def test_a_forked_child_does_not_own_a_draft(make_store):
    """A child cannot change or discard the draft that its parent is writing."""
    store = make_store()
    draft = store.unsent.draft(b"k")
    with open(draft.path, "wb") as file:
        file.write(b"content")

    def try_all():
        draft.discard()
        errors = []
        for call in (lambda: draft.reserve(10_000), lambda: draft.accept(b"")):
            try:
                call()
            except OSError as error:
                errors.append(error.errno)
        return errors

    assert in_child(try_all) == [errno.EPERM, errno.EPERM]
    draft.accept(b"")
    assert content_of(store, b"k") == b"content"


def test_accepted_once(make_store):
    """A draft that was accepted or discarded is not accepted again."""
    store = make_store()
    for end in (lambda draft: draft.accept(b""), lambda draft: draft.discard()):
        draft = store.unsent.draft(b"k")
        end(draft)
        with pytest.raises(OSError, match="accepted or discarded before"):
            draft.accept(b"")


@pytest.mark.leaves_damage
@pytest.mark.parametrize("at", ["magic", "content's name", "end"])
def test_a_damaged_record(make_store, base_dir, at):
    """A damaged record is reported, and a repair, a prune and a clearing keep it with its content."""
    store = make_store()
    written(store, b"k", b"content" * 1000, b"metadata")
    written(store, b"other", b"other")
    path = f"{base_dir}/{unsent_place(b'k').path}"
    with open(path, "rb") as file:
        record = bytearray(file.read())
    record[{"magic": 0, "content's name": record.index(b"u.") + 3, "end": -1}[at]] ^= 1
    with open(path, "wb") as file:
        file.write(record)
    assert store.unsent.find(b"k") is None
    assert [file.key for file in store.unsent.all()] == [b"other"]
    assert store.failures.counts["damaged"] == 2
    report = check_cache(Cache(base_dir), repair=True)
    assert (report.damaged, report.orphans, report.ledger) == (1, 0, report.disk)
    store.prune()
    store.clear()
    assert len(os.listdir(f"{base_dir}/unsent")) == 4
    report = check(store)
    assert (report.entries, report.damaged, report.orphans, report.ledger) == (2, 1, 0, report.disk)
    for method, arguments in ((store.unsent.update, (b"",)), (store.unsent.remove, ())):
        with pytest.raises(OSError, match="damaged"):
            method(b"k", "token", *arguments)


def test_a_record_of_a_stranger(make_store, base_dir):
    """A record that is not signed with the key is damaged: it is not found, and not removed."""
    written(make_store(), b"k", b"content")
    signed = make_store(signing_keys=(b"k" * 64,))
    assert signed.unsent.find(b"k") is None
    assert signed.unsent.all() == []
    assert len(os.listdir(f"{base_dir}/unsent")) == 2
    written(signed, b"k", b"signed")
    assert content_of(signed, b"k") == b"signed"


def test_a_content_of_another_length(make_store, base_dir, unsent_names):
    """A content that was cut off is not read as if it was whole."""
    store = make_store()
    written(store, b"k", b"content")
    content = next(name for name in unsent_names() if "." in name)
    with open(f"{base_dir}/unsent/{content}", "r+b") as file:
        file.truncate(3)
    with pytest.raises(ValueError, match="3 bytes instead of 7"):
        store.unsent.find(b"k").open()
    assert check(store).damaged == 1
    written(store, b"k", b"mended")


def test_a_symbolic_link_is_not_followed(make_store, base_dir, tmp_path):
    """A link in the place of the directory leads nobody elsewhere."""
    store = make_store()
    store.open()
    os.symlink(tmp_path, f"{base_dir}/unsent")
    with pytest.raises(OSError, match="symbolic link"):
        store.unsent.draft(b"k")
    assert store.unsent.find(b"k") is None
    os.unlink(f"{base_dir}/unsent")


def test_a_deleted_directory(make_store, base_dir):
    """A draft whose directory was deleted is not accepted; the next one is."""
    store = make_store()
    draft = store.unsent.draft(b"k")
    for name in os.listdir(f"{base_dir}/unsent"):
        os.unlink(f"{base_dir}/unsent/{name}")
    os.rmdir(f"{base_dir}/unsent")
    with pytest.raises(FileNotFoundError):
        draft.accept(b"")
    draft.discard()
    written(store, b"k", b"content")
    assert content_of(store, b"k") == b"content"


def test_nothing_is_made_by_looking(make_store, base_dir):
    """To ask for unsent files makes no directory for them."""
    store = make_store()
    assert store.unsent.find(b"k") is None
    assert store.unsent.all() == []
    assert not os.path.exists(f"{base_dir}/unsent")


def test_mutex(make_store):
    """The mutex of an unsent file excludes others of the same key, and not that of a value."""
    first, second = make_store(), make_store()
    mutex = first.unsent.mutex(b"k")
    assert mutex.acquire(wait=False)
    assert not second.unsent.mutex(b"k").acquire(wait=False)
    value = second.mutex(VALUE, b"k")
    assert value.acquire(wait=False)
    value.release()
    mutex.release()
