"""
gevent: a process whose greenlets share one thread, which nothing may block.
"""

from __future__ import annotations

import pytest

pytest.importorskip("gevent")

#: Seconds for which another process holds what the greenlets want, and those that all greenlets may stand still.
HELD, LONGEST_GAP = 2, 1

PRELUDE = """
    import gevent.monkey
    gevent.monkey.patch_all()
"""

TOOLS = """
    import functools, os, sys, time
    from dogpile.cache import make_region
    from dogpile_filesystem.layout import VALUE

    base_dir, *arguments = sys.argv[1:]
    bounds = {"cache_size": None, "max_entries": 100}
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir, **bounds})
    store = region.backend.store

    class Ticks:
        # The longest time between two turns of a greenlet that only takes turns.
        def __enter__(self):
            import gevent
            self.gap, self.start = 0, time.monotonic()
            self.greenlet = gevent.spawn(self.run)
            gevent.sleep(0)
            return self

        def run(self):
            import gevent
            last = self.start
            while True:
                gevent.sleep(0.005)
                now = time.monotonic()
                self.gap, last = max(self.gap, now - last), now

        def __exit__(self, *_):
            import gevent
            gevent.sleep(0.01)
            self.greenlet.kill()
            self.took = time.monotonic() - self.start
"""

HOLDER = """
    import contextlib, sys, time
    from dogpile_filesystem.layout import VALUE
    from dogpile_filesystem.store.store import Store

    base_dir, what, seconds = sys.argv[1:]
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
        time.sleep(float(seconds))
"""


@pytest.fixture
def run(spawn, base_dir):
    """
    Runs a program under gevent, and gives what it prints.
    """

    def program(text, *arguments, prelude=PRELUDE):
        process = spawn(prelude + TOOLS + text, base_dir, *arguments)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return output.split()

    return program


@pytest.fixture
def hold(spawn, base_dir):
    """
    Starts a process, without gevent, that holds a range for some seconds.
    """

    def start(what, seconds=HELD):
        process = spawn(HOLDER, base_dir, what, seconds)
        assert process.stdout.readline() == "held\n"
        return process

    return start


#: What waits for each of the ranges.
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

WAIT = """
    import gevent
    with Ticks() as ticks:
        gevent.joinall([gevent.spawn(waiters[what]) for _ in range(3)], raise_error=True)
    print(ticks.took, ticks.gap, region.get("k"), *store.failures.counts)
"""


def assert_others_went_on(printed, value):
    took, gap, *rest = printed
    assert rest == [value]
    assert float(took) > HELD / 2, "nothing was waited for"
    assert float(gap) < LONGEST_GAP


@pytest.mark.parametrize("what", ["mutex", "shard", "eviction"])
def test_others_go_on_while_one_waits(run, hold, what):
    """While another process holds what some greenlets want, all others take their turns, and those get it at last."""
    fill = "    fill()\n" if what == "eviction" else ""
    run(WAITERS + fill)
    hold(what)
    printed = run(WAITERS + f"    what = {what!r}" + WAIT)
    assert_others_went_on(printed, "created" if what == "mutex" else "set")


@pytest.mark.parametrize("what", ["mutex", "shard", "eviction"])
def test_others_go_on_in_the_worker_of_a_preloading_server(spawn, run, hold, base_dir, what):
    """The same in a child that turns to gevent after its parent used the cache without."""
    text = """
    fill()
    assert region.get("filling 99") == b""
    print("loaded", flush=True)
    sys.stdin.readline()
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(15)  # Should it hang, nobody else would end it.
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
    hold(what)
    printed = process.communicate("\n", timeout=60)[0].split()
    assert process.returncode == 0
    assert_others_went_on(printed, "created" if what == "mutex" else "set")


def test_eviction_and_prune_under_load(run, spawn, base_dir, usage_on_disk):
    """While greenlets and another process fill a full cache, evict and prune, others wait for file I/O at most."""
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
    _, gap, *failures = run(
        """
        import gevent
        def work(seed):
            for number in range(60):
                region.set(f"{seed} {number}", bytes(5000))
                gevent.sleep(0)
                region.get(f"{seed} {number}")
                if number % 20 == 0:
                    region.backend.prune()
        with Ticks() as ticks:
            gevent.joinall([gevent.spawn(work, seed) for seed in range(20)], raise_error=True)
        print(ticks.took, ticks.gap, *store.failures.counts)
        """.replace("\n    ", "\n")
    )
    assert other.poll() is None
    other.kill()
    other.wait()
    assert usage_on_disk().entries <= 100
    assert failures == []
    assert float(gap) < LONGEST_GAP


@pytest.mark.parametrize("distributed", [True, False])
def test_one_creator(run, distributed):
    """Of 20 greenlets that want one key, one creates it while the others wait."""
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
    """Greenlets that wait for a mutex have it, one after the other, when the process that holds it is killed."""
    holder = hold("mutex", 60)
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
    greenlets = [gevent.spawn(take) for _ in range(3)]
    assert gevent.wait(greenlets, timeout=0.1) == []
    print("waiting", flush=True)
    gevent.joinall(greenlets, raise_error=True)
    print("taken")
        """,
        base_dir,
    )
    assert process.stdout.readline() == "waiting\n"
    holder.kill()
    assert process.communicate(timeout=60)[0] == "taken\n"


def test_uses_noted_in_the_threadpool(run):
    """
    A use noted by a thread of gevent's pool is written within 5 seconds too, although no timer goes off in a thread
    that has no loop of its own.
    """
    printed = run(
        """
    import gevent
    from dogpile_filesystem import flusher as flusher_module
    flusher_module.DELAY = 0.01
    region.set_multi({"k": "value", "another": "value"})
    path = ondisk.path(store, VALUE, b"k")
    os.utime(path, (1, 1))
    assert gevent.get_hub().threadpool.apply(region.get, ("k",)) == "value"
    with gevent.Timeout(5, False):
        while os.stat(path).st_mtime == 1:
            gevent.sleep(0.01)
            region.get("another")
    print(os.stat(path).st_mtime > 1)
        """
    )
    assert printed == ["True"]


def test_fork_after_the_threadpool(run):
    """Who forks goes on, although a thread of gevent's pool has started a timer that never ends."""
    printed = run(
        """
    import gevent, subprocess
    from gevent.threadpool import ThreadPool
    from dogpile_filesystem.flusher import flusher
    region.set("k", "value")
    flusher.settle_before_fork()
    assert ThreadPool(1).spawn(region.get, "k").get() == "value"
    assert flusher.timer is not None
    # What is raised before a fork is not seen.
    limit = gevent.Timeout.start_new(10)
    subprocess.run(["true"], check=True)
    print(limit.pending, flusher.timer)
        """
    )
    assert printed == ["True", "None"]
