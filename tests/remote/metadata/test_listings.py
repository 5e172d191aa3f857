"""
Listings and metadata are answered from the cache for as long as they are good, and what is changed through the cache
shows at once, whatever the source lists.
"""

from __future__ import annotations

import os
import pathlib
import time

import pytest

fsspec = pytest.importorskip("fsspec")
cached = pytest.importorskip("cached")

from dogpile_filesystem.layout import CHANGES, LISTING, PART, VERSION, kind_of, place  # noqa: E402 - after what may be missing
from dogpile_filesystem.remote import CachedFileSystem  # noqa: E402
from dogpile_filesystem.remote.metadata import kept  # noqa: E402

NAMES = ["d/a", "d/b", "d/e"]


@pytest.fixture
def fs(make, source):
    for name in ("d/a", "d/b", "d/e/c"):
        source.write(name, name.encode(), 1_700_000_000)
    return make(listings_expiry_time=60)


def names(fs, path="d", **options):
    return sorted(fs.ls(path, detail=False, **options))


def entries(fs, kind):
    """The files of the entries of a kind."""
    values = pathlib.Path(fs.store.base_dir, "values")
    return [path for path in values.rglob("*") if kind_of(path.name) is not None and kind_of(path.name).number == kind]


def lose(fs, kind):
    """Remove what is kept of the directory d in an entry of a kind, as an eviction does."""
    kept_in = fs.listings._kept._entries
    key = kept_in.key("d", kept_in.generation())
    pathlib.Path(fs.store.base_dir, place(kind, key).path).unlink()


# What is answered


def test_nothing_is_kept_by_default(make, source):
    """Without ``listings_expiry_time``, each listing comes from the source, and no entry is made of it."""
    source.write("d/a", b"a")
    fs = make()
    assert names(fs) == ["d/a"]
    source.write("d/b", b"b")
    assert names(fs) == fs.find("d") == fs.glob("d/*") == ["d/a", "d/b"]
    assert entries(fs, LISTING) == entries(fs, CHANGES) == []


def test_the_sources_own_listings_are_dropped(base_dir):
    """A source that keeps listings of its own, for ever, is asked nevertheless."""

    class Keeping(fsspec.AbstractFileSystem):
        protocol, cachable, root_marker, names = "keeping", False, "", ["a"]

        def ls(self, path, detail=True, **_):
            if path not in self.dircache:
                self.dircache[path] = [{"name": name, "size": 1, "type": "file"} for name in self.names]
            return self.dircache[path]

        def invalidate_cache(self, path=None):
            self.dircache.clear()

    source = Keeping()
    fs = cached.CachedFileSystem(fs=source, base_dir=base_dir, skip_instance_cache=True)
    assert names(fs, "") == ["a"]
    source.names = ["b"]
    assert names(fs, "") == ["b"]


def test_all_is_answered_from_one_listing(fs, make, source):
    """Once a directory is listed, all that is asked about its children costs no request, in any process."""
    assert names(fs) == NAMES
    source.asked()
    other = make(listings_expiry_time=60)
    for each in (fs, other):
        assert names(each) == NAMES
        assert each.info("d/a") == source.fs._told("d/a", _Request())
        assert each.exists("d/b")
        assert each.isfile("d/a")
        assert each.isdir("d/e")
        assert each.size("d/a") == 3
        assert not each.exists("d/missing")
        with pytest.raises(FileNotFoundError):
            each.info("d/missing")
        with pytest.raises(FileNotFoundError):
            each.ls("d/missing")
        assert each.ls("d/a") == [each.info("d/a")]
    assert source.asked() == 0


class _Request:
    has = staticmethod(lambda action: False)


def test_trees(fs, source):
    """``find``, ``walk``, ``glob`` and ``du`` say what the source says, and ask it nothing the second time."""
    calls = [
        lambda fs: fs.find("d"),
        lambda fs: fs.find("d", detail=True),
        lambda fs: fs.find("d", withdirs=True),
        lambda fs: fs.find("d", maxdepth=1),
        lambda fs: fs.find("d/a"),
        lambda fs: fs.find("missing"),
        lambda fs: [tuple(each) for each in fs.walk("d")],
        lambda fs: fs.glob("d/*"),
        lambda fs: fs.glob("d/**"),
        lambda fs: fs.glob("d/*/"),
        lambda fs: fs.glob("d/a"),
        lambda fs: fs.du("d"),
        lambda fs: fs.du("d", total=False),
    ]
    expected = [call(source.fs) for call in calls]
    assert [call(fs) for call in calls] == expected
    source.asked()
    assert [call(fs) for call in calls] == expected
    assert source.asked() == 0


def test_root_that_is_listed(fs):
    """The root is there, though its own listing does not have it, and stays so when it is made once more."""
    for _ in range(2):
        assert names(fs, "") == ["d"]
        assert fs.exists("") and fs.info("")["type"] == "directory"
        assert fs.find("") == [*NAMES[:2], "d/e/c"]
        fs.makedirs("", exist_ok=True)


def test_root_listed_by_another_process_meanwhile(fs, make, monkeypatch):
    """A listing of the root that arrives between two looks at the cache does not say that there is no root."""
    rows = fs.listings._kept.rows

    def rows_then_listed(*arguments):
        found = rows(*arguments)
        make(listings_expiry_time=60).ls("")
        return found

    monkeypatch.setattr(fs.listings._kept, "rows", rows_then_listed)
    assert names(fs, "") == ["d"]


def test_expiry(fs, source, clock):
    """A listing is good for ``listings_expiry_time`` seconds, and no longer."""
    assert names(fs) == NAMES
    source.write("d/new", b"new")
    clock.move(59)
    assert names(fs) == NAMES
    assert not fs.exists("d/new")
    clock.move(2)
    assert fs.exists("d/new")
    assert names(fs) == [*NAMES, "d/new"]


def test_clock_that_was_wrong(fs, source, clock):
    """A listing from the future, by a clock that was wrong, is not believed until that time comes."""
    clock.move(10**6)
    assert names(fs) == NAMES
    source.write("d/new", b"new")
    clock.move(-(10**6))
    for _ in range(2):
        assert names(fs) == [*NAMES, "d/new"]
    source.asked()
    assert names(fs) == [*NAMES, "d/new"]
    assert source.asked() == 0


def test_single_names(fs, make, source, clock):
    """What the source says of a name without a listing is kept, also that there is none."""
    other = make(listings_expiry_time=60)
    told = fs.info("d/a")
    assert fs.isdir("d/e")
    assert not fs.exists("d/new")
    source.write("d/a", b"longer")
    source.write("d/new", b"new")
    source.asked()
    assert other.info("d/a") == told
    assert other.isdir("d/e")
    assert not other.exists("d/new")
    assert source.asked() == 0
    clock.move(61)
    assert other.size("d/a") == 6
    assert other.exists("d/new")


def test_refresh(fs, make, source, clock):
    """``refresh=True`` asks the source, and what it says is kept for all."""
    other = make(listings_expiry_time=60)
    assert names(fs) == NAMES
    source.write("d/new", b"new")
    source.write("d/a", b"longer")
    assert names(other) == NAMES
    clock.move(1)
    assert fs.info("d/a", refresh=True)["size"] == 6
    assert other.info("d/a")["size"] == 6
    clock.move(1)
    assert names(fs, refresh=True) == names(other) == [*NAMES, "d/new"]
    source.write("d/e/new", b"new")
    assert "d/e/new" in fs.find("d", refresh=True)
    assert fs.find("d") == other.find("d")
    assert make().find("d", refresh=True) == fs.find("d")


@pytest.mark.parametrize("path", ["d", "d/new", None])
def test_invalidate(fs, make, source, path):
    """To invalidate a directory, a name in it, or everything, has all processes ask the source."""
    other = make(listings_expiry_time=60)
    assert names(fs) == names(other) == NAMES
    assert not fs.exists("d/new")
    source.write("d/new", b"new")
    fs.invalidate_cache(path)
    assert other.exists("d/new")
    assert names(other) == [*NAMES, "d/new"]


def test_listing_asked_for_before_it_was_invalidated(fs, make, source, monkeypatch):
    """A listing that is on its way when its directory is invalidated is not kept."""
    other = make(listings_expiry_time=60)
    listed = fs.source.ls

    def ls(path):
        rows = listed(path)
        source.write("d/new", b"new")
        other.invalidate_cache("d")
        return rows

    monkeypatch.setattr(fs.source, "ls", ls)
    names(fs)
    assert names(other) == [*NAMES, "d/new"]


def test_stale_if_error(make, source, clock):
    """With ``stale_if_error``, what is too old is served while the source fails, and counted. Others get the error."""
    source.write("d/a", b"a")
    fs, strict = make(listings_expiry_time=60, stale_if_error=True), make(listings_expiry_time=60)
    assert names(fs) == ["d/a"]
    told = fs.info("d/a")
    clock.move(1000)
    source.control.fail("ETIMEDOUT")
    assert names(fs) == ["d/a"]
    assert fs.info("d/a") == told
    assert fs.stats().process.source.stale_served == 2
    for call in (strict.ls, strict.info):
        with pytest.raises(TimeoutError):
            call("d/a")
    with pytest.raises(TimeoutError):
        fs.ls("unknown")


def test_links_of_a_page(base_dir, monkeypatch):
    """A name that a web page has no link to may exist, and of one that it links to more is known than the link."""
    monkeypatch.setattr("dogpile_filesystem.sources.filesystems._LIST_LINKS", {"slow"})
    source = cached.Files(pathlib.Path(base_dir).parent)
    source.write("d/a", b"a")
    fs = cached.CachedFileSystem(fs=source.fs, base_dir=base_dir, listings_expiry_time=60, skip_instance_cache=True)
    names(fs)
    source.write("d/b", b"b")
    assert fs.info("d/b")["size"] == 1
    source.asked()
    fs.info("d/a")
    assert source.asked() == 1


def test_rows_without_a_size(fs, source):
    """Of a file whose size is not listed, the source is asked for more."""
    source.control.hide_length("d")
    names(fs)
    source.control.forget_orders()
    assert fs.info("d/a")["size"] == 3


# What opens


def test_open_by_a_listing(make, source, clock):
    """With ``check`` in seconds, a listing tells the versions of files: to open them costs no request."""
    source.write("d/a", b"old")
    fs = make(listings_expiry_time=60, check=30)
    assert fs.cat_file("d/a") == b"old"
    source.write("d/a", b"newer")
    clock.move(31)
    names(fs)
    source.asked()
    assert fs.info("d/a")["size"] == 5
    assert fs.open("d/a").read() == b"newer"
    assert source.asked() == source.asked("info") + source.asked("read") + 2  # The read, and the look behind it.
    with pytest.raises(FileNotFoundError):
        fs.open("d/missing")
    assert source.asked() == 0
    clock.move(31)
    source.write("d/a", b"newest")
    assert fs.cat_file("d/a") == b"newest"


def test_open_asks_by_default(fs, source):
    """With ``check="always"``, a file that is opened has the version that the source has then, whatever is listed."""
    names(fs)
    source.write("d/a", b"newer")
    source.write("d/new", b"new")
    assert fs.cat_file("d/a") == b"newer"
    assert fs.cat_file("d/new") == b"new"


def test_unsettled_version_in_a_listing(base_dir, tmp_path, clock):
    """A listing does not tell the version of a file that may be changed once more and keep its time."""
    source = cached.Files(tmp_path, identity="second")
    fs = cached.CachedFileSystem(
        fs=source.fs, base_dir=base_dir, listings_expiry_time=60, check=60, skip_instance_cache=True
    )
    second = int(time.time())
    source.write("d/a", b"old", second)
    names(fs)
    assert fs.cat_file("d/a") == b"old"
    source.write("d/a", b"new", second)
    assert fs.cat_file("d/a") == b"new"


def test_listing_that_tells_other_things(make, source, clock):
    """A listing that identifies versions in another way than the file's own metadata does not decide on them."""
    source.write("d/a", b"a", 1_700_000_000)
    fs = make(listings_expiry_time=60, check=30)
    assert fs.cat_file("d/a") == b"a"
    clock.move(31)
    right = fs.source.ls
    fs.source.ls = lambda path: [{"name": "d/a", "size": 1, "type": "file", "mtime": 1_700_000_000}]
    names(fs)
    fs.source.ls = right
    source.asked()
    assert fs.cat_file("d/a") == b"a"
    assert [each.kind for each in source.control.requests()] == ["info"]


def test_local_files_are_looked_at(base_dir, tmp_path):
    """The version of a local file is never that of a listing, which tells less than a look at the file."""
    path = tmp_path / "a"
    path.write_bytes(b"a")
    os.utime(path, (1e9, 1e9))
    fs = cached.CachedFileSystem("file", base_dir=base_dir, listings_expiry_time=60, check=60, skip_instance_cache=True)
    fs.ls(str(tmp_path))
    with fs.open(str(path)) as file:
        assert file.identity.startswith("stat:")


# What is changed


def test_changes_show_at_once(fs, make, source, tmp_path):
    """What is written, removed, renamed or made shows at once in all processes, with no request."""
    other = make(listings_expiry_time=60)
    fs.find("d")
    (tmp_path / "new").write_bytes(b"put")
    fs.pipe("d/piped", b"12345")
    fs.put(str(tmp_path / "new"), "d/put")
    fs.cp_file("d/a", "d/copied")
    with fs.open("d/written", "wb") as file:
        file.write(b"1234567")
    fs.rm_file("d/a")
    fs.mv("d/b", "d/moved")
    fs.mkdir("d/made")
    expected = ["d/copied", "d/e", "d/made", "d/moved", "d/piped", "d/put", "d/written"]
    source.asked()
    for each in (other, fs):
        assert names(each) == expected
        assert each.info("d/written") == source.fs._told("d/written", _Request())
        assert each.size("d/piped") == 5
        assert each.isdir("d/made")
        assert not each.exists("d/a")
        assert not each.exists("d/b")
    assert source.control.requests() == []
    assert fs.find("d") == ["d/copied", "d/e/c", "d/moved", "d/piped", "d/put", "d/written"]


def test_late_listing(fs, source, clock):
    """For a minute, what was written or removed stays so though the source still lists what was there before."""
    told = fs.fs.ls("d")
    source.asked()
    fs.pipe_file("d/new", b"new")
    fs.rm_file("d/a")
    clock.move(1)
    right = fs.source.ls
    fs.source.ls = lambda path: [dict(row) for row in told]
    assert names(fs, refresh=True) == ["d/b", "d/e", "d/new"] == names(fs)
    clock.move(30)
    assert names(fs, refresh=True) == ["d/b", "d/e", "d/new"] == names(fs)
    clock.move(30)
    assert names(fs, refresh=True) == NAMES == names(fs)
    fs.source.ls = right


def test_late_answer(make, source, clock):
    """A file that was just written is there, though the source says that there is none."""
    source.write("d/a", b"a")
    fs = make(listings_expiry_time=10)
    fs.pipe_file("d/new", b"new")
    clock.move(11)
    source.control.fail("ENOENT", "info", "d/new")
    assert fs.size("d/new") == 3
    clock.move(50)
    assert not fs.exists("d/new")


def test_change_that_is_shown(fs, source, clock):
    """As soon as the source shows a change, what it says counts: somebody else may have changed it again."""
    names(fs)
    fs.pipe_file("d/new", b"new")
    fs.rm_file("d/a")
    clock.move(1)
    assert names(fs, refresh=True) == ["d/b", "d/e", "d/new"]
    os.unlink(source.root / "d/new")
    source.write("d/a", b"somebody else's")
    clock.move(1)
    assert names(fs, refresh=True) == NAMES


def test_listing_asked_for_before_a_change(fs, make, source, clock):
    """A listing that was asked for before a change of another process, and arrives after it, does not undo it."""
    other = make(listings_expiry_time=60)
    right = fs.source.ls

    def ls(path):
        rows = right(path)
        clock.move(1)
        other.pipe_file("d/new", b"new")
        other.rm_file("d/a")
        clock.move(61)  # The minute for stores that list late is over.
        return rows

    fs.source.ls = ls
    expected = ["d/b", "d/e", "d/new"]
    assert names(fs) == expected
    fs.source.ls = right
    assert names(fs) == names(other) == expected


def test_answer_asked_for_before_a_change(fs, make, source, clock):
    """What was asked of one name before it was changed, and is answered after that, does not count."""
    other = make(listings_expiry_time=60)
    right = fs.source.look

    def look(path):
        found = right(path)
        clock.move(1)
        other.rm_file("d/a")
        return found

    fs.source.look = look
    assert not fs.exists("d/a")
    fs.source.look = right
    assert not fs.exists("d/a")
    assert not other.exists("d/a")


def test_earlier_listing_does_not_replace_a_later_one(fs, make, source, clock):
    """Of two listings, the one that was asked for later stays, though the other one arrives last."""
    other = make(listings_expiry_time=60)
    right = fs.source.ls

    def ls(path):
        rows = right(path)
        clock.move(1)
        source.write("d/new", b"new")
        names(other)
        return rows

    fs.source.ls = ls
    names(fs)
    fs.source.ls = right
    assert names(fs) == [*NAMES, "d/new"]


def test_earlier_answer_does_not_replace_a_later_one(fs, make, source, clock):
    """Of two answers about one name, the one that was asked for later stays, though the other one arrives last."""
    other = make(listings_expiry_time=60)
    right = fs.source.look

    def look(path):
        found = right(path)
        clock.move(1)
        source.write("d/a", b"longer")
        assert other.size("d/a") == 6
        return found

    fs.source.look = look
    fs.info("d/a")
    fs.source.look = right
    assert fs.size("d/a") == 6


@pytest.mark.parametrize("kind", [LISTING, CHANGES])
def test_eviction(fs, make, source, kind):
    """Whatever is evicted, nothing that was removed comes back, and nothing that was written goes away."""
    names(fs)
    fs.info("d/a")
    fs.rm_file("d/a")
    fs.pipe_file("d/new", b"new")
    lose(fs, kind)
    for each in (fs, make(listings_expiry_time=60)):
        assert names(each) == ["d/b", "d/e", "d/new"]
        assert not each.exists("d/a")


def test_changes_lost_while_the_source_is_asked(fs, make, source):
    """When it is lost what was changed while a listing was on its way, that listing is not kept."""
    other = make(listings_expiry_time=60)
    right = fs.source.ls

    def ls(path):
        rows = right(path)
        other.rm_file("d/a")
        lose(fs, CHANGES)
        other.exists("d/b")
        return rows

    fs.source.ls = ls
    names(fs)
    fs.source.ls = right
    assert names(fs) == names(other) == ["d/b", "d/e"]


def test_all_entries_are_lost(fs):
    """Without any entry of the changes, and of the generation, nothing that was listed is believed."""
    names(fs)
    fs.rm_file("d/a")
    for path in entries(fs, CHANGES):
        path.unlink()
    assert names(fs) == ["d/b", "d/e"]


def test_answer_to_a_question_before_the_changes_were_lost(fs, make, source):
    """What was asked of one name before the changes were lost is not believed after that."""
    other = make(listings_expiry_time=60)
    assert fs.exists("d/a")
    lose(fs, CHANGES)
    source.fs.rm_file("d/a")
    other.exists("d/b")
    assert not fs.exists("d/a")


def test_damage(fs, source):
    """A damaged entry is as good as none."""
    for kind in (LISTING, CHANGES):
        assert names(fs) == NAMES
        for path in entries(fs, kind):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert names(fs) == NAMES
    for kind in (LISTING, CHANGES):
        names(fs, refresh=True)
        kept_in = fs.listings._kept._entries
        key = kept_in.key("d", kept_in.generation())
        assert fs.store.put(key, b"[1]", kind)
        kept_in._read.clear()
        assert names(fs) == NAMES


def test_removed_directory(fs, make, source):
    """A directory that is removed is gone with all that was listed of it, and may be made again."""
    other = make(listings_expiry_time=60)
    assert other.find("d") == ["d/a", "d/b", "d/e/c"]
    fs.rm("d", recursive=True)
    assert other.find("d") == []
    for path in ("d", "d/e"):
        with pytest.raises(FileNotFoundError):
            other.ls(path)
    fs.makedirs("d/e")
    assert other.ls("d/e") == []
    assert names(other) == ["d/e"]


def test_moved_directory(base_dir, tmp_path):
    """A directory that is renamed is listed under its new name only, with what is below it."""
    (tmp_path / "x/y").mkdir(parents=True)
    (tmp_path / "x/y/a").write_bytes(b"a")
    fs = cached.CachedFileSystem("file", base_dir=base_dir, listings_expiry_time=60, skip_instance_cache=True)
    old, new = str(tmp_path / "x"), str(tmp_path / "z")
    assert fs.find(old) == [f"{old}/y/a"]
    assert not fs.exists(new)
    fs.mv(old, new, recursive=True)
    assert fs.find(old) == []
    assert fs.find(new) == [f"{new}/y/a"]
    assert not fs.exists(old)


def test_directories_that_files_make(base_dir):
    """In a store without directories of their own, they come with the first file in them, and go with the last."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    memory.pipe_file("/x", b"")
    fs = cached.CachedFileSystem(fs=memory, base_dir=base_dir, listings_expiry_time=60, skip_instance_cache=True)
    assert fs.find("/") == ["/x"]
    fs.pipe_file("/p/q/a", b"a")
    assert fs.find("/") == ["/p/q/a", "/x"]
    fs.rm("/p/q/a")
    assert fs.find("/") == ["/x"]
    assert fs.exists("/p/q") == memory.exists("/p/q")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    "change", [lambda fs: fs.pipe_file("d/a", b""), lambda fs: fs.rm_file("d/a")], ids=["pipe", "rm"]
)
def test_failed_change(fs, source, change):
    """After a change that failed nobody knows what there is: the source is asked."""
    names(fs)
    source.control.fail("EIO", "write", times=1)
    with pytest.raises(OSError, match="Input/output"):
        change(fs)
    os.unlink(source.root / "d/b")
    assert names(fs) == ["d/a", "d/e"]


def test_many_changes(fs, source, clock, monkeypatch):
    """Changes that are old become part of the listing, so that a directory with many of them stays cheap to change."""
    monkeypatch.setattr(kept, "_MANY", 10)
    names(fs)
    for number in range(12):
        fs.listings.added(f"d/{number}", {"name": f"d/{number}", "size": number, "type": "file"})
    clock.move(61)
    fs = fs.__class__(**{**fs.storage_options, "listings_expiry_time": 600, "skip_instance_cache": True})
    fs.listings._clock = fs.listings._kept._judge.clock = clock
    fs.listings.removed("d/a")
    source.asked()
    assert names(fs) == sorted(["d/b", "d/e", *(f"d/{number}" for number in range(12))])
    assert source.asked() == 0
    assert max(path.stat().st_size for path in entries(fs, CHANGES)) < 400


def test_many_changes_without_a_listing(make, source, clock, monkeypatch):
    """When many old changes are dropped, what was asked before them does not come back."""
    monkeypatch.setattr(kept, "_MANY", 2)
    source.write("d/a", b"a")
    fs = make(listings_expiry_time=600)
    assert fs.exists("d/a")
    clock.move(1)
    for name in ("d/a", "d/b", "d/e"):
        fs.listings.removed(name)
    os.unlink(source.root / "d/a")
    clock.move(61)
    fs.listings.removed("d/f")
    assert not fs.exists("d/a")


def test_callers_may_change_what_they_get(fs):
    """What a caller does to a row is not seen by the next one."""
    for _ in range(2):
        row = next(row for row in fs.ls("d") if row["name"] == "d/a")
        assert row["size"] == 3
        row["size"] = fs.info("d/a").setdefault("size", 0) + 1
        fs.info("d/a")["size"] = 7


def test_poll_drops_what_is_listed(fs, source):
    """What a poller reports is listed anew."""

    class Poller:
        url = "slow://"

        def get_new_events(self):
            return [("slow://d/new", "created")]

        def ack(self):
            pass

    fs.watch(Poller())
    names(fs)
    source.write("d/new", b"new")
    fs.poll()
    assert names(fs) == [*NAMES, "d/new"]


def test_two_processes(fs, start, source):
    """What one process writes and removes, another one sees at once, also one that is started later."""
    names(fs)
    process = start(
        fs,
        """
    fs.pipe_file("d/new", b"new")
    fs.rm_file("d/a")
    print(sorted(fs.ls("d", detail=False)))
    """,
    )
    assert process.communicate()[0].strip() == str(["d/b", "d/e", "d/new"])
    source.asked()
    assert names(fs) == ["d/b", "d/e", "d/new"]
    assert source.asked() == 0


def test_processes_that_change_one_directory(fs, start):
    """Of the changes that several processes make in one directory at one time, none is lost."""
    names(fs)
    program = """
    sys.stdin.read(1)
    for number in range(30):
        path = f"d/{os.getpid()}-{number}"
        fs.listings.added(path, {"name": path, "size": 1, "type": "file"})
    """
    processes = [start(fs, program) for _ in range(3)]
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(names(fs)) == 3 + 90


def test_no_room(make, source):
    """In a cache that has no room for a listing, all is answered by the source."""
    for number in range(300):
        source.write(f"d/{'x' * 100}{number}", b"")
    fs = make(listings_expiry_time=60, cache_size=8192)
    for _ in range(2):
        assert len(names(fs)) == 300
        assert fs.exists(f"d/{'x' * 100}7")
        fs.pipe_file("d/a", b"a")
        fs.rm_file("d/a")


def test_cache_that_cannot_be_used(make, source, tmp_path):
    """Where the cache's directory cannot be made, all is answered by the source."""
    source.write("d/a", b"a")
    (tmp_path / "taken").write_bytes(b"")
    fs = make(base_dir=str(tmp_path / "taken/cache"), listings_expiry_time=60)
    assert names(fs) == fs.find("d") == ["d/a"]
    fs.pipe_file("d/b", b"b")
    fs.invalidate_cache()
    assert names(fs) == ["d/a", "d/b"]
    assert not fs.exists("d/c")


def test_kinds_besides(fs):
    """A warm look at listings makes no other entries."""
    names(fs)
    names(fs)
    assert entries(fs, PART) == entries(fs, VERSION) == []


def test_times_survive(base_dir):
    """Times are told as the source tells them, from the cache too."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe_file("/t/a", b"a")
    fs = cached.CachedFileSystem(fs=memory, base_dir=base_dir, listings_expiry_time=60, skip_instance_cache=True)
    for _ in range(2):
        assert fs.ls("/t") == memory.ls("/t")
        assert fs.find("/t", detail=True) == memory.find("/t", detail=True)
    memory.store.clear()


def test_changes_by_a_filesystem_that_keeps_none(tmp_path):
    """What is changed through a filesystem without kept listings is seen at once in those that others keep."""
    source = fsspec.filesystem("file")
    root = str(tmp_path / "source")
    source.makedirs(root)
    source.pipe_file(f"{root}/old", b"1")

    def make(**arguments):
        return CachedFileSystem(fs=source, base_dir=str(tmp_path / "cache"), skip_instance_cache=True, **arguments)

    keeping, plain = make(listings_expiry_time=60), make()
    assert keeping.ls(root, detail=False) == [f"{root}/old"]
    plain.pipe_file(f"{root}/new", b"2")
    plain.rm_file(f"{root}/old")
    assert keeping.ls(root, detail=False) == [f"{root}/new"]
    plain.makedirs(f"{root}/a/b")
    plain.pipe_file(f"{root}/a/b/c", b"3")
    assert keeping.find(root) == [f"{root}/a/b/c", f"{root}/new"]
