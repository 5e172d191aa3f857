"""
The options of the local pollers, and what they do when something cannot be looked at.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

import pytest
from forked import Child
from polling import reported
from situations import Tree

from dogpile_filesystem.poller import FilePoller, INotifyPoller, PollerUnavailable

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to act as several users")
NOBODY = (65534, 65534, [])


def test_existing(tree, watch, local_poller):
    """With ``existing``, the first call reports what is there; without it, nothing."""
    tree.write("a")
    assert reported(watch(local_poller, tree.root, existing=True), tree.root) == {"a": "created"}
    assert reported(watch(local_poller, tree.root), tree.root) == {}


def test_settle(tree, watch, local_poller, clock):
    """A file that changed less than ``settle`` seconds ago is not reported; once it is, with all its changes, once."""
    poller = watch(local_poller, tree.root, recurse=True, settle=10, clock=clock)
    tree.write("d/old")
    poller.get_new_events()
    clock.now = os.stat(tree.path("d/old")).st_ctime + 100
    tree.write("d/new")
    tree.write("d/old", "longer")
    tree.write("d/short")
    clock.now = os.stat(tree.path("d/short")).st_ctime + 9
    assert reported(poller, tree.root) == {}
    tree.write("d/new", "longer")
    tree.delete("d/short")
    clock.now = os.stat(tree.path("d/new")).st_ctime + 9.99
    assert set(reported(poller, tree.root)) <= {"d/old"}
    clock.move(100)
    assert reported(poller, tree.root).items() <= {"d/new": "created", "d/old": "modified"}.items()
    assert reported(poller, tree.root) == {}


def test_settle_with_a_clock_behind(tree, watch, local_poller, clock):
    """Where the files have times in the future, ``settle`` counts from when a look found them."""
    poller = watch(local_poller, tree.root, settle=10, clock=clock)  # Its clock is years behind.
    poller.get_new_events()
    tree.write("a")
    found = []
    for _ in range(3):
        found.append(reported(poller, tree.root))
        clock.move(6)
    assert found == [{}, {}, {"a": "created"}]


def test_settle_of_names(tree, watch, local_poller, clock):
    """``settle`` goes with ``contents=False``: a new name is reported when it has been there for so long."""
    poller = watch(local_poller, tree.root, recurse=True, settle=10, contents=False, clock=clock)
    tree.make_directory("d")
    poller.get_new_events()
    tree.write("d/a")
    found = []
    for _ in range(3):
        found.append(reported(poller, tree.root))
        clock.move(6)
    assert found == [{}, {}, {"d/a": "created"}]


def test_first_look_with_settle(tree, watch, local_poller):
    """What is there at the first look is not reported later, even if it had not settled."""
    tree.write("a")
    poller = watch(local_poller, tree.root, settle=3600)
    assert [reported(poller, tree.root) for _ in range(2)] == [{}, {}]


def test_directories(tree, watch, local_poller):
    """With ``directories``, directories are created and deleted, and not modified by what happens in them."""
    poller = watch(local_poller, tree.root, recurse=True, directories=True)
    tree.write("d/e/a")
    assert reported(poller, tree.root) == {}
    tree.write("d/e/b")
    assert reported(poller, tree.root) == {"d/e/b": "created"}
    tree.make_directory("f/g")
    assert reported(poller, tree.root) == {"f": "created", "f/g": "created"}
    tree.rename("d", "@d")
    tree.write("d")
    expected = {"d": "modified", "d/e": "deleted", "d/e/a": "deleted", "d/e/b": "deleted"}
    assert reported(poller, tree.root) == expected
    tree.delete("d")
    tree.rename("@d", "d")
    assert reported(poller, tree.root) == expected | {"d/e": "created", "d/e/a": "created", "d/e/b": "created"}


def test_patterns(tree, watch, local_poller):
    """Only subjects that match ``include`` and not ``exclude`` are reported, and none below an excluded directory."""
    options = {"include": ["*.csv", "d/*.txt"], "exclude": ["tmp*", ".git"], "recurse": True}
    poller = watch(local_poller, tree.root, **options)
    poller.get_new_events()
    for name in ("a.csv", "tmp.csv", "a.txt", "d/a.txt", "d/e/a.txt", "d/e/a.csv", ".git/a.csv", "d/.git/a.csv"):
        tree.write(name)
    assert reported(poller, tree.root) == dict.fromkeys(["a.csv", "d/a.txt", "d/e/a.csv"], "created")
    assert reported(watch(local_poller, tree.root, include="*.csv", existing=True), tree.root).keys() == {
        "a.csv",
        "tmp.csv",
    }


def test_links_followed(tree, watch, local_poller):
    """With ``follow_symlinks``, a link is reported when its file changes; one to a directory is not entered."""
    poller = watch(local_poller, tree.root, recurse=True, follow_symlinks=True, full_every=3600)
    tree.write("@d/a")
    os.symlink(tree.path("@d/a"), tree.path("file"))
    os.symlink(tree.path("@d"), tree.path("directory"))
    os.symlink("loop", tree.path("loop"))
    os.symlink("nowhere", tree.path("dangling"))
    assert reported(poller, tree.root) == {}
    tree.write("@d/a", "longer")
    tree.write("@d/b")
    assert reported(poller, tree.root) == {"file": "modified"}
    tree.delete("@d/a")
    assert reported(poller, tree.root) == {"file": "modified"}


def test_only_changed_directories_are_listed(tree, watch):
    """With ``contents=False``, a directory whose names have not changed is not listed again."""
    for name in ("a", "d/a", "d/e/a"):
        tree.write(name)
        os.utime(os.path.dirname(tree.path(name)))
    clock = [os.stat(tree.root).st_ctime + 3600]
    poller = watch(FilePoller, tree.root, recurse=True, contents=False, clock=lambda: clock[0])
    poller.get_new_events()
    listed = poller.stats().directories
    tree.write("d/e/a", "longer")
    assert reported(poller, tree.root) == {}
    assert poller.stats().directories == listed
    tree.write("d/e/b")
    assert reported(poller, tree.root) == {"d/e/b": "created"}
    assert poller.stats().directories == listed + 1


def test_create(tree, watch, local_poller):
    """A missing root is an error, unless ``create`` makes it, once."""
    path = tree.path("@missing")
    poller = watch(local_poller, path)
    with pytest.raises(PollerUnavailable) as caught:
        poller.get_new_events()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, path)
    assert reported(watch(local_poller, path, create=True), path) == {}
    assert reported(poller, path) == {}


@pytest.mark.parametrize("harm", ["renamed", "removed", "a file"])
def test_root_gone(tree, watch, local_poller, harm):
    """While the root is gone, each call raises; when one is there again, what is different is reported."""
    poller = watch(local_poller, tree.root, recurse=True)
    tree.write("d/a")
    tree.write("d/b")
    assert reported(poller, tree.root) == {}
    os.rename(tree.root, tree.path("@kept"))
    if harm == "a file":
        with open(tree.root, "w"):
            pass
    for _ in range(2):
        with pytest.raises(PollerUnavailable, match=tree.root):
            poller.get_new_events()
    if harm == "a file":
        os.unlink(tree.root)
    if harm == "removed":
        os.mkdir(tree.root)
        tree.write("d/a")
        expected = {"d/a": "modified", "d/b": "deleted"}
    else:
        os.rename(tree.path("@kept"), tree.root)
        expected = {}
    assert reported(poller, tree.root) == expected
    tree.write("d/a", "longer")
    assert reported(poller, tree.root) == {"d/a": "modified"}


def test_root_replaced_between_calls(tree, watch, local_poller):
    """If another directory of the same filesystem is at the path, the files in the one before are gone."""
    poller = watch(local_poller, tree.root, recurse=True)
    for name in ("a", "d/b", "@d/b", "@c"):
        tree.write(name)
    poller.get_new_events()
    os.rename(tree.root, f"{tree.outside}.old")
    os.rename(tree.outside, tree.root)
    assert reported(poller, tree.root) == {"a": "deleted", "d/b": "modified", "c": "created"}
    os.rename(f"{tree.outside}.old", tree.outside)
    tree.write("d/b", "longer")
    assert reported(poller, tree.root) == {"d/b": "modified"}


@pytest.fixture
def nobodys():
    """A tree of another user. Every user can reach it, unlike those of pytest."""
    directory = tempfile.mkdtemp()
    os.chmod(directory, 0o755)
    tree = Tree(directory)
    for name in ("d/a", "d/e/b", "c"):
        tree.write(name)
    for above, _, names in os.walk(directory):
        for path in (above, *(os.path.join(above, name) for name in names)):
            os.chown(path, NOBODY[0], NOBODY[1])
    yield tree
    shutil.rmtree(directory)


@as_root
def test_unreadable_root(nobodys, local_poller):
    """A root that may be listed but not entered, or not be listed at all, is an error, and nothing is deleted."""

    def work():
        poller = local_poller(nobodys.root)
        found = [reported(poller, nobodys.root)]
        for mode in (0o444, 0o000):
            os.chmod(nobodys.root, mode)
            with pytest.raises(PollerUnavailable, match="Permission denied"):
                poller.get_new_events()
        os.chmod(nobodys.root, 0o755)
        return [*found, reported(poller, nobodys.root)]

    assert Child(work, NOBODY).result() == [{}, {}]


@as_root
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_unreadable_subtree(nobodys, local_poller, mode):
    """What cannot be looked at keeps what is known of it, is counted, and is reported when it can be looked at."""

    def work():
        poller = local_poller(nobodys.root, recurse=True, full_every=3600)
        found = [reported(poller, nobodys.root)]
        nobodys.write("d/e/b", "longer")
        os.chmod(nobodys.path("d"), mode)
        found.append(reported(poller, nobodys.root))
        skipped = poller.stats().skipped
        nobodys.write("c", "longer")
        found.append(reported(poller, nobodys.root))
        os.chmod(nobodys.path("d"), 0o755)
        return found, skipped, reported(poller, nobodys.root), poller.stats().skipped

    found, skipped, after, skipped_after = Child(work, NOBODY).result()
    assert found[0] == {}
    # Hints lead to the inner directory by its name, where the mode allows that.
    assert {**found[1], **after} == {"d/e/b": "modified"}
    assert found[2] == {"c": "modified"}
    assert (skipped > 0, skipped_after) == (True, 0)


def test_vanishes_during_the_look(tree, watch, local_poller, monkeypatch):
    """A file or directory that vanishes between its listing and the look at it counts as not there."""
    for name in ("a", "d/b", "e/c"):
        tree.write(name)
    poller = watch(local_poller, tree.root, recurse=True, existing=True)
    scan = poller._scanner.scan

    def scan_and_remove(fd, path, known):
        found = scan(fd, path, known)
        shutil.rmtree(tree.path("d"), ignore_errors=True)
        return found

    monkeypatch.setattr(poller._scanner, "scan", scan_and_remove)
    assert reported(poller, tree.root) == {"a": "created", "e/c": "created"}
    assert reported(poller, tree.root) == {}


def test_deep(tree, watch, local_poller):
    """A tree of hundreds of levels is looked at as any other."""
    path = "/".join(["d"] * 400)
    tree.write(f"{path}/a")
    poller = watch(local_poller, tree.root, recurse=True, existing=True)
    assert reported(poller, tree.root) == {f"{path}/a": "created"}
    tree.write(f"{path}/b")
    assert reported(poller, tree.root) == {f"{path}/b": "created"}


@pytest.mark.time_intensive
def test_many_files_in_one_directory(tree, watch, local_poller, state):
    """A directory of many files is known in parts, and a change in it writes one of them."""
    for number in range(9_000):
        os.close(os.open(tree.path(f"{number}"), os.O_CREAT))
    poller = watch(local_poller, tree.root, state=state, existing=True)
    assert len(reported(poller, tree.root)) == 9_000
    assert reported(poller, tree.root) == {}
    parts = poller._known.blobs("")
    assert len(parts) > 1
    tree.write("17", "longer")
    tree.delete("18")
    tree.write("new")
    assert reported(poller, tree.root) == {"17": "modified", "18": "deleted", "new": "created"}
    after = poller._known.blobs("")
    assert sum(parts[bucket] != after[bucket] for bucket in parts) <= 3
    for number in range(100, 9_000):
        os.unlink(tree.path(f"{number}"))
    assert set(reported(poller, tree.root).values()) == {"deleted"}
    assert len(poller._known.blobs("")) == 1
    assert reported(poller, tree.root) == {}
    assert poller._known.count == len(os.listdir(tree.root))


def test_path_forms(tree, watch, local_poller):
    """The root may be text, bytes, path-like or a URL; the subjects are absolute paths."""
    tree.write("a")
    here = os.open(".", os.O_RDONLY)
    os.chdir(tree.root)
    try:
        forms = [tree.root, os.fsencode(tree.root), f"file://{tree.root}", ".", f"{tree.root}/"]
        for form in forms:
            [event] = watch(local_poller, form, existing=True).get_new_events()
            assert event.subject == f"{tree.root}/a"
    finally:
        os.fchdir(here)
        os.close(here)
    with pytest.raises(ValueError, match="is no path"):
        local_poller("")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recursive": True}, TypeError, "did you mean 'recurse'"),
        ({"xyz": 1}, TypeError, "known are recurse"),
        ({"recurse": 1}, TypeError, "True or False"),
        ({"settle": "1"}, TypeError, "seconds"),
        ({"settle": -1}, ValueError, "0 or more"),
        ({"settle": float("nan")}, ValueError, "0 or more"),
        ({"max_deleted": 1.5}, ValueError, "from 0 to 1"),
        ({"include": [1]}, TypeError, "is no glob"),
        ({"exclude": 1}, TypeError, "glob"),
        ({"state": 1}, TypeError, "path of a file"),
        ({"state": ""}, ValueError, "path of a file"),
    ],
)
def test_misuse(tree, options, error, message):
    """Misuse of an option raises at once, and says what to pass."""
    with pytest.raises(error, match=message):
        FilePoller(tree.root, **options)


def test_hints_are_forgotten_with_their_directories(tree, watch):
    """Watches of directories that are gone are given back, and what is moved is watched under its new name."""
    pytest.importorskip("inotify_simple")
    for name in ("a/b/c/x", "d/y"):
        tree.write(name)
    poller = watch(INotifyPoller, tree.root, recurse=True, full_every=3600)
    poller.get_new_events()
    tree.rename("a/b", "d/b")
    poller.get_new_events()
    assert sorted(poller._watches._paths.values()) == ["", "a", "d", "d/b", "d/b/c"]
    tree.delete_tree("d")
    poller.get_new_events()
    assert sorted(poller._watches._paths.values()) == ["", "a"]
    tree.rename("a", "@a")
    poller.get_new_events()
    assert sorted(poller._watches._paths.values()) == [""]


def test_another_process_looked(tree, watch, state):
    """A directory that another process found first is watched by this one, too."""
    pytest.importorskip("inotify_simple")
    options = {"recurse": True, "state": state, "full_every": 3600}
    first, second = (watch(INotifyPoller, tree.root, **options) for _ in range(2))
    first.get_new_events()
    second.get_new_events()
    tree.write("d/e/a")
    assert reported(first, tree.root) == {"d/e/a": "created"}
    assert reported(second, tree.root) == {}
    tree.write("d/e/b")
    assert reported(second, tree.root) == {"d/e/b": "created"}
    assert reported(first, tree.root) == {}


def test_full_every(tree, watch, clock):
    """What no hint tells of is found after ``full_every`` seconds."""
    pytest.importorskip("inotify_simple")
    poller = watch(INotifyPoller, tree.root, full_every=60, clock=clock)
    tree.write("a")
    os.link(tree.path("a"), tree.path("@other"))
    poller.get_new_events()
    poller._again.clear()  # Its clock is behind, so that every file looks as if it had just changed.
    tree.write("@other", "longer")
    assert reported(poller, tree.root) == {}
    clock.move(60)
    assert reported(poller, tree.root) == {"a": "modified"}


def test_other_filesystems_are_scanned(tree, watch, monkeypatch):
    """Where the kind of the filesystem does not promise hints, every directory is looked at in each call."""
    pytest.importorskip("inotify_simple")
    monkeypatch.setattr("dogpile_filesystem.poller.watches.tells_all_changes", lambda _: False)
    for name in ("a", "d/b"):
        tree.write(name)
    os.link(tree.path("d/b"), tree.path("@other"))
    poller = watch(INotifyPoller, tree.root, recurse=True, full_every=3600)
    poller.get_new_events()
    assert poller.stats().unwatched == 2
    tree.write("@other", "longer")
    assert reported(poller, tree.root) == {"d/b": "modified"}


def test_failed_look_loses_no_hint(tree, watch, monkeypatch):
    """A look that fails after it has read the hints is made up for by the next."""
    pytest.importorskip("inotify_simple")
    tree.write("d/a")
    poller = watch(INotifyPoller, tree.root, recurse=True, full_every=3600)
    poller.get_new_events()
    tree.write("d/a", "longer")
    with monkeypatch.context() as patched:
        patched.setattr(poller._outbox, "add", {}.__getitem__)
        with pytest.raises(KeyError):
            poller.get_new_events()
    assert reported(poller, tree.root) == {"d/a": "modified"}
