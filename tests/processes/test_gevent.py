"""
gevent: a process whose greenlets share one thread, which no call may block.
"""

from __future__ import annotations

import pytest
from patience import PATIENCE

pytest.importorskip("gevent")

#: Turns that another greenlet takes while some wait, until it is believed that nothing keeps it from its turn.
TURNS = 50

PRELUDE = """
    import gevent.monkey
    gevent.monkey.patch_all()
"""

TOOLS = """
    import functools, os, sys, time
    from dogpile.cache import make_region
    from dogpile_filesystem import layout
    from dogpile_filesystem.layout import VALUE

    base_dir, *arguments = sys.argv[1:]
    bounds = {"cache_size": None, "max_entries": 100}
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir, **bounds})
    store = region.backend.store

    def wait_with(waiters, turns):
        # Until another greenlet has taken some turns, none of the waiters may have what it waits for.
        import gevent
        waiting = [gevent.spawn(waiter) for waiter in waiters]
        for _ in range(turns):
            gevent.sleep(0.005)
        print(*(greenlet.ready() for greenlet in waiting), flush=True)
        gevent.joinall(waiting, raise_error=True)
"""

HOLDER = """
    import contextlib, sys, time
    from dogpile_filesystem import layout
    from dogpile_filesystem.layout import VALUE
    from dogpile_filesystem.store.store import Store

    base_dir, what = sys.argv[1:]
    store = Store(base_dir)
    ledger = store.directory.ledger()
    if what == "mutex":
        held = contextlib.ExitStack()
        mutex = store.mutex(VALUE, b"k")
        assert mutex.acquire()
        held.callback(mutex.release)
    else:
        held = {"shard": ledger.shard(layout.place(VALUE, b"k").shard), "eviction": ledger.eviction}[what]
    with held:
        print("held", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def run(spawn, base_dir):
    """
    Runs a program under gevent, and returns its output.
    """

    def program(text, *arguments, prelude=PRELUDE):
        process = spawn(prelude + TOOLS + text, base_dir, *arguments)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        return output.split()

    return program


@pytest.fixture
def hold(spawn, base_dir):
    """
    Starts a process, without gevent, that holds a range until it reads a line.
    """

    def start(what):
        process = spawn(HOLDER, base_dir, what)
        assert process.stdout.readline() == "held\n"
        return process

    return start


#: The calls that wait for each of the ranges.
WAITERS = """
    def fill():
        # The next new entry evicts.
        for number in range(100):
            region.set(f"filling {number}", b"")

    waiters = {
        "mutex": lambda: region.get_or_create("k", lambda: "created"),
        "shard": lambda: region.set("k", "set"),
        "eviction": lambda: region.set("k", "set"),
    }
"""

WAIT = f"""
    wait_with([waiters[what]] * 3, {TURNS})
    print(region.get("k"), *store.failures.counts)
"""


def assert_others_go_on(process, holder, value):
    """Fails unless greenlets take their turns until the holder lets go, and those that wait then go on."""
    assert process.stdout.readline() == "False False False\n"
    holder.communicate("\n", timeout=PATIENCE)
    assert process.communicate(timeout=PATIENCE)[0] == f"{value}\n"
    assert process.returncode == 0


@pytest.mark.parametrize("what", ["mutex", "shard", "eviction"])
def test_others_go_on_while_one_waits(run, spawn, hold, base_dir, what):
    """
    While another process holds a range that some greenlets need, all others run, and the waiting ones get it at last.
    """
    run(WAITERS + ("    fill()\n" if what == "eviction" else ""))
    holder = hold(what)
    process = spawn(PRELUDE + TOOLS + WAITERS + f"    what = {what!r}" + WAIT, base_dir)
    assert_others_go_on(process, holder, "created" if what == "mutex" else "set")


@pytest.mark.parametrize("what", ["mutex", "shard", "eviction"])
def test_others_go_on_in_the_worker_of_a_preloading_server(spawn, hold, base_dir, what):
    """Waiting blocks no greenlet either in a child that starts gevent after its parent used the cache without it."""
    text = f"""
    fill()
    assert region.get("filling 99") == b""
    print("loaded", flush=True)
    sys.stdin.readline()
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm({PATIENCE})  # Should it hang, nobody else would end it.
        import gevent.monkey
        gevent.monkey.patch_all()
        what, = arguments
    """
    worker = WAIT.replace("\n    ", "\n        ")
    end = """
        sys.stdout.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    process = spawn("    pass\n" + TOOLS + WAITERS + text + worker + end, base_dir, what)
    assert process.stdout.readline() == "loaded\n"
    holder = hold(what)
    process.stdin.write("\n")
    process.stdin.flush()
    assert_others_go_on(process, holder, "created" if what == "mutex" else "set")


def test_eviction_and_prune_under_load(run, spawn, base_dir, usage_on_disk):
    """
    While greenlets and another process fill a full cache, evict and prune, no call waits in the kernel for a lock of
    the other process, where it would stop all greenlets.
    """
    busy = """
        import sys
        from dogpile_filesystem.store.store import Store
        store = Store(sys.argv[1], max_entries=100)
        print("busy", flush=True)
        for number in range(10**9):
            store.put(b"%d" % number, bytes(5000))
            if number % 200 == 0:
                store.prune()
    """
    other = spawn(busy, base_dir)
    assert other.stdout.readline() == "busy\n"
    turns, blocked, *failures = run(
        """
        import fcntl, gevent
        from dogpile_filesystem.lockfile import ranges

        turns, blocked = 0, 0

        def lockf(fd, flags, *rest):
            global blocked
            blocked += not flags & (fcntl.LOCK_NB | fcntl.LOCK_UN)
            return fcntl.lockf(fd, flags, *rest)

        ranges.lockf = lockf

        def work(seed):
            for number in range(60):
                region.set(f"{seed} {number}", bytes(5000))
                gevent.sleep(0)
                region.get(f"{seed} {number}")
                if number % 20 == 0:
                    region.backend.prune()
        working = [gevent.spawn(work, seed) for seed in range(20)]
        while not all(greenlet.ready() for greenlet in working):
            gevent.sleep(0)
            turns += 1
        gevent.joinall(working, raise_error=True)
        print(turns, blocked, *store.failures.counts)
        """.replace("\n    ", "\n")
    )
    assert other.poll() is None
    other.kill()
    other.wait()
    assert usage_on_disk().entries <= 100
    assert (blocked, failures) == ("0", [])
    # At least as many as each of the others, which have the same right to a turn.
    assert int(turns) >= 60


@pytest.mark.parametrize("distributed", [True, False])
def test_one_creator(run, distributed):
    """If 20 greenlets want one key, one of them creates it while the others wait."""
    printed = run(
        f"""
    import gevent
    region = make_region().configure(
        "paylogic.filesystem", arguments={{"base_dir": base_dir, "distributed_lock": {distributed}}}
    )
    created = []
    def create():
        created.append(1)
        gevent.sleep(0.05)
        return "value"
    wanting = [gevent.spawn(region.get_or_create, "k", create) for _ in range(20)]
    gevent.joinall(wanting, raise_error=True)
    print(len(created), *{{greenlet.value for greenlet in wanting}})
        """
    )
    assert printed == ["1", "value"]


def test_holder_is_killed(spawn, hold, base_dir):
    """If the process that holds a mutex is killed, the greenlets that wait for it get it one after the other."""
    holder = hold("mutex")
    process = spawn(
        PRELUDE
        + TOOLS
        + """
    import gevent
    def take():
        mutex = region.backend.get_mutex("k")
        assert mutex.acquire()
        gevent.sleep(0.01)
        mutex.release()
    wait_with([take] * 3, 20)
    print("taken")
        """,
        base_dir,
    )
    assert process.stdout.readline() == "False False False\n"
    holder.kill()
    assert process.communicate(timeout=PATIENCE)[0] == "taken\n"


def test_uses_noted_in_the_threadpool(run):
    """
    A use noted by a thread of gevent's pool is written too, although no timer goes off in a thread that has no loop of
    its own.
    """
    printed = run(
        f"""
    import gevent
    from dogpile_filesystem import flusher as flusher_module
    from dogpile_filesystem.maintenance import find
    flusher_module.DELAY = 0.01
    region.set_multi({{"k": "value", "another": "value"}})
    name = layout.entry_name(VALUE, b"k")
    path = f"{{base_dir}}/values/{{name[:2]}}/{{name}}"
    os.utime(path, (1, 1))
    store = region.backend.store
    assert gevent.get_hub().threadpool.apply(region.get, ("k",)) == "value"
    with gevent.Timeout({PATIENCE}, False):
        while find(store.shards, VALUE, b"k").used_ns == 10**9:
            gevent.sleep(0.01)
            region.get("another")
    print(find(store.shards, VALUE, b"k").used_ns > 10**9)
        """
    )
    assert printed == ["True"]


def test_fork_after_the_threadpool(run):
    """A fork does not wait for a timer that a thread of gevent's pool has started and that never ends."""
    printed = run(
        f"""
    import gevent, subprocess
    from gevent.threadpool import ThreadPool
    from dogpile_filesystem.flusher import flusher
    region.set("k", "value")
    flusher.settle_before_fork()
    assert ThreadPool(1).spawn(region.get, "k").get() == "value"
    assert flusher.timer is not None
    # What is raised before a fork is not seen.
    limit = gevent.Timeout.start_new({PATIENCE})
    subprocess.run(["true"], check=True)
    print(limit.pending, flusher.timer)
        """
    )
    assert printed == ["True", "None"]
