"""
The command line on a cache that applications use at the same time.
"""

from __future__ import annotations

import os
import subprocess

import ondisk
from commands import COMMAND, difference


def test_while_applications_run(base_dir, spawn, monkeypatch):
    """
    While processes read and write without pause, every command works, no value is wrong, and the ledger ends up
    right.
    """
    program = """
        import os, random, sys
        from workload import Workload
        base_dir, sources, number = sys.argv[1:]
        workload, rng = Workload(base_dir, sources), random.Random(int(number))
        print("working", flush=True)
        while not os.path.exists(f"{sources}/stop"):
            workload.step(rng, number)
        print(workload.values.backend.stats().process.damaged)
    """
    sources = os.path.join(os.path.dirname(base_dir), "sources")
    os.mkdir(sources)
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(ondisk.__file__), prepend=os.pathsep)
    processes = [spawn(program, base_dir, sources, number) for number in range(2)]
    assert [process.stdout.readline() for process in processes] == ["working\n"] * 2
    for command, *rest in (
        ["check"],
        ["evict", "--to", "300KiB"],
        ["remove", "--prefix", "key 1"],
        ["check", "--repair"],
        ["evict", "--older-than", "1s"],
        ["clear", "--yes"],
        ["remove", *(f"key {number}" for number in range(100))],
        ["check"],
    ):
        process = subprocess.run([*COMMAND, command, base_dir, *rest], capture_output=True, check=False)
        # Some of the keys have no entry in that moment.
        assert process.returncode in ((0, 1) if command == "remove" else (0,)), process
    assert [process.poll() for process in processes] == [None, None]
    with open(f"{sources}/stop", "x"):
        pass
    assert [process.communicate()[0] for process in processes] == ["0\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert difference(base_dir) == []
