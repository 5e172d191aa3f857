"""
Stores of fsspec: the same table as for local directories, and what a store may do beside that.
"""

from __future__ import annotations

import itertools

import pytest
from polling import reported
from situations import BY_NAME, SITUATIONS
from store_tree import StoreTree

from dogpile_filesystem.poller import FilePoller, PollerUnavailable, StorePoller, make_poller

fsspec = pytest.importorskip("fsspec")

_numbers = itertools.count()
#: fsspec tells the size of the file that a link leads to.
_SEEN_THROUGH_A_LINK = "changed behind a link"
IN_STORES = [situation.name for situation in SITUATIONS if not situation.is_local]
WITH_FSSPEC = [situation.name for situation in SITUATIONS if situation.name != _SEEN_THROUGH_A_LINK]
both = pytest.mark.parametrize("recurse", [False, True], ids=["flat", "deep"])


@pytest.fixture
def memory():
    """
    A directory of its own in the memory of fsspec, as somebody else has it.
    """
    fs = fsspec.filesystem("memory", skip_instance_cache=True)
    directory = f"/test-{next(_numbers)}"
    yield StoreTree(fs, directory)
    fs.rm(directory, recursive=True)


def run(situation, tree, url, make, recurse):
    for start in situation.start:
        tree.write(start)
    poller = make()
    assert reported(poller, url) == {}
    for step in situation.steps:
        step.act(tree)
        assert reported(poller, url) == step.expected(recurse)
    assert reported(poller, url) == {}


@both
@pytest.mark.parametrize("name", WITH_FSSPEC)
def test_local(tree, watch, name, recurse):
    """A local directory, by way of fsspec: each step is reported once."""
    url = f"file://{tree.root}"
    run(BY_NAME[name], tree, url, lambda: watch(StorePoller, url, recurse=recurse), recurse)


@both
@pytest.mark.parametrize("name", IN_STORES)
def test_memory(memory, watch, name, recurse):
    """A store in memory: each step is reported once."""
    url = f"memory://{memory.root}"
    run(BY_NAME[name], memory, url, lambda: watch(make_poller, url, recurse=recurse), recurse)


@both
@pytest.mark.parametrize("name", IN_STORES)
def test_while_down(memory, state, name, recurse):
    """A poller with a state reports what happened in the store while it was not running."""
    url = f"memory://{memory.root}"
    for start in BY_NAME[name].start:
        memory.write(start)
    StorePoller(url, recurse=recurse, state=state).get_new_events()
    for step in BY_NAME[name].steps:
        step.act(memory)
        with StorePoller(url, recurse=recurse, state=state) as poller:
            assert reported(poller, url) == step.expected(recurse)
            assert reported(poller, url) == {}


@pytest.mark.parametrize("name", IN_STORES)
def test_names_alone(memory, watch, name):
    """With ``contents=False``, only what is created and deleted is reported."""
    url = f"memory://{memory.root}"
    for start in BY_NAME[name].start:
        memory.write(start)
    poller = watch(StorePoller, url, recurse=True, contents=False)
    assert reported(poller, url) == {}
    for step in BY_NAME[name].steps:
        step.act(memory)
        expected = step.expected(recurse=True)
        assert reported(poller, url) == {path: event for path, event in expected.items() if event != "modified"}


class Told(fsspec.AbstractFileSystem):
    """
    A store that tells what a test says.

    :ivar rows: by directory: what it tells of each name, or what it raises.
    """

    protocol = "told"
    cachable = False

    def __init__(self, **options):
        super().__init__(**options)
        self.rows = {}
        self.listed = {}

    def ls(self, path, detail=True, **options):
        path = self._strip_protocol(path)
        if path not in self.listed:
            self.listed[path] = self.rows.get(path, FileNotFoundError(path))
        if isinstance(self.listed[path], Exception):
            raise self.listed[path]
        return [dict(row) for row in self.listed[path]]

    def invalidate_cache(self, path=None):
        self.listed.clear()


class ToldKeys(Told):
    """A store of keys that tells what a test says."""

    protocol = "s3"
    bucket_exists = True

    def find(self, path, detail=False, **options):
        return {row["name"]: row for row in self.ls(path)}

    def exists(self, path, **options):
        assert path == "bucket"
        return self.bucket_exists


def row(name, size=4, **told):
    return {"name": name, "size": size, "type": "file", **told}


def directory(name):
    return {"name": name, "size": 0, "type": "directory"}


def etag(name, value="1"):
    return row(name, ETag=f'"{value}"')


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def keys():
    return ToldKeys()


def test_caches_are_bypassed(told, watch):
    """What fsspec has cached of a listing is dropped before each look."""
    told.rows["root"] = [row("root/a")]
    poller = watch(StorePoller, "told://root", fs=told)
    assert poller.get_new_events() == []
    told.rows["root"] = [row("root/a"), row("root/b")]
    assert told.ls("root") == [row("root/a")]
    assert poller.get_new_events() == [("told://root/b", "created")]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("root"),
        PermissionError("403"),
        TimeoutError(),
        ConnectionResetError(),
        RuntimeError("a client's own"),
    ],
    ids=repr,
)
def test_unavailable(told, watch, error):
    """Whatever a listing raises, the call raises one kind of error, and reports nothing as deleted."""
    told.rows = {"root": [row("root/a"), directory("root/d")], "root/d": [row("root/d/b")]}
    poller = watch(StorePoller, "told://root", fs=told, recurse=True)
    assert poller.get_new_events() == []
    told.rows["root"], before = error, told.rows["root"]
    with pytest.raises(PollerUnavailable) as raised:
        poller.get_new_events()
    assert raised.value.filename == "told://root"
    told.rows["root"] = before
    told.rows["root/d"] = [row("root/d/b", 5)]
    assert poller.get_new_events() == []  # The store tells no version.


def test_broken_off(told, watch):
    """A listing that breaks off in a directory counts for nothing at all."""
    told.rows = {"root": [row("root/a"), directory("root/d")], "root/d": [row("root/d/b")]}
    poller = watch(StorePoller, "told://root", fs=told, recurse=True)
    assert poller.get_new_events() == []
    told.rows = {"root": [directory("root/d")], "root/d": TimeoutError()}
    with pytest.raises(PollerUnavailable):
        poller.get_new_events()
    told.rows["root/d"] = [row("root/d/b"), row("root/d/c")]
    assert dict(poller.get_new_events()) == {"told://root/a": "deleted", "told://root/d/c": "created"}


def test_denied_directory(told, watch):
    """A directory that may not be listed keeps what is known of it, and is counted."""
    told.rows = {"root": [directory("root/d")], "root/d": [row("root/d/b")]}
    poller = watch(StorePoller, "told://root", fs=told, recurse=True)
    assert poller.get_new_events() == []
    told.rows = {"root": [row("root/a"), directory("root/d")], "root/d": PermissionError()}
    assert poller.get_new_events() == [("told://root/a", "created")]
    assert poller.stats().skipped == 1
    told.rows["root/d"] = []
    assert poller.get_new_events() == [("told://root/d/b", "deleted")]
    assert poller.stats().skipped == 0


def test_root_is_a_file(told, watch):
    """A root that is a file cannot be looked at."""
    told.rows = {"root": [row("root")]}
    with pytest.raises(PollerUnavailable, match="directory"):
        watch(StorePoller, "told://root", fs=told).get_new_events()


def test_mistakes_are_no_outages(told, watch):
    """A filesystem that cannot list says so itself."""
    told.rows["root"] = NotImplementedError()
    with pytest.raises(NotImplementedError):
        watch(StorePoller, "told://root", fs=told).get_new_events()


@pytest.mark.parametrize("ahead", [0, 1, -1])
def test_young_files(told, watch, clock, ahead):
    """Where times have whole seconds, a file is reported once it cannot change any more with the same time."""
    told.rows["root"] = [row("root/old", mtime=clock.now - 10)]
    poller = watch(StorePoller, "told://root", fs=told, clock=clock)
    assert poller.get_new_events() == []
    written = clock.now + ahead
    told.rows["root"] = [row("root/old", mtime=written), row("root/new", mtime=written)]
    assert poller.get_new_events() == []
    clock.now = written + 2
    assert poller.get_new_events() == []
    clock.move(0.5)
    assert dict(poller.get_new_events()) == {"told://root/new": "created", "told://root/old": "modified"}
    assert poller.get_new_events() == []


def test_young_file_deleted(told, watch, clock):
    """A young file that goes before it was reported leaves nothing; one that was known is deleted."""
    told.rows["root"] = [row("root/old", mtime=clock.now - 10)]
    poller = watch(StorePoller, "told://root", fs=told, clock=clock)
    assert poller.get_new_events() == []
    told.rows["root"] = [row("root/old", mtime=clock.now), row("root/new", mtime=clock.now)]
    assert poller.get_new_events() == []
    told.rows["root"] = []
    assert poller.get_new_events() == [("told://root/old", "deleted")]


def test_young_files_at_the_first_look(told, watch, clock):
    """What is there at the first look is not reported later, however young it was."""
    told.rows["root"] = [row("root/new", mtime=clock.now)]
    poller = watch(StorePoller, "told://root", fs=told, clock=clock)
    assert poller.get_new_events() == []
    clock.move(10)
    assert poller.get_new_events() == []


@pytest.mark.parametrize("ahead", [3600, 10**9])
def test_times_far_ahead(told, watch, clock, ahead):
    """A file whose time lies in the future is reported at once: it would be young for too long."""
    told.rows["root"] = []
    poller = watch(StorePoller, "told://root", fs=told, clock=clock)
    assert poller.get_new_events() == []
    told.rows["root"] = [row("root/a", mtime=clock.now + ahead)]
    assert poller.get_new_events() == [("told://root/a", "created")]


def test_times_in_microseconds(told, watch, clock):
    """A file whose time is fine, or that has an etag, is reported at once."""
    told.rows["root"] = []
    poller = watch(StorePoller, "told://root", fs=told, clock=clock)
    assert poller.get_new_events() == []
    told.rows["root"] = [row("root/a", mtime=clock.now + 0.25)]
    assert poller.get_new_events() == [("told://root/a", "created")]


@both
def test_emptied_prefix(keys, watch, recurse):
    """All keys of a prefix deleted are deleted, if the bucket is there; if it is not, nothing is known."""
    keys.rows["bucket/in"] = [etag("bucket/in/a")]
    poller = watch(StorePoller, "s3://bucket/in", fs=keys, recurse=recurse)
    assert poller.get_new_events() == []
    keys.rows = {}
    keys.bucket_exists = False
    with pytest.raises(PollerUnavailable):
        poller.get_new_events()
    keys.bucket_exists = True
    assert poller.get_new_events() == [("s3://bucket/in/a", "deleted")]
    assert poller.get_new_events() == []


def test_odd_keys(keys, watch):
    """Keys with slashes at either end, or two in a row, are told apart, and keep their names."""
    names = ["lead", "/lead", "//lead", "a//b", "a/b", "a", "a/", "new\nline", " sp ace ", "\u00fcn\u00ef"]
    keys.rows["bucket"] = []
    poller = watch(StorePoller, "s3://bucket", fs=keys, recurse=True)
    assert poller.get_new_events() == []
    keys.rows["bucket"] = [etag(f"bucket/{name}") for name in names]
    assert dict(poller.get_new_events()) == {f"s3://bucket/{name}": "created" for name in names}
    keys.rows["bucket"] = [etag(f"bucket/{name}", "2") for name in names if name != "lead"]
    expected = {f"s3://bucket/{name}": "modified" for name in names} | {"s3://bucket/lead": "deleted"}
    assert dict(poller.get_new_events()) == expected


def test_marked_directories(keys, watch):
    """An empty file whose key ends with a slash marks a directory: a subject only with ``directories=True``."""
    plain = watch(StorePoller, "s3://bucket", fs=keys, recurse=True)
    deep = watch(StorePoller, "s3://bucket", fs=keys, recurse=True, directories=True, exclude="no*")
    flat = watch(StorePoller, "s3://bucket", fs=keys, directories=True)
    pollers = (plain, deep, flat)
    keys.rows["bucket"] = []
    assert [poller.get_new_events() for poller in pollers] == [[], [], []]
    keys.rows["bucket"] = [
        row("bucket/d/e/", 0, ETag="empty"),
        *(etag("bucket/f/a"), etag("bucket/no/b"), directory("bucket/g")),
    ]
    assert dict(plain.get_new_events()) == {"s3://bucket/f/a": "created", "s3://bucket/no/b": "created"}
    assert {subject.removeprefix("s3://bucket/") for subject, _ in deep.get_new_events()} == {
        *("d", "d/e", "f", "f/a", "g"),
    }
    keys.rows["bucket"] = [directory("bucket/g"), etag("bucket/a")]
    flat.get_new_events()
    keys.rows["bucket"] = []
    assert dict(flat.get_new_events()) == {"s3://bucket/g": "deleted", "s3://bucket/a": "deleted"}


@pytest.mark.parametrize("has_keys", [False, True])
def test_patterns(told, keys, watch, has_keys):
    """Globs leave out files, and directories with all below them."""
    store, name = (keys, "s3") if has_keys else (told, "told")
    every = [etag(f"root/{each}") for each in ("a.csv", "b.txt", "no/c.csv", "d/e.csv", "d/no/f.csv")]
    poller = watch(
        StorePoller, f"{name}://root", fs=store, recurse=True, include="*.csv", exclude=["no"], existing=True
    )
    if has_keys:
        store.rows["root"] = every
    else:
        store.rows = {
            "root": [*every[:2], directory("root/no"), directory("root/d")],
            "root/d": [every[3], directory("root/d/no")],
        }
    assert {subject for subject, _ in poller.get_new_events()} == {f"{name}://root/a.csv", f"{name}://root/d/e.csv"}


def test_directories(memory, watch):
    """With ``directories=True``, directories of a store that has them are subjects."""
    url = f"memory://{memory.root}"
    poller = watch(StorePoller, url, directories=True)
    assert poller.get_new_events() == []
    memory.fs.makedirs(memory.path("d/e"))
    assert reported(poller, url) == {"d": "created"}
    memory.delete_tree("d")
    assert reported(poller, url) == {"d": "deleted"}


def test_root_is_missing(memory, watch):
    """A missing root is an error, and is made only if that is asked for."""
    url = f"memory://{memory.root}/missing"
    with pytest.raises(PollerUnavailable):
        watch(StorePoller, url).get_new_events()
    assert watch(StorePoller, url, create=True).get_new_events() == []


def test_subjects_have_no_credentials(watch):
    """Neither subjects nor the state contain a password."""
    poller = watch(StorePoller, "told://u:secret@host/d", fs=Told())
    poller.fs.rows["u:secret@host/d"] = []
    assert poller.get_new_events() == []
    poller.fs.rows["u:secret@host/d"] = [row("u:secret@host/d/a")]
    assert poller.get_new_events() == [("told://host/d/a", "created")]


def test_chained(memory, watch, base_dir):
    """A chained URL is looked at like the last one of its chain, and its subjects are chained URLs."""
    pytest.importorskip("cached")  # It registers the protocol, if the package is not installed.
    url = f"dogpile::memory://{memory.root}"
    poller = watch(make_poller, url, storage_options={"dogpile": {"base_dir": base_dir}})
    assert poller.get_new_events() == []
    memory.write("a")
    assert poller.get_new_events() == [(f"{url}/a", "created")]
    memory.write("a")
    assert poller.get_new_events() == [(f"{url}/a", "modified")]


def test_damaged_state(memory, watch, state):
    """A damaged state is no outage of the store."""
    url = f"memory://{memory.root}"
    memory.write("a")
    with StorePoller(url, state=state) as poller:
        assert poller.get_new_events() == []
    with StorePoller(url, state=state) as poller:
        poller._database.connection.execute("UPDATE contents SET data=x'00'")
        memory.write("b")
        with pytest.raises(ValueError, match="damaged"):
            poller.get_new_events()


def test_which_poller():
    """Schemes that fsspec knows get a poller of stores, and others an error that names the known ones."""
    with make_poller("memory://anywhere") as poller:
        assert isinstance(poller, StorePoller)
    with make_poller("file:///") as poller:
        assert isinstance(poller, FilePoller)
    with pytest.raises(ValueError, match=r"nonsense://.*file"):
        make_poller("nonsense://anywhere")


def test_misuse(told):
    """Wrong arguments are refused at once."""
    with pytest.raises(TypeError, match="recurse"):
        StorePoller("told://root", fs=told, recurs=True)
    with pytest.raises(TypeError, match="storage_options"):
        StorePoller("told://root", fs=told, storage_options={"key": "x"})
    with pytest.raises(TypeError, match="URL"):
        StorePoller(b"root", fs=told)
