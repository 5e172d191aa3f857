"""
The state of a poller: what survives, what is refused, and who gets which event.
"""

from __future__ import annotations

import os
import pickle
import sqlite3
import threading

import pytest
from forked import Child
from polling import reported

from dogpile_filesystem.poller import FilePoller, PollerUnavailable
from dogpile_filesystem.poller.database import Database


def test_acknowledged_by_the_next_call(tree, watch, state):
    """What a call returned is acknowledged by the next call, and by nothing before."""
    first, second = (watch(FilePoller, tree.root, state=state, existing=True) for _ in range(2))
    tree.write("a")
    assert reported(first, tree.root) == {"a": "created"}
    assert reported(second, tree.root) == {}
    assert first.get_new_events() == []
    assert second.get_new_events() == []


def test_acknowledged_by_ack_and_close(tree, state):
    """``ack()`` and ``close()`` acknowledge, so that nobody gets the event again."""
    for end in (FilePoller.ack, FilePoller.close):
        tree.write("a", f"{end}")
        poller = FilePoller(tree.root, state=state, existing=True)
        assert len(poller.get_new_events()) == 1
        end(poller)
        poller.close()
        with FilePoller(tree.root, state=state) as after:
            assert after.get_new_events() == []


def test_not_acknowledged_by_an_exception(tree, state):
    """A block that raises leaves what it got to the next poller."""
    tree.write("a")
    with pytest.raises(ZeroDivisionError), FilePoller(tree.root, state=state, existing=True) as poller:
        assert len(poller.get_new_events()) == 1
        raise ZeroDivisionError
    with FilePoller(tree.root, state=state) as after:
        assert reported(after, tree.root) == {"a": "created"}


def test_interrupted_call(tree, watch, state, monkeypatch):
    """What a call was about to return when it was interrupted is returned by the next one."""
    poller = watch(FilePoller, tree.root, state=state, existing=True)
    tree.write("a")
    with monkeypatch.context() as patched:
        patched.setattr(poller, "_event", {}.__getitem__)
        with pytest.raises(KeyError):
            poller.get_new_events()
    assert reported(poller, tree.root) == {"a": "created"}


def test_killed_before_acknowledging(tree, watch, state):
    """What a process got that was killed before it acknowledged goes to the next one, at once."""
    tree.write("a")

    def work():
        poller = FilePoller(tree.root, state=state, existing=True)
        return poller.get_new_events()

    assert len(Child(work).result()) == 1
    assert reported(watch(FilePoller, tree.root, state=state), tree.root) == {"a": "created"}


def test_dropped(tree, state):
    """What a poller got that was dropped, without an end, goes to the next one, also in another process."""
    tree.write("a")
    poller = FilePoller(tree.root, state=state, existing=True)
    assert len(poller.get_new_events()) == 1

    def work():
        with FilePoller(tree.root, state=state) as after:
            return reported(after, tree.root)

    assert Child(work).result() == {}
    del poller
    assert Child(work).result() == {"a": "created"}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("created", "modified", {"a": "created"}),
        ("created", "deleted", {}),
        ("modified", "modified", {"a": "modified"}),
        ("modified", "deleted", {"a": "deleted"}),
        ("deleted", "created", {"a": "modified"}),
    ],
)
def test_merged_until_handed_out(tree, watch, state, first, second, expected):
    """Two events of one path that nobody has got yet are one event, or none."""
    if first != "created":
        tree.write("a")
    tree.write("b")
    poller, other = (watch(FilePoller, tree.root, state=state) for _ in range(2))
    assert poller.get_new_events() == []
    tree.write("b", "longer")
    happen(tree, first)
    assert reported(poller, tree.root, 1) == {"b": "modified"}
    # The limit holds the event of "a" back.
    happen(tree, second)
    assert reported(other, tree.root) == expected
    assert reported(poller, tree.root) == {}


def happen(tree, event):
    if event == "deleted":
        tree.delete("a")
    else:
        tree.write("a", f"{event} {os.urandom(4)}")


def test_deleted_after_a_kill(tree, watch, state):
    """A file that a killed process was told of, and that is deleted then, is reported as deleted."""
    tree.write("a")
    assert len(Child(lambda: FilePoller(tree.root, state=state, existing=True).get_new_events()).result()) == 1
    tree.delete("a")
    assert reported(watch(FilePoller, tree.root, state=state), tree.root) == {"a": "deleted"}


def test_one_event_of_a_path_at_a_time(tree, watch, state):
    """While one poller has an event of a path, no other gets the next one of it; then that one does."""
    first, second = (watch(FilePoller, tree.root, state=state, existing=True) for _ in range(2))
    tree.write("a")
    assert reported(first, tree.root) == {"a": "created"}
    tree.write("a", "longer")
    tree.write("b")
    assert reported(second, tree.root, 1) == {"b": "created"}
    assert reported(second, tree.root, 1) == {}
    first.ack()
    assert reported(second, tree.root) == {"a": "modified"}


def test_limit(tree, watch, state):
    """A limit hands out so many events, the oldest first, and keeps the others."""
    poller = watch(FilePoller, tree.root, state=state, existing=True)
    for number in range(5):
        tree.write(f"{number}")
    found = [poller.get_new_events(limit=2) for _ in range(4)]
    assert list(map(len, found)) == [2, 2, 1, 0]
    assert len({event.subject for events in found for event in events}) == 5
    with pytest.raises(ValueError, match="limit=0"):
        poller.get_new_events(limit=0)


def test_only_one_looks(tree, watch, state, monkeypatch):
    """While one process looks, the others hand out what is there, and do not wait."""
    looking, others = threading.Event(), threading.Event()
    slow = watch(FilePoller, tree.root, state=state, existing=True)
    quick = watch(FilePoller, tree.root, state=state, existing=True)
    look = slow._look

    def wait(known):
        looking.set()
        assert others.wait(300)
        yield from look(known)

    monkeypatch.setattr(slow, "_look", wait)
    tree.write("a")
    found = []
    thread = threading.Thread(target=lambda: found.extend(slow.get_new_events()))
    thread.start()
    assert looking.wait(300)
    assert quick.get_new_events() == []
    assert quick.stats().looks == 0
    others.set()
    thread.join()
    assert [event.event for event in found] == ["created"]


def test_fork(tree, watch, state):
    """A child of fork is a poller of its own: it gets nothing that its parent has, and lets it keep what it has."""
    poller = watch(FilePoller, tree.root, state=state, existing=True)
    tree.write("a")
    assert len(poller.get_new_events()) == 1

    def work():
        tree.write("b")
        return [poller.get_new_events(), poller.get_new_events()]

    assert [[event.event for event in events] for events in Child(work).result()] == [["created"], []]
    # The child ended without acknowledging by a close, but its second call acknowledged its first.
    assert poller.get_new_events() == []


def test_fork_in_memory(tree, watch, local_poller):
    """Without a state, parent and child go on from the same snapshot, each for itself."""
    poller = watch(local_poller, tree.root)
    assert poller.get_new_events() == []
    tree.write("a")
    assert Child(lambda: reported(poller, tree.root)).result() == {"a": "created"}
    assert reported(poller, tree.root) == {"a": "created"}


def test_other_options(tree, state):
    """A state made with other options, or for another root, is refused with what differs; ``reset`` starts anew."""
    FilePoller(tree.root, state=state).close()
    with pytest.raises(ValueError, match=r"recurse=False.*recurse=True.*reset=True"):
        FilePoller(tree.root, state=state, recurse=True)
    with pytest.raises(ValueError, match="was made with url"):
        FilePoller(tree.outside, state=state)
    with FilePoller(tree.root, state=state, recurse=True, reset=True) as poller:
        assert poller.get_new_events() == []
    FilePoller(tree.root, state=state, recurse=True, settle=1).close()


@pytest.mark.parametrize("damage", ["garbage", "cut", "zeros", "other program"])
def test_damaged(tree, watch, state, damage):
    """A damaged state, or the database of another program, is refused with what to do; ``reset`` starts anew."""
    with FilePoller(tree.root, state=state, existing=True) as poller:
        for number in range(300):
            tree.write(f"file with a long name {number}")
        assert len(poller.get_new_events()) == 300
    if damage == "other program":
        os.unlink(state)
        with sqlite3.connect(state) as connection:
            connection.execute("CREATE TABLE other (a)")
        connection.close()
    else:
        size = os.path.getsize(state)
        with open(state, "r+b") as file:
            if damage == "garbage":
                file.write(os.urandom(size))
            elif damage == "cut":
                file.truncate(size // 2)
            else:
                file.seek(4096)
                file.write(bytes(size - 4096))
    with pytest.raises(ValueError, match=r"damaged|another program") as caught:
        FilePoller(tree.root, state=state)
    assert state in str(caught.value)
    assert watch(FilePoller, tree.root, state=state, reset=True).get_new_events() == []


def test_damaged_blob(tree, watch, state):
    """Damage in what is known of a directory, which sqlite cannot notice, is noticed when it is compared."""
    tree.write("a")
    with FilePoller(tree.root, state=state) as poller:
        poller.get_new_events()
    with sqlite3.connect(state) as connection:
        [(data,)] = connection.execute("SELECT data FROM contents")
        connection.execute("UPDATE contents SET data = ?", (data[:-1] + bytes([data[-1] ^ 1]),))
    connection.close()
    poller = watch(FilePoller, tree.root, state=state)
    with pytest.raises(ValueError, match=r"damaged.*reset=True"):
        poller.get_new_events()


def test_removed_while_in_use(tree, state):
    """A state that was removed or replaced while it is in use is reported at the next call."""
    poller = FilePoller(tree.root, state=state)
    assert poller.get_new_events() == []
    os.rename(state, f"{state}.old")
    with pytest.raises(OSError, match="removed or replaced"):
        poller.get_new_events()
    os.rename(f"{state}.old", state)
    assert poller.get_new_events() == []
    poller.close()


def test_lock_file_deleted(tree, watch, state):
    """Who deletes the lock file does not make an event go to two pollers."""
    first, second = (watch(FilePoller, tree.root, state=state, existing=True) for _ in range(2))
    tree.write("a")
    assert len(first.get_new_events()) == 1
    os.unlink(f"{state}.lock")
    assert second.get_new_events() == []


def test_places(tree, tmp_path):
    """A state inside what is watched, or in a directory that is missing, is refused."""
    with pytest.raises(ValueError, match="would report itself"):
        FilePoller(tree.root, state=f"{tree.root}/state")
    tree.make_directory("d")
    with pytest.raises(ValueError, match="would report itself"):
        FilePoller(tree.root, state=f"{tree.root}/d/state", recurse=True)
    FilePoller(tree.root, state=f"{tree.root}/d/state").close()
    with pytest.raises(FileNotFoundError, match="make it first"):
        FilePoller(tree.root, state=tmp_path / "missing" / "state")


def test_network(tree, state, monkeypatch):
    """A state on a network filesystem is refused."""
    monkeypatch.setattr("dogpile_filesystem.poller.places._type_of", lambda _: 0x6969)
    with pytest.raises(ValueError, match=r"NFS.*local disk"):
        FilePoller(tree.root, state=state)


def test_private(tree, watch, state):
    """Only the owner can read a state, and what lies beside it."""
    watch(FilePoller, tree.root, state=state, existing=True).get_new_events()
    names = os.listdir(os.path.dirname(state))
    assert {f"state{suffix}" for suffix in ("", ".lock", "-wal")} <= set(names)
    assert {os.stat(f"{os.path.dirname(state)}/{name}").st_mode & 0o777 for name in names} == {0o600}


def test_failed_write(tree, watch, state, monkeypatch):
    """If the state cannot be written, the call raises an OSError, and the next one reports what this one found."""
    poller = watch(FilePoller, tree.root, state=state)
    assert poller.get_new_events() == []
    tree.write("a")

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(poller._outbox, "add", full)
        with pytest.raises(OSError, match="disk is full"):
            poller.get_new_events()
    assert reported(poller, tree.root) == {"a": "created"}


def test_closed(tree, state):
    """A closed poller says so; to close it twice does no harm, and leaves no descriptor open."""
    poller = FilePoller(tree.root, state=state)
    poller.close()
    poller.close()
    with pytest.raises(ValueError, match="is closed"):
        poller.get_new_events()


def test_descriptors(tree, state, local_poller, open_descriptors):
    """Pollers that are closed or dropped leave no descriptor open."""
    before = open_descriptors()
    for end in (local_poller.close, lambda _: None):
        poller = local_poller(tree.root, recurse=True, state=state)
        poller.get_new_events()
        end(poller)
        del poller
    assert open_descriptors() <= before


def test_event(tree, watch):
    """An event is the pair of subject and event, with size, identity and time as attributes, and can be pickled."""
    poller = watch(FilePoller, tree.root, existing=True, clock=lambda: 1_000_000.5)
    tree.write("a", "12345")
    [event] = poller.get_new_events()
    subject, kind = event
    assert (subject, kind) == event == (f"{tree.root}/a", "created")
    assert (event.subject, event.event, event.size, event.first_seen) == (subject, kind, 5, 1_000_000.5)
    assert event.identity.startswith("stat:")
    copy = pickle.loads(pickle.dumps(event))
    assert (copy, copy.size, copy.identity) == (event, event.size, event.identity)
    tree.delete("a")
    [event] = poller.get_new_events()
    assert (event.event, event.size, event.identity) == ("deleted", 5, None)


def test_format(tree, state):
    """A state of another format is refused."""
    FilePoller(tree.root, state=state).close()
    connection = sqlite3.connect(state)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(ValueError, match="has format 99"):
        FilePoller(tree.root, state=state)


def test_opened_by_several_at_once(tree, state):
    """Processes that make one state at the same moment all get it."""
    children = [Child(lambda: len(FilePoller(tree.root, state=state).get_new_events())) for _ in range(8)]
    assert [child.result() for child in children] == [0] * 8
    with FilePoller(tree.root, state=state) as poller:
        tree.write("a")
        assert reported(poller, tree.root) == {"a": "created"}


def test_mass_deletion(tree, watch):
    """If a larger part of the files is gone than ``max_deleted``, the call raises, and nothing is reported."""
    poller = watch(FilePoller, tree.root, max_deleted=0.5)
    for name in "abcd":
        tree.write(name)
    poller.get_new_events()
    tree.delete("a")
    tree.delete("b")
    assert reported(poller, tree.root) == {"a": "deleted", "b": "deleted"}
    tree.delete("c")
    tree.delete("d")
    with pytest.raises(PollerUnavailable, match="2 of 2 known files are gone"):
        poller.get_new_events()
    tree.write("c")
    assert reported(poller, tree.root) == {"c": "modified", "d": "deleted"}


def test_database_in_memory_is_private():
    """Two pollers without a state share nothing."""
    first, second = Database(None, {}), Database(None, {})
    first.set("name", "value")
    assert (first.get("name"), second.get("name")) == ("value", "")
    first.close()
    second.close()
