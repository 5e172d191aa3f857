"""
The command ``watch``.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from commands import invoke
from situations import Tree


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_once(tree, tmp_path):
    """With ``--once`` and a state, each run prints what changed since the one before, and ends."""
    arguments = ["watch", tree.root, "--once", "--recurse", "--state", tmp_path / "state"]
    tree.write("d/a")
    assert invoke(*arguments).output == ""
    tree.write("d/a", "longer")
    tree.write("new\nline")
    assert sorted(invoke(*arguments).output.splitlines()) == [
        f"created   {tree.root}/new\\nline",
        f"modified  {tree.root}/d/a",
    ]
    assert invoke(*arguments).output == ""


def test_json(tree):
    """With ``--json``, each event is an object on a line of its own."""
    tree.write("a", "12345")
    [line] = invoke("watch", tree.root, "--once", "--existing", "--json").output.splitlines()
    event = json.loads(line)
    assert event.keys() == {"event", "subject", "size", "identity", "first_seen"}
    assert (event["event"], event["subject"], event["size"]) == ("created", f"{tree.root}/a", 5)


def test_patterns(tree):
    """``--include`` and ``--exclude`` may be repeated."""
    for name in ("a.csv", "b.txt", "c.csv", "d"):
        tree.write(name)
    globs = ["--include", "*.csv", "--include", "*.txt", "--exclude", "c*"]
    output = invoke("watch", tree.root, "--once", "--existing", *globs).output
    assert sorted(os.path.basename(line) for line in output.splitlines()) == ["a.csv", "b.txt"]


def test_exec(tree, tmp_path):
    """The command gets the event and the subject; one that fails ends the watch, and its event comes again."""
    program = tmp_path / "program.py"
    program.write_text("import sys, pathlib; sys.exit(sys.argv[2].endswith('bad') and not pathlib.Path('x').exists())")
    arguments = ["watch", tree.root, "--once", "--existing", "--state", tmp_path / "state"]
    command = ["--exec", f"{sys.executable} {program}"]
    for name in ("a", "bad", "c"):
        tree.write(name)
    done = invoke(*arguments, *command)
    assert done.exit_code == 1
    assert "ended with 1 for" in done.output
    shown = [line.split("/")[-1] for line in done.output.splitlines() if line.startswith("created")]
    assert shown[-1] == "bad"
    rest = [os.path.basename(line) for line in invoke(*arguments).output.splitlines()]
    assert sorted({*shown[:-1], *rest}) == ["a", "bad", "c"]
    assert "bad" in rest
    tree.write("new")
    done = invoke(*arguments, "--exec", "/missing/program")
    assert (done.exit_code, "cannot run /missing/program" in done.output) == (1, True)


def test_until_interrupted(tree, start):
    """Without ``--once``, it goes on until Ctrl-C, and survives a root that is gone for a while."""
    process = start("watch", tree.root, "--existing", "--interval", "0.01", env={**os.environ, "PYTHONUNBUFFERED": "1"})
    tree.write("a")
    assert process.stdout.readline() == f"created   {tree.root}/a\n".encode()
    os.rename(tree.root, f"{tree.root}.gone")
    assert b"No such file or directory" in process.stderr.readline()
    os.rename(f"{tree.root}.gone", tree.root)
    tree.write("b")
    assert process.stdout.readline() == f"created   {tree.root}/b\n".encode()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def test_wrong_usage(tree, tmp_path):
    """A state of other options, an unknown scheme and a missing directory are refused in a line."""
    state = tmp_path / "state"
    invoke("watch", tree.root, "--once", "--state", state)
    done = invoke("watch", tree.root, "--once", "--recurse", "--state", state)
    assert (done.exit_code, "reset=True" in done.output) == (2, True)
    assert invoke("watch", tree.root, "--once", "--recurse", "--state", state, "--reset").exit_code == 0
    assert invoke("watch", "gopher://x", "--once").exit_code == 2
    done = invoke("watch", f"{tree.root}/missing", "--once")
    assert (done.exit_code, "No such file" in done.output) == (1, True)
