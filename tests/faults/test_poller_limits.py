"""
The limits of inotify, provoked for real, and filesystems that go away. The limits are the machine's, and are restored.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import disks
import pytest
from polling import reported
from situations import Tree

from dogpile_filesystem.poller import FilePoller, INotifyPoller, PollerUnavailable

pytest.importorskip("inotify_simple")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to set limits and to mount")
MANY = 5_000


@contextlib.contextmanager
def limit(name, value):
    """One of the kernel's limits of inotify, for a while."""
    path = Path(f"/proc/sys/fs/inotify/{name}")
    before = path.read_text()
    path.write_text(f"{value}")
    try:
        yield
    finally:
        path.write_text(before)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_overflow(tree):
    """When the queue overflows, all that happened is reported, once, and the overflow is counted."""
    with (
        limit("max_queued_events", 64),
        INotifyPoller(tree.root, recurse=True, full_every=3600) as poller,
    ):
        tree.write("d/first")
        assert poller.get_new_events() == []
        for number in range(MANY):
            tree.write(f"d/{number}", "")
        tree.write("e/last")
        expected = {f"d/{number}": "created" for number in range(MANY)} | {"e/last": "created"}
        assert reported(poller, tree.root) == expected
        assert poller.stats().overflows == 1
        tree.write("e/last", "longer")
        assert reported(poller, tree.root) == {"e/last": "modified"}
        assert poller.stats().overflows == 1


def test_limit_of_watches(tree):
    """Directories beyond the limit of watches are looked at in each call, and nothing in them is missed."""
    for number in range(200):
        tree.write(f"{number}/e/a")
    with limit("max_user_watches", 50), INotifyPoller(tree.root, recurse=True, full_every=3600) as poller:
        assert poller.get_new_events() == []
        assert poller.stats().unwatched >= 401 - 25
        for number in range(200):
            tree.write(f"{number}/e/a", "longer")
            tree.write(f"{number}/f/b")
        expected = {f"{number}/e/a": "modified" for number in range(200)}
        expected |= {f"{number}/f/b": "created" for number in range(200)}
        assert reported(poller, tree.root) == expected
        assert reported(poller, tree.root) == {}


def test_limit_of_instances(tree):
    """Where the kernel gives no queue, everything is looked at, until it gives one."""
    tree.write("d/a")
    with INotifyPoller(tree.root, recurse=True, full_every=3600) as poller:
        with limit("max_user_instances", 0):
            assert poller.get_new_events() == []
            tree.write("d/a", "longer")
            assert reported(poller, tree.root) == {"d/a": "modified"}
            assert poller.stats().unwatched == 2
        tree.write("d/b")
        assert reported(poller, tree.root) == {"d/b": "created"}
        assert poller.stats().unwatched == 0


@pytest.mark.parametrize("kind", [FilePoller, INotifyPoller], ids=["scan", "hints"])
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_unmounted(tmp_path, kind, restart):
    """While the filesystem of the root is not mounted, calls raise; when it is back, they tell what is different."""
    with disks.image(tmp_path, 64 << 20, "mkfs.ext4", "-q") as disk:
        root = str(disk.room)
        options = {"recurse": True, "state": tmp_path / "state"}
        with contextlib.ExitStack() as stack:
            poller = stack.enter_context(kind(root, **options))
            write(f"{root}/d/a")
            write(f"{root}/b")
            assert poller.get_new_events() == []
            if restart:
                poller.close()
            disk.unmount()
            if restart:
                poller = stack.enter_context(kind(root, **options))
            for _ in range(2):
                with pytest.raises(PollerUnavailable):
                    poller.get_new_events()
            disk.mount()
            write(f"{root}/d/a", "longer")
            assert reported(poller, root) == {"d/a": "modified"}
            write(f"{root}/d/c")
            assert reported(poller, root) == {"d/c": "created"}
            poller.close()


@pytest.mark.parametrize("kind", [FilePoller, INotifyPoller], ids=["scan", "hints"])
def test_bind_mount_gone(tree, kind):
    """A directory of the same filesystem that is mounted as the root is told from the empty directory below it."""
    tree.write("@a")
    disk = disks.Disk(Path(tree.root), "--bind", tree.outside)
    try:
        disk.mount()
        with kind(tree.root) as poller:
            assert poller.get_new_events() == []
            disk.unmount()
            with pytest.raises(PollerUnavailable, match="not be mounted"):
                poller.get_new_events()
            disk.mount()
            tree.write("@b")
            assert reported(poller, tree.root) == {"b": "created"}
    finally:
        disk.discard()


@pytest.mark.parametrize("kind", [FilePoller, INotifyPoller], ids=["scan", "hints"])
def test_another_filesystem(tmp_path, kind):
    """Another filesystem at the same place is refused, unless ``rebind`` accepts it."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    place = tmp_path / "place"
    place.mkdir()
    disk = disks.Disk(place, "-t", "tmpfs", "-o", "size=1m", "none")
    state = tmp_path / "state"
    try:
        disk.mount()
        write(f"{place}/a")
        with kind(str(place), state=state) as poller:
            assert poller.get_new_events() == []
        disk.unmount()
        disk.mount()
        write(f"{place}/b")
        with kind(str(place), state=state) as poller, pytest.raises(PollerUnavailable, match="rebind=True"):
            poller.get_new_events()
        with kind(str(place), state=state, rebind=True) as poller:
            assert reported(poller, str(place)) == {"a": "deleted", "b": "created"}
        with kind(str(place), state=state) as poller:
            assert poller.get_new_events() == []
    finally:
        disk.discard()


def write(path, data="data"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(data)
