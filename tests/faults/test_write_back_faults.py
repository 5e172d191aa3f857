"""
Nothing that was written back is lost, and nothing older comes back: kills and errors at each call of the cache and of a
local source, power cuts on a disk that both lie on, and records that cannot be read for a moment.
"""

from __future__ import annotations

import errno
import json
import os
import signal

import cases
import disks
import pytest

pytest.importorskip("fsspec")
back_fault_cases = pytest.importorskip("back_fault_cases")

from dogpile_filesystem.remote import CachedFileSystem, UploadError  # noqa: E402 - it needs fsspec

#: What is killed, and meets each errno, in the gate; with ``--full``, all are, at each of their calls.
KILLED = ["rename an unsent one", "send a newer one"]
FAILED = ["write over an unsent one"]

WRITERS = """
    import hashlib, json, logging, os, random, signal, sys
    from dogpile_filesystem.remote import CachedFileSystem

    disk, seed = sys.argv[1], int(sys.argv[2])
    root = f"{disk}/source"

    def tell(*words):
        os.write(1, (json.dumps(words) + "\\n").encode())

    def write(fs, rng, worker, name, number):
        body = b"%d " % number + rng.randbytes(rng.choice((0, 100, 20_000, 150_000)))
        fs.pipe_file(f"{root}/{worker}/{name}", hashlib.sha256(body).digest() + body)
        return {name: number}

    def change(fs, rng, worker, number, files):
        name, other = (f"{rng.randrange(2)}/{rng.randrange(3)}" for _ in range(2))
        action = rng.randrange(8)
        is_there = files.get(name) is not None
        if action == 0 and is_there and name != other:
            after = {name: None, other: files[name]}
            return after, lambda: fs.mv(f"{root}/{worker}/{name}", f"{root}/{worker}/{other}")
        if action == 1 and is_there:
            return {name: None}, lambda: fs.rm(f"{root}/{worker}/{name}")
        if action == 2 and is_there and name != other:
            after = {other: files[name]}
            return after, lambda: fs.cp_file(f"{root}/{worker}/{name}", f"{root}/{worker}/{other}")
        if action == 3 and name[0] == "1" and is_there:
            gone = {each: None for each in files if each[0] == "1"}
            return gone, lambda: fs.rm(f"{root}/{worker}/1", recursive=True)
        if action == 4:
            return {}, lambda: fs.flush(path=f"{root}/{worker}")
        return {name: number}, lambda: write(fs, rng, worker, name, number)

    def work(parent, worker):
        fs = CachedFileSystem(
            target_protocol="file",
            target_options={"auto_mkdir": True},
            base_dir=f"{disk}/cache",
            cache_size=64 << 20,
            write="back",
            write_after=0,
            max_uploads=2,
        )
        rng, number, files = random.Random(4 * seed + worker), 10_000 * seed, {}
        for name in (f"{a}/{b}" for a in range(2) for b in range(3)):
            try:
                files[name] = int(fs.cat_file(f"{root}/{worker}/{name}")[32:].split(b" ")[0])
            except FileNotFoundError:
                files[name] = None
        while os.getppid() == parent:
            number += 1
            after, do = change(fs, rng, worker, number, files)
            tell("begin", worker, after)
            try:
                do()
            except OSError:  # The power is off.
                while os.getppid() == parent:
                    signal.pause()
            files.update(after)
            tell("done", worker, after)
            if number == 10_000 * seed + 25:
                tell("ready", worker)

    logging.disable()
    parent = os.getpid()
    children = []
    for worker in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            work(parent, worker)
            os._exit(1)
    tell("pids", *children)
    sys.exit(any(os.wait()[1] != signal.SIGKILL for _ in range(2)))
"""

READER = """
    import hashlib, json, logging, os, sys
    from dogpile_filesystem import maintenance
    from dogpile_filesystem.remote import CachedFileSystem

    logging.disable()
    disk = sys.argv[1]
    fs = CachedFileSystem(
        target_protocol="file",
        target_options={"auto_mkdir": True},
        base_dir=f"{disk}/cache",
        cache_size=64 << 20,
        write="back",
        max_uploads=0,
    )
    wrong = []

    def number_of(content, what):
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            wrong.append(f"{what} has other bytes than were accepted")
            return -1
        return int(content[32:].split(b" ")[0])

    def on_source():
        found = {}
        for directory, _, names in os.walk(f"{disk}/source"):
            # A part that was cut off is told by the number of the device, which is another one by now, perhaps.
            for name in (each for each in names if not each.endswith(".dogpile-part")):
                with open(f"{directory}/{name}", "rb") as file:
                    found[os.path.relpath(f"{directory}/{name}", f"{disk}/source")] = file.read()
        return found

    seen = {}
    for name in (f"{worker}/{a}/{b}" for worker in range(2) for a in range(2) for b in range(3)):
        try:
            seen[name] = number_of(fs.cat_file(f"{disk}/source/{name}"), name)
        except FileNotFoundError:
            pass
    unsent = len(fs.unsent())
    fs.flush()
    sent = {name: number_of(content, f"{name} on the source") for name, content in on_source().items()}
    if sent != seen:
        wrong.append(f"the source has {sent}, and readers saw {seen}")
    wrong += [f"left over: {name}" for name in os.listdir(f"{disk}/cache/unsent")]
    maintenance.check(fs.store, repair=True)  # What was cached may be damaged. Unsent files are not repaired.
    fs.store.prune()
    if not maintenance.check(fs.store).ok:
        wrong.append("the cache is not whole")
    print(json.dumps({"seen": seen, "wrong": wrong, "failures": fs.store.failures.counts, "unsent": unsent}))
"""

EXT4 = (64 << 20, "mkfs.ext4", "-q", "-F")
XFS = (320 << 20, "mkfs.xfs", "-q")


def pytest_generate_tests(metafunc):
    is_full = metafunc.config.getoption("--full")
    for test, names in ((test_kill_at_each_call, KILLED), (test_errno_at_each_call, FAILED)):
        if metafunc.function is test:
            metafunc.parametrize("name", back_fault_cases.OPERATIONS if is_full else names)


@pytest.fixture
def full(request):
    """What tells the programs of the cases to take all calls."""
    return ["full"] if request.config.getoption("--full") else []


def test_kill_at_each_call(scratch, record_property, full, name):
    """
    Wherever an operation is killed: each file reads as before or as afterwards, and all others as before. After a flush
    the source has what readers saw, nothing is left over, and writing goes on.
    """
    found = cases.run_cases(back_fault_cases.__file__, "kill", name, scratch, *full)
    record_property("kills", found["kills"])
    print(f"{name}: {len(found['calls'])} calls, {found['kills']} kills")
    assert not found["wrong"], cases.summary(found["wrong"])
    assert found["kills"] >= 7


def test_errno_at_each_call(scratch, record_property, full, name):
    """
    If any errno meets an operation at any call, once or from there on: it is done, or it raises and each file reads as
    before or as afterwards. All others are as before. Once the trouble is over, a flush sends what readers saw.
    """
    found = cases.run_cases(back_fault_cases.__file__, "errno", name, scratch, *full)
    record_property("cases", found["cases"])
    print(f"{name}: {found['calls']} calls, {found['cases']} cases, {found['done']} of them done")
    assert not found["wrong"], cases.summary(found["wrong"])
    # On a slow machine the cache may check its directory less often than in the run that counted the calls.
    assert found["struck"] >= 0.8 * found["cases"] >= 20


@pytest.fixture(params=[EXT4, XFS], ids=["ext4", "xfs"])
def disk(request, tmp_path):
    with disks.image(tmp_path, *request.param) as disk:
        yield disk


def _write_until_cut(disk, spawn, number):
    """What the writers said that they had begun and done."""
    writers = spawn(WRITERS, disk.path, number)
    said, ready, pids = [], 0, []
    while ready < 2 or not pids:
        word, *rest = json.loads(writers.stdout.readline())
        ready += word == "ready"
        pids = pids or (rest if word == "pids" else [])
        said.append((word, *rest))
    disk.cut()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    said += [tuple(json.loads(line)) for line in writers.stdout]
    assert writers.wait() == 0
    disk.unmount()
    disk.mount()
    return said


def _lost(before, said, seen):
    """What is not as the last operation that was done has left it, nor as the one that was begun then."""
    allowed = {name: {number} for name, number in before.items()}
    begun = {}
    for word, *rest in said:
        if word == "begin":
            begun[rest[0]] = rest[1]
        elif word == "done":
            allowed |= {f"{rest[0]}/{name}": {number} for name, number in begun.pop(rest[0]).items()}
    for worker, after in begun.items():
        for name, number in after.items():
            allowed[f"{worker}/{name}"] = {*allowed.get(f"{worker}/{name}", {None}), number}
    names = {*seen, *allowed}
    wrong = {
        name: (seen.get(name), allowed.get(name, {None}), [each for each in said if name[2:] in str(each)])
        for name in names
        if seen.get(name) not in allowed.get(name, {None})
    }
    for after in begun.values():  # A rename leaves both names, and never neither.
        kept = [number for number in after.values() if number is not None] if None in after.values() else []
        wrong |= {f"renamed {number}": None for number in kept if number not in seen.values()}
    return wrong


def test_power_cut(disk, spawn, request):
    """
    After a power cut on the disk of the cache and of its local source, each file reads as the last operation that
    returned has left it, or the one begun. After a flush the source has the same.
    """
    before, done, unsent, cuts = {}, 0, 0, 20 if request.config.getoption("--full") else 3
    for number in range(cuts):
        said = _write_until_cut(disk, spawn, number)
        found = json.loads(spawn(READER, disk.path).communicate()[0])
        assert found["wrong"] == []
        lost = _lost(before, said, found["seen"])
        assert lost == {}, lost
        # What the cache knew of the source's versions is not synced: an older one is taken for a conflict.
        assert set(found["failures"]) <= {"damaged", "conflict"}
        before = found["seen"]
        unsent += found["unsent"]
        done += len([words for words in said if words[0] == "done"])
    print(f"{cuts} power cuts, {done} operations, {unsent} files that were unsent")
    assert done >= cuts * 40
    assert unsent


@pytest.fixture
def small_disk(tmp_path):
    with disks.tmpfs(tmp_path, "size=4m") as disk:
        yield disk


def _filesystem(base_dir):
    return CachedFileSystem(
        target_protocol="file",
        target_options={"auto_mkdir": True},
        base_dir=str(base_dir),
        write="back",
        max_uploads=0,
        lock_timeout=0.1,
        skip_instance_cache=True,
    )


def test_full_local_disk(small_disk, tmp_path):
    """
    While the disk of the cache is full, a write raises ENOSPC, what was accepted before is read and sent, and once
    there is room, writing goes on.
    """
    fs = _filesystem(small_disk.room / "cache")
    fs.pipe_file(f"{tmp_path}/source/a", b"accepted")
    fs.pipe_file(f"{tmp_path}/source/b", b"accepted too")
    with small_disk.filled():
        for name in "ac":
            with pytest.raises(OSError, match=r"No space|no room") as raised:
                fs.pipe_file(f"{tmp_path}/source/{name}", bytes(100_000))
            assert raised.value.errno == errno.ENOSPC
        assert fs.cat_file(f"{tmp_path}/source/a") == b"accepted"
        fs.flush(path=f"{tmp_path}/source/a")
        assert (tmp_path / "source" / "a").read_bytes() == b"accepted"
    fs.pipe_file(f"{tmp_path}/source/c", b"new")
    fs.flush()
    found = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    assert found == {"a": b"accepted", "b": b"accepted too", "c": b"new"}
    assert os.listdir(small_disk.room / "cache" / "unsent") == []


def test_full_source(small_disk, tmp_path):
    """
    While the source is full, a flush says so, readers see what was accepted, the source keeps what it had, and once
    there is room, it gets everything.
    """
    fs = _filesystem(tmp_path / "cache")
    path, content = f"{small_disk.room}/source/a", bytes(100_000)
    fs.pipe_file(path, b"old")
    fs.flush()
    fs.pipe_file(path, content)
    with small_disk.filled():
        with pytest.raises(UploadError) as raised:
            fs.flush()
        assert [error.errno for error in raised.value.failed.values()] == [errno.ENOSPC]
        assert fs.cat_file(path) == content
        assert (small_disk.room / "source" / "a").read_bytes() == b"old"
        assert "No space" in fs.unsent()[0].error
    fs.flush()
    assert (small_disk.room / "source" / "a").read_bytes() == content
    assert os.listdir(small_disk.room / "source") == ["a"]
