"""
A cached filesystem that pollers tell what has changed serves fresh files, without asking the source for each.
"""

from __future__ import annotations

import os

import pytest

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from dogpile_filesystem.poller import Event, PollerUnavailable, StorePoller  # noqa: E402 - after those that may be missing

OLD = cached.noise(3 * cached.BLOCK_SIZE, 1)
NEW = cached.noise(3 * cached.BLOCK_SIZE, 2)


class Said:
    """
    A poller that says what a test has it say.

    :ivar acknowledged: how often it was told that what it said is done.
    """

    url = "slow://"

    def __init__(self):
        self.events = []
        self.error = None
        self.acknowledged = 0

    def get_new_events(self):
        if self.error is not None:
            raise self.error
        events, self.events = self.events, []
        return events

    def ack(self):
        self.acknowledged += 1


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def poller(source):
    """
    A poller of the source.
    """
    with StorePoller("slow://", fs=source.fs, recurse=True, existing=True) as poller:
        yield poller


def test_fresh(make, source, poller):
    """With ``check="never"`` and a poller, a reader gets the version of the last poll, and asks when it is new."""
    fs = make(check="never")
    fs.watch(poller)
    for name in ("a", "d/b"):
        source.write(name, OLD)
    fs.poll()
    for name in ("a", "d/b"):
        assert fs.cat_file(name) == OLD
    source.write("a", NEW)
    assert fs.cat_file("a") == OLD
    assert fs.poll() == [("slow://a", "modified")]
    source.asked()
    assert fs.cat_file("a") == NEW
    assert fs.info("a")["size"] == len(NEW)
    # Before its blocks were read, and after that.
    assert source.asked("info") == 2
    # What has not changed is still there.
    assert fs.cat_file("a") + fs.cat_file("d/b") == NEW + OLD
    assert source.asked() == 0


def test_deleted(make, source, poller):
    """What was deleted at the source is missing after the poll, and none of its blocks is left."""
    fs = make(check="never")
    fs.watch(poller)
    source.write("a", OLD)
    assert fs.poll() == [("slow://a", "created")]
    fs.cat_file("a")
    assert fs.stats().entries == 4
    os.unlink(source.root / "a")
    assert fs.poll() == [("slow://a", "deleted")]
    assert fs.stats().entries == 0
    with pytest.raises(FileNotFoundError):
        fs.cat_file("a")
    source.write("a", NEW)
    fs.poll()
    assert fs.cat_file("a") == NEW


def test_cached_before(make, source, poller):
    """What was cached before the poller's first look is asked for again only if it has changed."""
    fs = make(check="never")
    for name in ("a", "b"):
        source.write(name, OLD)
        fs.cat_file(name)
    source.write("b", NEW)
    fs.watch(poller)
    assert len(fs.poll()) == 2
    source.asked()
    assert fs.cat_file("a") == OLD
    assert source.asked() == 0
    assert fs.cat_file("b") == NEW


def test_late_answer(make, source, said):
    """An answer of the source from before a change, that is noted after the poll, is dropped by the next poll."""
    fs = make(check="never")
    fs.watch(said)
    source.write("a", OLD)
    said.events = [Event("slow://a", "modified", identity="that of the new one")]
    fs.poll()
    assert fs.cat_file("a") == OLD  # As if it had asked before.
    source.write("a", NEW)
    fs.poll()
    assert fs.cat_file("a") == NEW


def test_listings(make, source, said, monkeypatch):
    """The listings of the directories in which something has changed are dropped, once for each."""
    dropped = []
    monkeypatch.setattr(type(source.fs), "invalidate_cache", lambda fs, path=None: dropped.append(path))
    fs = make(check="never")
    fs.watch(said)
    said.events = [("slow://d/e/a", "created"), ("slow://d/e/b", "deleted"), ("slow://d/c", "modified")]
    fs.poll()
    assert sorted(dropped) == ["d", "d/e"]


def test_unavailable(make, source, said):
    """A poller that cannot look raises its error; what others say is dropped nevertheless, and nothing else is."""
    fs, broken = make(check="never"), Said()
    fs.watch(broken)
    fs.watch(said)
    for name in ("a", "b"):
        source.write(name, OLD)
        fs.cat_file(name)
    broken.error = PollerUnavailable(5, "gone", "slow://")
    said.events = [("slow://a", "modified")]
    source.write("a", NEW)
    with pytest.raises(PollerUnavailable, match="gone"):
        fs.poll()
    assert (said.acknowledged, broken.acknowledged) == (1, 0)
    source.asked()
    assert fs.cat_file("a") == NEW
    assert source.asked("info") == 2  # Before its blocks were read, and after that.
    assert fs.cat_file("b") == OLD
    assert source.asked() == 0


def test_paths_of_another_source(make, source, said):
    """A poller whose URL is none of the source is refused, unless it is told how to make paths of its subjects."""
    fs = make(check="never")
    said.url = "swift://container"
    with pytest.raises(ValueError, match=r"swift://container.*slow.*to_path"):
        fs.watch(said)
    fs.watch(said, to_path=lambda subject: subject.removeprefix("swift://container/"))
    source.write("a", OLD)
    fs.cat_file("a")
    source.write("a", NEW)
    said.events = [("swift://container/a", "modified")]
    fs.poll()
    assert fs.cat_file("a") == NEW


def test_local_paths(base_dir, tmp_path):
    """The paths that a poller of a local directory reports are those of fsspec's local files."""
    poller_module = pytest.importorskip("dogpile_filesystem.poller")
    (tmp_path / "a").write_bytes(OLD)
    fs = cached.CachedFileSystem(target_protocol="file", base_dir=base_dir, check="never", skip_instance_cache=True)
    fs.source._sleep = lambda seconds: None
    with poller_module.FilePoller(str(tmp_path)) as poller:
        fs.watch(poller)
        fs.poll()
        fs.cat_file(f"{tmp_path}/a")
        (tmp_path / "a").write_bytes(NEW)
        assert fs.poll() == [(f"{tmp_path}/a", "modified")]
        assert fs.cat_file(f"{tmp_path}/a") == NEW


def test_processes(make, source, said, start):
    """What a poll of one process drops, other processes on the cache do not serve any more."""
    fs = make(check="never")
    source.write("a", OLD)
    reader = start(
        fs,
        """
    for line in sys.stdin:
        print(fs.cat_file("a")[:8].hex(), flush=True)
    """,
    )

    def read():
        reader.stdin.write("\n")
        reader.stdin.flush()
        return bytes.fromhex(reader.stdout.readline())

    fs.watch(said)
    assert read() == OLD[:8]
    source.write("a", NEW)
    assert read() == OLD[:8]
    said.events = [("slow://a", "modified")]
    fs.poll()
    assert read() == NEW[:8]
