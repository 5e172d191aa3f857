"""
Access to a directory: caches that a group of users shares, and directories that are refused.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile

import disks
import ondisk
import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from forked import Child
from patching import replace_here

from dogpile_filesystem.store import access

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to act as several users")

GROUP = 4242
#: User, group, supplementary groups. The first two share the group, the third does not.
FIRST, SECOND, OUTSIDER = (65533, 65533, [GROUP]), (65534, 65534, [GROUP]), (65532, 65532, [])
ROOT = (0, 0, [])
VALUES, FILES = "paylogic.filesystem", "paylogic.raw_filesystem"
SHARED = {"dir_mode": "2770", "file_mode": "0660"}

both_backends = pytest.mark.parametrize("name", [VALUES, FILES], ids=["values", "files"])


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch):
    """
    Each directory is warned of once, by its inode, and the system gives out inodes again.
    """
    monkeypatch.setattr(access, "_warned", set())


@pytest.fixture(autouse=True, scope="module")
def loaded(tmp_path_factory):
    """
    Imports everything while this process is still root, since other users may not be able to read the installation.
    """
    for name, value in ((VALUES, b""), (FILES, io.BytesIO())):
        region = make_region().configure(name, arguments={"base_dir": tmp_path_factory.mktemp("cache")})
        region.set("k", value)
        region.delete("k")


@pytest.fixture
def parent():
    """
    A directory that every user can reach, unlike pytest's own.
    """
    path = tempfile.mkdtemp()
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


def make_directory(path, mode, uid=0, gid=0):
    os.mkdir(path)
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path


@pytest.fixture(params=["administrator", "first user"])
def base_dir(request, parent):
    """
    A directory of the group: made beforehand by root, or made on configuration in a parent that passes on its group.
    """
    if request.param == "administrator":
        return make_directory(f"{parent}/cache", 0o2770, gid=GROUP)
    return make_directory(f"{parent}/group", 0o2775, gid=GROUP) + "/cache"


@pytest.fixture
def directory_of_root(parent):
    return make_directory(f"{parent}/cache", 0o2770, gid=GROUP)


def configure(base_dir, name=VALUES, **arguments):
    return make_region().configure(name, arguments={"base_dir": base_dir, **SHARED, **arguments})


def act_as(user, call, umask=0o077):
    """
    Makes a call in a process of another user, and returns its result.
    """

    def act():
        os.umask(umask)
        return call()

    return Child(act, user).result()


def failures(region):
    return dict(region.backend.store.failures.counts)


def modes(base_dir):
    """
    Returns the modes and the groups of all files and directories in a cache.
    """
    found = set()
    for directory, _, names in os.walk(base_dir):
        found.add(("directory", stat.S_IMODE(os.stat(directory).st_mode), os.stat(directory).st_gid))
        for name in set(names) - {"CACHEDIR.TAG"}:
            file = os.stat(os.path.join(directory, name))
            found.add(("file", stat.S_IMODE(file.st_mode), file.st_gid))
    return found


def set_file(region, key, data, directory):
    """
    Stores a file that has a name and belongs to the caller alone.
    """
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
        file.write(data)
        file.seek(0)
        region.set(key, file)
    moved = not os.path.exists(file.name)
    if not moved:
        os.unlink(file.name)
    return moved


def read(region, key):
    file = region.get(key)
    if file is NO_VALUE:
        return None
    with file:
        return file.read()


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=["022", "077"])
@pytest.mark.parametrize("given", [SHARED, {"dir_mode": 0o2770, "file_mode": 0o660}], ids=["strings", "numbers"])
def test_modes(base_dir, umask, given):
    """Whatever the umask, everything in a shared cache has the configured modes and the directory's group."""

    def write():
        region = configure(base_dir, **given)
        region.set("k", "value")
        files = configure(base_dir, FILES, file_movable=True, **given)
        files.set("copied", io.BytesIO(b"copied"))
        with tempfile.TemporaryDirectory() as own:
            moved = set_file(files, "moved", b"moved", own)
        return moved, failures(region) | failures(files)

    assert act_as(FIRST, write, umask) == (True, {})
    assert modes(base_dir) == {("directory", 0o2770, GROUP), ("file", 0o660, GROUP)}


def test_values(base_dir):
    """A value that one user of the group stored can be read, overwritten, deleted and evicted by another."""

    def write():
        region = configure(base_dir)
        region.set_multi({"read": 1, "overwritten": 1, "deleted": 1})
        return failures(region)

    def change():
        region = configure(base_dir, max_entries=3)
        read = region.get_multi(["read", "overwritten", "deleted"])
        region.delete("deleted")
        region.set("overwritten", 2)
        return read, failures(region)

    def fill():
        region = configure(base_dir, max_entries=3)
        seen = region.get_multi(["read", "overwritten"]), region.get("deleted") is NO_VALUE
        # The times of another user's files are set to the time of the flush, not of the hit.
        region.backend.store.flush()
        region.set_multi({f"new {number}": number for number in range(3)})
        evicted = [region.get(key) is NO_VALUE for key in ("read", "overwritten")]
        return seen, evicted, region.backend.check().ok, failures(region)

    assert act_as(FIRST, write) == {}
    assert act_as(SECOND, change) == ([1, 1, 1], {})
    assert act_as(FIRST, fill) == (([1, 2], True), [True, True], True, {})
    assert act_as(SECOND, lambda: configure(base_dir).get("new 2")) == 2


@pytest.mark.parametrize("movable", [False, True], ids=["copied", "moved"])
def test_files(base_dir, movable):
    """Users of the group share files too, even if a moved-in file could be read only by its owner before."""

    def set_one(region, key, data):
        with tempfile.TemporaryDirectory() as own:
            assert set_file(region, key, data, own) is movable

    def write():
        region = configure(base_dir, FILES, file_movable=movable)
        for key in ("read", "overwritten", "deleted"):
            set_one(region, key, b"first")
        return failures(region)

    def change():
        region = configure(base_dir, FILES, file_movable=movable)
        found = [read(region, key) for key in ("read", "overwritten", "deleted")]
        region.delete("deleted")
        set_one(region, "overwritten", b"second")
        return found, failures(region)

    def fill():
        region = configure(base_dir, FILES, file_movable=movable, max_entries=3)
        found = [read(region, key) for key in ("read", "overwritten", "deleted")]
        for number in range(3):
            set_one(region, f"new {number}", b"new")
        return found, read(region, "read"), region.backend.check().ok, failures(region)

    assert act_as(FIRST, write) == {}
    assert act_as(SECOND, change) == ([b"first"] * 3, {})
    assert act_as(FIRST, fill) == ([b"first", b"second", None], None, True, {})


@pytest.mark.parametrize("mode", [0o660, 0o440])
@both_backends
def test_hits_of_another_user_count(base_dir, name, mode):
    """A hit counts as a use even if the user does not own the entry's file, or may not write it."""

    def value(number):
        return number if name == VALUES else io.BytesIO(b"%d" % number)

    def write():
        region = configure(base_dir, name, max_entries=3)
        for number in range(3):
            region.set(f"{number}", value(number))
        # All of these uses are long ago, in this order.
        for path in ondisk.files(f"{base_dir}/values"):
            long_ago = os.stat(path).st_mtime - 1000
            os.utime(path, (long_ago, long_ago))
            os.chmod(path, mode)
        return failures(region)

    def hit():
        region = configure(base_dir, name, max_entries=3)
        assert region.get("0") is not NO_VALUE
        region.backend.store.flush()
        return failures(region)

    def evict():
        region = configure(base_dir, name, max_entries=3)
        region.set("3", value(3))
        return [region.get(f"{number}") is not NO_VALUE for number in range(4)]

    assert act_as(FIRST, write) == {}
    assert act_as(SECOND, hit) == {}
    assert act_as(FIRST, evict) == [True, False, True, True]


def test_uses_that_cannot_be_written(directory_of_root):
    """If a user may read another's files but not write them, reads are hits, but do not count as uses."""

    def write():
        configure(directory_of_root, file_mode="0640").set("k", "value")

    def hit():
        region = configure(directory_of_root, file_mode="0640")
        value = region.get("k")
        region.backend.store.flush()
        return value, failures(region)

    act_as(FIRST, write)
    assert act_as(SECOND, hit) == ("value", {})


@both_backends
def test_outsider(directory_of_root, name):
    """A user outside the group gets misses and unstored values, without an exception, and can read nothing."""

    def write():
        configure(directory_of_root, name).set("k", 1 if name == VALUES else io.BytesIO(b"1"))

    def use():
        region = configure(directory_of_root, name)
        found = region.get("k")
        created = region.get_or_create("k", lambda: io.BytesIO(b"2") if name == FILES else 2)
        region.delete("k")
        region.backend.prune()
        return found is NO_VALUE, created if name == VALUES else created.read(), set(failures(region))

    act_as(FIRST, write)
    assert act_as(OUTSIDER, use) == (True, 2 if name == VALUES else b"2", {"EACCES"})
    assert act_as(SECOND, lambda: configure(directory_of_root, name).get("k") is not NO_VALUE)


def refusal(base_dir, name, **arguments):
    """
    Returns the message with which a directory is refused, or None if it is accepted.
    """
    try:
        make_region().configure(name, arguments={"base_dir": base_dir, **arguments})
    except PermissionError as error:
        return str(error)
    return None


@both_backends
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["0777", "01777"])
def test_writable_by_everybody(parent, mode, name):
    """A directory that everybody can write to is refused, and following the advice in the message fixes it."""
    path = make_directory(f"{parent}/cache", mode)
    message = refusal(path, name)
    assert path in message
    assert all(word in message for word in ("subdirectory", "chmod", "signing_key", "allow_shared"))
    assert refusal(path, name, **SHARED)
    assert refusal(path, name, signing_key="secret") is None
    assert refusal(path, name, allow_shared=True) is None
    assert refusal(f"{path}/subdirectory", name) is None
    os.chmod(path, 0o755)
    assert refusal(path, name) is None


@both_backends
@pytest.mark.parametrize("user", [SECOND, ROOT], ids=["another user", "root"])
@pytest.mark.parametrize("mode", [0o700, 0o755], ids=["0700", "0755"])
def test_owned_by_another_user(parent, mode, user, name):
    """A directory that belongs to another user than root is refused, and the message says how to fix it."""
    path = make_directory(f"{parent}/cache", mode, FIRST[0], FIRST[1])
    message = act_as(user, lambda: refusal(path, name))
    assert path in message
    assert str(FIRST[0]) in message
    assert "allow_shared" in message
    assert act_as(FIRST, lambda: refusal(path, name)) is None
    assert act_as(user, lambda: refusal(path, name, allow_shared=True)) is None
    assert act_as(user, lambda: refusal(path, name, signing_key="secret")) is None


def test_of_a_group_that_is_not_mine(parent):
    """A directory that a group shares is refused to a user outside the group, unless it belongs to root."""
    path = make_directory(f"{parent}/cache", 0o2770, FIRST[0], GROUP)
    assert act_as(OUTSIDER, lambda: refusal(path, VALUES, **SHARED))
    assert act_as(SECOND, lambda: refusal(path, VALUES, **SHARED)) is None


@both_backends
def test_writable_by_the_group(parent, name, caplog):
    """A directory that its group can write to works without a configured mode, with one warning per directory."""
    paths = [make_directory(f"{parent}/{number}", 0o770, gid=GROUP) for number in range(2)]
    for path in paths * 2:
        region = make_region().configure(name, arguments={"base_dir": path})
        region.set("k", io.BytesIO(b"value") if name == FILES else b"value")
        assert (read(region, "k") if name == FILES else region.get("k")) == b"value"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    for warning, path in zip(warnings, paths, strict=True):
        assert path in warning
        assert "dir_mode" in warning
    caplog.clear()
    make_region().configure(name, arguments={"base_dir": paths[0], **SHARED})
    assert caplog.records == []


@both_backends
@pytest.mark.parametrize("umask", [0, 0o077], ids=["000", "077"])
def test_private_by_default(parent, umask, name):
    """Missing directories and files are made for their owner alone, whatever the umask."""

    def write():
        region = make_region().configure(name, arguments={"base_dir": f"{parent}/users/cache"})
        region.set("k", io.BytesIO(b"value") if name == FILES else b"value")

    make_directory(f"{parent}/users", 0o1777)
    act_as(FIRST, write, umask)
    assert modes(f"{parent}/users/cache") == {("directory", 0o700, FIRST[1]), ("file", 0o600, FIRST[1])}


def test_filesystem_without_modes(tmp_path):
    """Where permissions do not stick, the refusal says so and gives advice that helps: each of it is followed here."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    disks.run("mkfs.ntfs", "-F", "-Q", image)

    def disk(options):
        return disks.mounted(disks.Disk(tmp_path / options, "-t", "ntfs-3g", "-o", options, image))

    with disk("umask=000") as open_to_all:
        path = f"{open_to_all.path}/cache"
        message = refusal(path, VALUES)
        assert path in message
        assert all(word in message for word in ("umask=077", "signing_key", "allow_shared", "neither chmod"))
        assert refusal(f"{path}/subdirectory", VALUES)
        assert refusal(path, VALUES, signing_key="secret") is None
        assert refusal(path, VALUES, allow_shared=True) is None
        assert not [name for name in os.listdir(path) if name.startswith(".dogpile")]
    with disk("uid=0,umask=077") as private:
        assert refusal(f"{private.path}/cache", VALUES) is None


def test_modes_that_do_not_stick(parent, monkeypatch):
    """The same without such a filesystem: a directory made with 0700 shows 0777."""
    path = make_directory(f"{parent}/cache", 0o777)
    real = os.lstat

    def lstat(path, **where):
        return os.stat_result((real(path, **where).st_mode | 0o777, *real(path, **where)[1:]))

    replace_here(monkeypatch, os, "lstat", lstat)
    message = refusal(path, VALUES)
    assert "does not keep permissions" in message
    assert "umask=077" in message
    assert os.listdir(path) == []


def test_group_on_a_filesystem_without_modes(parent, monkeypatch, caplog):
    """Of a directory that its group can write to, a warning gives no advice that has no effect there."""
    path = make_directory(f"{parent}/cache", 0o770, gid=GROUP)
    monkeypatch.setattr(access, "_keeps_modes", lambda path: False)
    make_region().configure(VALUES, arguments={"base_dir": path})
    assert "umask=077" in caplog.text
    assert "chmod g-w" not in caplog.text
