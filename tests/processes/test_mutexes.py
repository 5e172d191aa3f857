"""
Many threads and processes that want a few mutexes.
"""

from __future__ import annotations

import itertools

from holding import MUTEXES, OFFSET, go_on

from dogpile_filesystem.lockfile.file import open_lock_file

WORKER = (
    MUTEXES
    + """
    threads, times = map(int, sys.argv[3:])
    errors, intervals = [], []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(times):
            key = rng.randrange(8)
            mutex = make_mutex(offset + key)
            try:
                if not mutex.acquire():
                    errors.append("not obtained")
                start = time.monotonic_ns()
                end = time.monotonic_ns()
                mutex.release()
                intervals.append((key, start, end))
            except BaseException as error:
                errors.append(repr(error))

    sys.stdin.readline()
    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running: thread.start()
    for thread in running: thread.join()
    print(len(errors), *errors[:3])
    for interval in intervals: print(*interval)
"""
)


def test_threads_and_processes(spawn, tmp_path):
    """Of 4 processes with 8 threads each, none of 12,800 acquisitions fails, and no two holders overlap."""
    path = str(tmp_path / "lock")
    open_lock_file(path)
    processes = [spawn(WORKER, path, OFFSET, 8, 400) for _ in range(4)]
    for process in processes:
        go_on(process)
    holds = []
    for process in processes:
        first, *rest = process.communicate()[0].splitlines()
        assert first == "0"
        holds += [tuple(map(int, line.split())) for line in rest]
    assert len(holds) == 12_800
    holds.sort()
    for (key, _, end), (next_key, start, _) in itertools.pairwise(holds):
        assert key != next_key or start >= end
