"""
Every command: how it opens a cache, as which user, what it prints where, and what it leaves alone.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner
from commands import COMMAND, COMMANDS, as_root, path_of, read_until, snapshot
from forked import Child

from dogpile_filesystem import cli
from dogpile_filesystem.layout import VALUE, version_key
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.store import Store

#: The record of a file that the source is to remove. It is not there.
REMOVED = {
    "path": "/a",
    "namespace": "n",
    "since": 0.0,
    "next_try": 0.0,
    "removed": True,
    "base": None,
    "sent": [],
    "tries": 0,
    "error": "",
    "is_lasting": False,
    "source": {"protocol": "memory", "options": {}, "left_out": []},
}
READING = {
    "unsent": ["unsent"],
    "unsent --json": ["unsent", "--json"],
    "stats": ["stats"],
    "stats --json": ["stats", "--json"],
    "ls": ["ls"],
    "ls --sort key --json": ["ls", "--sort", "key", "--json"],
    "show": ["show", "value"],
    "check": ["check"],
    "evict --dry-run": ["evict", "--to", "4KiB", "--older-than", "1s", "--dry-run"],
    "remove --dry-run": ["remove", "value", "file", "--dry-run"],
    "remove --prefix --dry-run": ["remove", "--prefix", "v", "--dry-run"],
    "clear --dry-run": ["clear", "--dry-run"],
}


# Directories that are not a cache, and streams that are closed


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "what",
    ["missing", "a file", "empty", "somebody's", "another program's lock", "an empty lock", "photos", "another tag"],
)
def test_no_cache(tmp_path, run, command, what):
    """Each command refuses a directory that is not a cache with one line and exit code 2, and leaves it as it is."""
    directory = tmp_path / "directory"
    if what == "a file":
        directory.write_text("mine")
    elif what != "missing":
        (directory / "values").mkdir(parents=True)
    if what == "somebody's":
        (directory / "values" / "mine").write_text("mine")
    elif what == "another program's lock":
        (directory / "lock").write_text("pid 123, which is running")
    elif what == "an empty lock":
        (directory / "lock").touch()
        (directory / "values" / "precious").write_text("mine")
    elif what == "photos":
        (directory / "values" / "ab").mkdir()
        (directory / "values" / "ab" / "precious.jpg").write_text("mine")
    elif what == "another tag":
        (directory / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# Of another program.\n")
    before = snapshot(tmp_path)
    done = run(command, *COMMANDS[command], directory=directory)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert str(directory) in line
    assert "base_dir" in line
    assert snapshot(tmp_path) == before


def test_no_cache_in_a_process(start, tmp_path):
    """A program that starts the command gets the exit code and the line."""
    process = start("stats", tmp_path)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode() == f"Error: {tmp_path} is not a cache: pass the base_dir of a cache\n"


def test_no_name(run):
    """The empty value of a shell variable does not mean the current directory."""
    done = run("clear", "--yes", directory="")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "empty" in done.stderr


@pytest.mark.parametrize(("command", "tells"), [("stats", "Entries"), ("check", "Nothing is wrong."), ("ls", "KEY")])
def test_new_cache(base_dir, run, command, tells):
    """A cache that is configured, but in which nothing has been stored yet, is an empty cache."""
    Store(base_dir).open()
    before = snapshot(base_dir)
    done = run(command)
    assert (done.exit_code, done.stderr) == (0, "")
    assert tells in done.stdout
    assert snapshot(base_dir) == before


@pytest.mark.parametrize("command", ["stats", "check", "ls", "clear"])
def test_closed_streams(filled, base_dir, command):
    """A command whose parent process closed its streams ends without a traceback."""
    quoted = " ".join(map(shlex.quote, [*COMMAND, command, base_dir]))
    done = subprocess.run(["sh", "-c", f"{quoted} <&- >&-"], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if command == "clear" else 0)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("evict", "--older-than", "9" * 400), ("stats", "-w", "--json", "-i", "nan")])
def test_numbers_beyond_sense(filled, run, arguments):
    """A number that makes no sense is wrong usage."""
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
@pytest.mark.parametrize("state", ["whole", "no lock file", "earlier start", "damaged", "killed writer"])
def test_reading_changes_nothing(filled, base_dir, run, arguments, state, spawn):
    """A command that only looks changes no name, byte, mode or time, whatever state the directory is in."""
    if state == "no lock file":
        os.unlink(f"{base_dir}/lock")
    elif state == "earlier start":
        with open(f"{base_dir}/lock", "r+b") as file:
            file.seek(24)
            file.write(b"earlier.")
    elif state == "damaged":
        os.truncate(path_of(base_dir, VALUE, b"value"), 20)
    elif state == "killed writer":
        program = """
            import os, signal, sys
            from dogpile_filesystem.store.reservation import Reservation
            from dogpile_filesystem.store.store import Store
            Reservation.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            Store(sys.argv[1]).put(b"new", bytes(5000))
        """
        assert spawn(program, base_dir).wait() == -9
    before = snapshot(base_dir)
    command, *rest = arguments
    run(command, *rest)
    assert snapshot(base_dir) == before


# Users


ROOT, OWNER, OTHER = (0, 0, []), (65533, 65533, []), (65534, 65534, [])


def make_cache_of_owner(directory, access):
    store = Store(directory, access=access)
    assert store.put(b"a", b"1")
    assert store.put(b"b", b"2")
    store.unsent.accept(version_key("file:///a", "n"), json.dumps(REMOVED).encode())
    store.prune()


@pytest.mark.time_intensive
@as_root
@pytest.mark.parametrize("command", [*COMMANDS, "check --repair"])
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_root_acts_as_owner(parent, start, command, mode):
    """Root leaves nothing in another user's cache that belongs to root or shuts its owner out."""
    directory = f"{parent}/cache"
    os.mkdir(directory)
    os.chown(directory, *OWNER[:2])
    os.chmod(directory, mode)
    Child(lambda: make_cache_of_owner(directory, Access(mode, mode & 0o666)), OWNER).result()
    os.unlink(f"{directory}/lock")  # The command has to make one.
    name, *rest = command.split()
    process = start(name, directory, *COMMANDS[name], *rest)
    process.communicate()
    assert process.returncode in (0, 1)
    assert {seen[1] for seen in snapshot(directory).values()} == {OWNER[0]}
    if os.path.exists(f"{directory}/lock"):
        assert os.stat(f"{directory}/lock").st_mode & 0o777 == mode & 0o666
    assert Child(lambda: Store(directory).put(b"new", b"value"), OWNER).result()


@pytest.mark.time_intensive
@as_root
@pytest.mark.parametrize("command", [*COMMANDS, "check --repair", "remove --prefix", "fetch"])
def test_root_imports_nothing_as_owner(parent, terminal, command):
    """Root imports all modules before it becomes another user, who may not be able to read them."""
    directory = f"{parent}/cäche"
    os.mkdir(directory)
    os.chown(directory, *OWNER[:2])
    Child(lambda: make_cache_of_owner(directory, Access()), OWNER).result()
    program = """
        import os, sys
        def watch(event, arguments):
            if event == "import" and os.geteuid() != 0:
                os.write(int(os.environ["WATCHED"]), arguments[0].encode())
        sys.addaudithook(watch)
        from dogpile_filesystem.__main__ import main
        main()
    """
    _, theirs = terminal
    name, *rest = command.split()
    arguments = [directory, *rest, *COMMANDS.get(name, ())]
    if name == "fetch":
        pytest.importorskip("fsspec")
        with open(f"{parent}/file", "wb") as file:
            file.write(b"content")
        arguments = [f"{parent}/file", "--base-dir", directory]
    ours, watched = os.pipe()
    with open(ours, "rb") as imported, open(watched, "wb"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), name, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "WATCHED": str(watched)},
            pass_fds=[watched],
            check=False,
        )
        os.set_blocking(ours, False)
        assert imported.read() is None
    assert done.returncode == 0


@as_root
def test_who_may_only_read(parent):
    """A user who may only read can run the commands that take no lock, and is told who can run the others."""
    directory = f"{parent}/cache"
    # In another process, since this one must not have the lock file open for writing.
    Child(lambda: make_cache_of_owner(directory, Access(0o755, 0o644)), ROOT).result()
    before = snapshot(directory)

    def look():
        done = {}
        for command, rest in COMMANDS.items():
            result = CliRunner().invoke(cli.main, [command, directory, *rest])
            done[command] = result.exit_code, result.stdout, result.stderr
        return done

    done = Child(look, OTHER).result()
    assert [done[command][0] for command in ("stats", "ls", "show", "unsent")] == [0, 0, 0, 0]
    assert "Entries  " in done["stats"][1]
    for command in ("check", "evict", "remove", "discard"):
        code, _, err = done[command]
        assert (command, code) == (command, 1)
        assert len(err.splitlines()) == 1
        assert "as the owner" in err or "Permission denied" in err
    assert done["clear"][0] == 1
    assert snapshot(directory) == before


@as_root
def test_who_may_not_even_read(parent):
    """A user who may not look into the directory is told so in one line."""
    directory = f"{parent}/cache"
    make_cache_of_owner(directory, Access())
    done = Child(lambda: CliRunner().invoke(cli.main, ["ls", directory]).output, OTHER).result()
    assert done == f"Error: {directory}: Permission denied: pass the base_dir of a cache\n"


# Terminals and pipes


@pytest.mark.parametrize("arguments", [["check"], ["remove", "--prefix", "k"], ["evict", "--to", "1"]])
def test_progress(store, base_dir, start, terminal, arguments):
    """A long command shows its progress on a terminal, apart from its output; into a file it shows none."""
    for number in range(20):
        assert store.put(b"k%d" % number, b"value")
    ours, theirs = terminal
    command, *rest = arguments
    process = start(command, base_dir, *rest, stderr=theirs)
    assert re.search(rb"(Checking|Counting|Removing).*%", read_until(ours, rb"100%"))
    assert b"%" not in process.communicate()[0]
    process = start(command, base_dir, *rest)
    assert b"%" not in process.communicate()[1]


def test_tables_into_a_pipe(filled, base_dir, start):
    """Output into a pipe has no colours, no cut lines and no trailing blanks."""
    for command in ("stats", "check", "ls"):
        out = start(command, base_dir, env={**os.environ, "COLUMNS": "20"}).communicate()[0].decode()
        assert "\x1b" not in out
        assert "…" not in out
        assert all(line == line.rstrip() for line in out.splitlines())


def test_completion(start):
    """A shell completes commands and options."""
    environment = {
        **os.environ,
        "_DOGPILE_FILESYSTEM_COMPLETE": "bash_complete",
        "COMP_WORDS": "dogpile-filesystem evict --older",
        "COMP_CWORD": "2",
    }
    process = start(env=environment)
    assert process.communicate() == (b"plain,--older-than\n", b"")
