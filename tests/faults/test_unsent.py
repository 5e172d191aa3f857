"""
Nothing that was accepted is lost: changes of unsent files that are killed, or meet an error, at each of their calls;
and power cuts.
"""

from __future__ import annotations

import json
import os
import signal

import cases
import disks
import pytest
import unsent_cases

CUTS = 20

WRITERS = """
    import hashlib, logging, os, random, signal, sys
    from dogpile_filesystem.store.store import Store

    base_dir, seed = sys.argv[1], int(sys.argv[2])

    def tell(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def change(store, rng, worker, number):
        key = b"%d %d" % (worker, rng.randrange(5))
        found = store.unsent.find(key)
        action = rng.randrange(6)
        tell("begin", key.decode(), number)
        if action == 0 and found:
            assert store.unsent.update(key, found.token, b"%d" % number)
            tell("updated", key.decode(), number)
        elif action == 1 and found:
            assert store.unsent.remove(key, found.token)
            tell("removed", key.decode(), number)
        else:
            body = rng.randbytes(rng.choice((0, 100, 20_000, 150_000)))
            draft = store.unsent.draft(key)
            draft.reserve(len(body) + 32)
            # Not "wb": ext4 writes back what was truncated before as soon as it is closed.
            with open(draft.path, "r+b") as file:
                file.write(hashlib.sha256(body).digest() + body)
            draft.accept(b"%d" % number)
            tell("accepted", key.decode(), number)

    def work(parent, worker):
        store, rng, number = Store(base_dir, cache_size=64 << 20), random.Random(4 * seed + worker), 10_000 * seed
        while os.getppid() == parent:
            number += 1
            try:
                change(store, rng, worker, number)
            except OSError:  # The power is off.
                while os.getppid() == parent:
                    signal.pause()
            if number == 10_000 * seed + 15:
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
    import hashlib, json, logging, sys
    from dogpile_filesystem import maintenance
    from dogpile_filesystem.store.store import Store

    logging.disable()
    store = Store(sys.argv[1], cache_size=64 << 20)
    found, wrong = {}, []
    for file in store.unsent.all():
        with file.open() as opened:
            content = opened.read()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            wrong.append(f"{file.key} has other bytes than were accepted")
        found[file.key.decode()] = int(file.metadata)
    store.prune()
    report = maintenance.check(store)
    print(json.dumps({"found": found, "wrong": wrong, "failures": store.failures.counts, "ok": report.ok}))
"""

EXT4 = (64 << 20, "mkfs.ext4", "-q", "-F")
XFS = (320 << 20, "mkfs.xfs", "-q")


@pytest.mark.parametrize("name", unsent_cases.OPERATIONS)
def test_kill_at_each_call(scratch, record_property, name):
    """
    Wherever a change of an unsent file is killed: it is there as before or as after, whole, and all others as before;
    the bound holds, the ledger is not too low, and after one clearing it equals the disk and nothing is left over.
    """
    found = cases.run_cases(unsent_cases.__file__, "kill", name, scratch)
    record_property("kills", found["kills"])
    print(f"{name}: {len(found['calls'])} calls, {found['kills']} kills")
    assert not found["wrong"], cases.summary(found["wrong"])
    assert found["kills"] >= 7


@pytest.mark.parametrize("name", unsent_cases.OPERATIONS)
def test_errno_at_each_call(scratch, record_property, name):
    """
    If any errno meets a change of an unsent file at any call, once or from there on: it is done, or it raises; never
    neither. All others are as before, and once the trouble is over, everything works.
    """
    found = cases.run_cases(unsent_cases.__file__, "errno", name, scratch)
    record_property("cases", found["cases"])
    print(f"{name}: {found['calls']} calls, {found['cases']} cases, {found['done']} of them done")
    assert not found["wrong"], cases.summary(found["wrong"])
    assert found["struck"] >= found["cases"] >= 5


@pytest.fixture(params=[EXT4, XFS], ids=["ext4", "xfs"])
def disk(request, tmp_path):
    with disks.image(tmp_path, *request.param) as disk:
        yield disk


def _write_until_cut(disk, spawn, base_dir, number):
    """What the writers said that they had begun and done."""
    writers = spawn(WRITERS, base_dir, number)
    said, ready, pids = [], 0, []
    while ready < 2 or not pids:
        word, *rest = writers.stdout.readline().split()
        ready += word == "ready"
        pids = pids or [int(pid) for pid in rest if word == "pids"]
        said.append((word, *rest))
    disk.cut()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    said += [tuple(line.split()) for line in writers.stdout]
    assert writers.wait() == 0
    disk.unmount()
    disk.mount()
    return said


def _allowed(before, said):
    """For each key, what it may have: the last that was done, or what was begun after that."""
    allowed = {key: {number} for key, number in before.items()}
    begun = {}
    for word, *rest in said:
        if word in ("begin", "accepted", "updated", "removed"):
            key, number = f"{rest[0]} {rest[1]}", int(rest[2])
            if word == "begin":
                begun[key] = number
            else:
                allowed[key] = {None if word == "removed" else number}
                del begun[key]
    for key, number in begun.items():
        allowed[key] = {*allowed.get(key, {None}), number, None} if key in allowed else {None, number}
    return allowed


def test_power_cut(disk, spawn):
    """After a power cut, each unsent file is there as the last change that returned has left it, or the one begun."""
    base_dir = str(disk.path / "cache")
    before, done = {}, 0
    for number in range(CUTS):
        said = _write_until_cut(disk, spawn, base_dir, number)
        allowed = _allowed(before, said)
        found = json.loads(spawn(READER, base_dir).communicate()[0])
        assert found["wrong"] == []
        assert found["failures"] == {}
        assert found["ok"]
        before = found["found"]
        wrong = {key: before.get(key) for key in {*before, *allowed} if before.get(key) not in allowed.get(key, {None})}
        assert wrong == {}, f"allowed was {allowed}"
        done += len([words for words in said if words[0] in ("accepted", "updated", "removed")])
    assert done >= CUTS * 20
