"""
The command line: what it shows, what it removes, what it leaves alone, and how it ends.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import ondisk
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner
from dogpile.cache import make_region
from forked import Child

from dogpile_filesystem import cli
from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.lockfile.ledger import BLOCK, SHARDS, Ledger, Usage
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.entry import VALUE
from dogpile_filesystem.store.store import Store

COMMAND = [sys.executable, "-m", "dogpile_filesystem"]
#: Every command on a cache, with what it needs besides a directory.
COMMANDS = {
    "stats": [],
    "ls": [],
    "show": ["a"],
    "check": [],
    "evict": ["--to", "1"],
    "remove": ["a"],
    "clear": ["--yes"],
}
READING = {
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

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to act as several users")


@pytest.fixture
def store(base_dir):
    """A store on the real clock: what the commands compare with."""
    store = Store(base_dir)
    store.open()
    store.prune()  # Its ledger is counted.
    return store


@pytest.fixture
def run(base_dir):
    """Runs a command on the directory, in this process: the exit code, and what it says on the two streams."""

    def run(command, *arguments, directory=base_dir):
        done = CliRunner().invoke(cli.main, [command, str(directory), *map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


@pytest.fixture
def start():
    """Starts a command in a process of its own. What still runs at the end is killed."""
    started = []

    def start(*arguments, **options):
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            # A test run in the background of a shell ignores it, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def snapshot(base_dir):
    """Everything below a directory: names, modes, times of change, bytes."""
    found = {}
    for directory, directories, names in os.walk(base_dir):
        for path in (directory, *(os.path.join(directory, name) for name in (*directories, *names))):
            seen = os.lstat(path)
            data = None
            if not os.path.isdir(path):
                with open(path, "rb") as file:
                    data = file.read()
            found[path] = seen.st_mode, seen.st_uid, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, data
    return found


def path_of(base_dir, kind, key):
    name = entry.digest(kind, key)
    return f"{base_dir}/values/{name[:2]}/{name}"


def difference(base_dir):
    return ondisk.difference(Ledger.open(f"{base_dir}/lock").usage(), base_dir)


# Directories that are no cache, and others'


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "what",
    ["missing", "a file", "empty", "somebody's", "another program's lock", "an empty lock", "photos", "another tag"],
)
def test_no_cache(tmp_path, run, command, what):
    """Each command refuses what is no cache with one line, exit code 2, and leaves it as it is."""
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
    """A program sees the exit code and the line."""
    process = start("stats", tmp_path)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode() == f"Error: {tmp_path} is no cache: pass the base_dir of a cache\n"


def test_no_name(run):
    """An empty variable of a shell is not taken for the directory where it is."""
    done = run("clear", "--yes", directory="")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "empty" in done.stderr


@pytest.mark.parametrize(("command", "tells"), [("stats", "Entries"), ("check", "Nothing is wrong."), ("ls", "KEY")])
def test_new_cache(base_dir, run, command, tells):
    """A cache that is configured, but in which nothing was stored yet, is one: an empty one."""
    Store(base_dir).open()
    before = snapshot(base_dir)
    done = run(command)
    assert (done.exit_code, done.stderr) == (0, "")
    assert tells in done.stdout
    assert snapshot(base_dir) == before


@pytest.mark.parametrize("command", ["stats", "check", "ls", "clear"])
def test_closed_streams(filled, base_dir, command):
    """A command whose streams were closed by who started it ends without a traceback."""
    quoted = " ".join(map(shlex.quote, [*COMMAND, command, base_dir]))
    done = subprocess.run(["sh", "-c", f"{quoted} <&- >&-"], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if command == "clear" else 0)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("evict", "--older-than", "9" * 400), ("stats", "-w", "--json", "-i", "nan")])
def test_numbers_beyond_sense(filled, run, arguments):
    """A number that makes no sense is wrong usage."""
    assert run(*arguments).exit_code == 2


@pytest.fixture
def filled(store):
    """A store with a value and a file, which has a left-over content beside it."""
    assert store.put(b"value", b"payload")
    assert store.put_file(b"file", io.BytesIO(bytes(BLOCK + 1)))
    flusher.settle_before_fork()  # Else its statistics are added while somebody looks.
    return store


@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
@pytest.mark.parametrize("state", ["whole", "no lock file", "earlier start", "damaged", "killed writer"])
def test_reading_changes_nothing(filled, base_dir, run, arguments, state, spawn):
    """Who only looks changes no name, byte, mode or time, in whatever state the directory is."""
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
            Store(sys.argv[1]).put(b"new", b"value")
        """
        assert spawn(program, base_dir).wait() == -9
    before = snapshot(base_dir)
    command, *rest = arguments
    run(command, *rest)
    assert snapshot(base_dir) == before


@pytest.fixture
def parent():
    """A directory that every user can reach, unlike those of pytest."""
    path = tempfile.mkdtemp()
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


ROOT, OWNER, OTHER = (0, 0, []), (65533, 65533, []), (65534, 65534, [])


def make_cache_of_owner(directory, access):
    store = Store(directory, access=access)
    assert store.put(b"a", b"1")
    assert store.put(b"b", b"2")
    store.prune()


@as_root
@pytest.mark.parametrize("command", [*COMMANDS, "check --repair"])
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_root_acts_as_owner(parent, start, command, mode):
    """What root does in another user's cache leaves nothing there that is root's, nor modes that shut him out."""
    directory = f"{parent}/cache"
    os.mkdir(directory)
    os.chown(directory, *OWNER[:2])
    os.chmod(directory, mode)
    Child(lambda: make_cache_of_owner(directory, Access(mode, mode & 0o666)), OWNER).result()
    os.unlink(f"{directory}/lock")  # So that one has to be made.
    name, *rest = command.split()
    process = start(name, directory, *COMMANDS[name], *rest)
    process.communicate()
    assert process.returncode in (0, 1)
    assert {seen[1] for seen in snapshot(directory).values()} == {OWNER[0]}
    if os.path.exists(f"{directory}/lock"):
        assert os.stat(f"{directory}/lock").st_mode & 0o777 == mode & 0o666
    assert Child(lambda: Store(directory).put(b"new", b"value"), OWNER).result()


@as_root
@pytest.mark.parametrize("command", [*COMMANDS, "check --repair", "remove --prefix"])
def test_root_imports_nothing_as_owner(parent, terminal, command):
    """Root has imported all that it needs before it becomes another user, who may not be able to read it."""
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
    ours, watched = os.pipe()
    with open(ours, "rb") as imported, open(watched, "wb"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), name, directory, *rest, *COMMANDS[name]],
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
    """Who may only read gets everything that needs no lock, and is told who may have the rest."""
    directory = f"{parent}/cache"
    # In another process: this one must not have the lock file open for writing.
    Child(lambda: make_cache_of_owner(directory, Access(0o755, 0o644)), ROOT).result()
    before = snapshot(directory)

    def look():
        done = {}
        for command, rest in COMMANDS.items():
            result = CliRunner().invoke(cli.main, [command, directory, *rest])
            done[command] = result.exit_code, result.stdout, result.stderr
        return done

    done = Child(look, OTHER).result()
    assert [done[command][0] for command in ("stats", "ls", "show")] == [0, 0, 0]
    assert "Entries  " in done["stats"][1]
    for command in ("check", "evict", "remove"):
        code, _, err = done[command]
        assert (command, code) == (command, 1)
        assert len(err.splitlines()) == 1
        assert "as the owner" in err or "Permission denied" in err
    assert done["clear"][0] == 1
    assert snapshot(directory) == before


@as_root
def test_who_may_not_even_read(parent):
    """Who may not look into the directory is told so in one line."""
    directory = f"{parent}/cache"
    make_cache_of_owner(directory, Access())
    done = Child(lambda: CliRunner().invoke(cli.main, ["ls", directory]).output, OTHER).result()
    assert done == f"Error: {directory}: Permission denied: pass the base_dir of a cache\n"


# stats


def test_stats(base_dir, run):
    """What an application did is shown, with its bound and its expiration."""
    region = make_region().configure(
        "paylogic.filesystem",
        arguments={"base_dir": base_dir, "cache_size": 100 * BLOCK, "max_entries": 50, "expiration_time": 7200},
    )
    region.set("a", 1)
    assert [region.get("a"), region.get("a"), region.get("a")] == [1, 1, 1]
    region.get("b")
    region.backend.store.flush()
    done = run("stats")
    assert done.exit_code == 0
    rows = {
        line.split("  ")[0]: line.split()[-len(line.split("  ", 1)[-1].split()) :] for line in done.stdout.splitlines()
    }
    assert rows["Entries"] == ["1", "of", "50", "at", "most"]
    assert rows["Size"] == ["4", "KiB", "1%", "of", "400", "KiB"]
    assert rows["Expiration of values"] == ["2", "h", "after", "creation"]
    assert rows["Hits"] == ["3", "75.0%", "of", "the", "reads"]
    assert rows["Misses"] == ["1", "0", "expired"]
    assert rows["Stores"] == ["1", "4", "KiB"]
    told = json.loads(run("stats", "--json").stdout)
    assert {name: told[name] for name in ("entries", "size", "is_counted", "cache_size", "max_entries")} == {
        "entries": 1,
        "size": BLOCK,
        "is_counted": True,
        "cache_size": 100 * BLOCK,
        "max_entries": 50,
    }
    assert told["expiration_time"] == {"value": 7200, "file": None}
    assert told["total"]["hits"] == 3
    assert told["total"]["hit_ratio"] == 0.75
    assert told["total"]["failures"] == {}
    assert told["since"] <= told["time"] <= time.time()


def test_stats_json_has_all_counts(store, run):
    """The names of all counts are there, also where nothing was counted."""
    told = json.loads(run("stats", "--json").stdout)
    names = set(type(store.stats().total).__dataclass_fields__)
    assert set(told["total"]) == names | {"hit_ratio"}
    assert told["since"] is None
    assert told["is_counted"]


def test_stats_of_a_lock_file_alone(store, base_dir, run):
    """Figures come from the lock file: no entry is looked at."""
    with Ledger.open(f"{base_dir}/lock").shard(0):
        Ledger.open(f"{base_dir}/lock").add(0, 10**9 * BLOCK, 1_000_000)
    assert json.loads(run("stats", "--json").stdout)["entries"] == 1_000_000


@pytest.mark.parametrize("command", ["stats", "check"])
def test_lock_file_missing(filled, base_dir, run, command):
    """Without the lock file, one line says so, and what makes it anew; the exit code is 1."""
    os.unlink(f"{base_dir}/lock")
    done = run(command)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert f"check --repair {base_dir}" in line
    assert run("check", "--repair").exit_code == 0
    assert run(command).exit_code == 0


def read_until(fd, pattern):
    """What comes from a terminal, until a pattern is in it."""
    data = b""
    deadline = time.monotonic() + 30
    while not re.search(pattern, data):
        assert time.monotonic() < deadline, data
        if select.select([fd], [], [], 0.1)[0]:
            try:
                data += os.read(fd, 65536)
            except OSError as error:  # Linux: the other end was closed.
                assert error.errno == errno.EIO
                raise AssertionError(data) from error
    return data


@pytest.fixture
def terminal():
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_watch(store, base_dir, start, terminal):
    """A terminal shows what is done per second; the cache may be deleted and come back; Ctrl-C ends it with 0."""
    ours, theirs = terminal
    process = start("stats", base_dir, "--watch", "--interval", 0.1, stdin=theirs, stdout=theirs)
    read_until(ours, rb"Entries +0")
    store.get(b"missing")
    assert store.put(b"a", b"value")
    store.flush()
    read_until(ours, rb"Misses +1 +[1-9][0-9.]*/s")
    shutil.rmtree(base_dir)
    read_until(ours, rb"no cache now")
    assert Store(base_dir).put(b"a", b"value")
    read_until(ours, rb"Entries +1")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_watch_json(store, base_dir, start):
    """Programs get a line for each look, and may end it with SIGINT."""
    process = start("stats", base_dir, "--watch", "--json", "--interval", 0.1)
    assert json.loads(process.stdout.readline())["entries"] == 0
    assert store.put(b"a", b"value")
    while json.loads(process.stdout.readline())["entries"] != 1:
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_watch_without_terminal(store, run):
    """To watch a table takes a terminal: where there is none, that is wrong usage."""
    done = run("stats", "--watch")
    assert done.exit_code == 2
    assert "--json" in done.stderr


# ls


@pytest.fixture
def several(store, base_dir):
    """Entries whose orders by key, size, creation and last use all differ."""
    now = time.time_ns()
    for key, blocks, used in ((b"b", 3, 20), (b"c", 1, 40), (b"a", 2, 30)):
        assert store.put(key, bytes(blocks * BLOCK - 100))
        os.utime(path_of(base_dir, VALUE, key), ns=(0, now - used * 10**9))
    return store


def listed(done):
    assert done.exit_code == 0
    return [line.split()[-1] for line in done.stdout.splitlines()[1:]]


@pytest.mark.parametrize(
    ("sort", "expected"), [("used", "bac"), ("size", "bac"), ("created", "acb"), ("key", "abc"), (None, "bac")]
)
def test_ls_sorted(several, run, sort, expected):
    """Each order is as it says, with a limit its first, and the other way round."""
    arguments = [] if sort is None else ["--sort", sort]
    assert listed(run("ls", *arguments)) == list(expected)
    assert listed(run("ls", *arguments, "--limit", 2)) == list(expected[:2])
    assert listed(run("ls", *arguments, "--reverse")) == list(expected[::-1])
    assert listed(run("ls", *arguments, "--reverse", "--limit", 1)) == [expected[-1]]


def test_ls_row(several, run):
    """A row tells kind, size, age, last use, and what is known of the expiry."""
    assert run("ls", "--limit", 1).stdout.splitlines()[1].split() == [
        "value",
        "12",
        "KiB",
        "0",
        "s",
        "20",
        "s",
        "-",
        "b",
    ]


def test_ls_json(base_dir, run):
    """Programs get an object in each line, with times in seconds since the epoch."""
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir, "expiration_time": 60})
    before = time.time()
    region.set("ä", "value")
    region.backend.store.flush()
    (line,) = run("ls", "--json").stdout.splitlines()
    seen = json.loads(line)
    assert (seen["key"], seen["kind"], seen["size"]) == ("ä", "value", BLOCK)
    assert before <= seen["created"] <= time.time()
    assert seen["expires"] == pytest.approx(seen["created"] + 60)
    assert seen["used"] == pytest.approx(seen["created"])
    assert os.path.exists(f"{base_dir}/values/{seen['name'][:2]}/{seen['name']}")


@pytest.mark.parametrize(
    ("seconds", "ago", "shown"),
    [(None, 0, "never"), (7100, 0, "118 min"), (7100, 3600, "58 min"), (3600, 7100, "expired")],
)
def test_ls_expiry(base_dir, run, seconds, ago, shown):
    """What is left of an entry's time is shown, as the application that uses the cache has configured it."""
    store = Store(base_dir, expiration_time=seconds, clock=lambda: time.time() - ago)
    assert store.put(b"a", b"value")
    store.flush()
    assert f"  {shown:>7}  a\n" in run("ls").stdout


@pytest.mark.parametrize(
    ("key", "shown", "text"),
    [
        (b"\x1b]0;evil\x07\r\n", r"\x1b]0;evil\x07\r\n", "\x1b]0;evil\x07\r\n"),
        (b"[bold]markup[/bold]", "[bold]markup[/bold]", "[bold]markup[/bold]"),
        ("ü\u202e".encode(), r"ü\u202e", "ü\u202e"),
        (b"\xff\x00", r"\xff\x00", "\udcff\x00"),
        (b"x" * 5000, "x" * 5000, "x" * 5000),
    ],
    ids=["escape sequence", "markup", "direction", "no text", "long"],
)
def test_keys(store, run, key, shown, text):
    """A key is shown whole, with nothing in it that would steer a terminal; JSON has it exactly, to be passed on."""
    assert store.put(key, b"value")
    assert run("ls").stdout.splitlines()[1].endswith(f"  {shown}")
    assert json.loads(run("ls", "--json").stdout)["key"] == text
    assert f"Key       {shown}\n" in run("show", "--", text).stdout
    assert run("remove", "--", text).stdout.startswith("Removed 1 entry")


def test_ls_of_what_is_damaged(store, base_dir, run):
    """An entry that cannot be read is listed by its file's name."""
    assert store.put(b"a", b"value")
    os.truncate(path_of(base_dir, VALUE, b"a"), 3)
    assert f"(damaged: {entry.digest(VALUE, b'a')})" in run("ls", "--sort", "key").stdout
    assert json.loads(run("ls", "--json").stdout)["key"] is None


def test_ls_into_a_pipe_that_is_closed(store, base_dir, start):
    """Whoever reads only the first lines gets no traceback."""
    for number in range(3000):
        assert store.put(b"%d" % number, b"")
    process = start("ls", base_dir)
    assert process.stdout.readline().split()[-1] == b"KEY"
    process.stdout.close()
    process.stdout = None
    assert process.communicate()[1] == b""


# show


def test_show_value(base_dir, run):
    """Of a value, dogpile's metadata and the first bytes behind it are shown, without unpickling anything."""
    region = make_region(serializer=lambda value: value, deserializer=bytes)
    region.configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    region.set("key", b"cos\nsystem\n(S'false'\ntR.")
    done = run("show", "key", "--bytes", 20)
    assert done.exit_code == 0
    assert re.search(r'^Metadata +\{"ct": [0-9.]+, "v": [0-9]+\}$', done.stdout, re.MULTILINE)
    assert re.search(r"^Length +24 bytes$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-2:] == [
        "00000000  63 6f 73 0a 73 79 73 74  65 6d 0a 28 53 27 66 61  |cos.system.(S'fa|",
        "00000010  6c 73 65 27                                       |lse'|",
    ]
    (seen,) = json.loads(run("show", "key", "--json").stdout)
    assert seen["start"] == b"cos\nsystem\n(S'false'\ntR.".hex()
    assert set(seen["metadata"]) == {"ct", "v"}


@pytest.mark.parametrize("payload", [b"", b"no metadata", b"1|2", b"[1]|2", b"{|"])
def test_show_value_without_metadata(store, run, payload):
    """What was not stored by dogpile is shown from its first byte."""
    assert store.put(b"key", payload)
    (seen,) = json.loads(run("show", "key", "--json").stdout)
    assert (seen["metadata"], seen["start"], seen["length"]) == (None, payload.hex(), len(payload))


def test_show_file(store, run):
    """Of a file, its content is shown, and where reading starts."""
    file = io.BytesIO(b"0123456789" * 1000)
    file.seek(7)
    assert store.put_file(b"key", file, b'{"ct": 5.0}')
    done = run("show", "key")
    assert re.search(r"^Length +10,000 bytes, read from 7$", done.stdout, re.MULTILINE)
    assert re.search(r'^Metadata +\{"ct": 5.0\}$', done.stdout, re.MULTILINE)
    assert "  |0123456789012345|" in done.stdout
    (seen,) = json.loads(run("show", "key", "--json", "--bytes", 2).stdout)
    assert (seen["position"], seen["length"], seen["start"], seen["size"]) == (7, 10_000, b"01".hex(), 4 * BLOCK)


def test_show_both_kinds(store, run):
    """A value and a file under one key are both shown; --kind shows one."""
    assert store.put(b"key", b"value")
    assert store.put_file(b"key", io.BytesIO(b"file"))
    assert re.findall(r"^Kind +(\w+)$", run("show", "key").stdout, re.MULTILINE) == ["value", "file"]
    (seen,) = json.loads(run("show", "key", "--kind", "file", "--json").stdout)
    assert seen["kind"] == "file"


def test_show_nothing(store, run):
    """A key without an entry ends with 1, and says so."""
    done = run("show", "key")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no entry under key" in done.stderr


def test_show_what_is_damaged(filled, base_dir, run):
    """An entry that is damaged ends with 1, and is not taken for a missing one."""
    os.truncate(path_of(base_dir, VALUE, b"value"), 3)
    done = run("show", "value", "--kind", "value")
    assert done.exit_code == 1
    assert "damaged" in done.stderr


# check


def test_check(filled, run):
    """A cache in order ends with 0."""
    done = run("check")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith("\nNothing is wrong.\n")
    told = json.loads(run("check", "--json").stdout)
    assert told["ok"]
    assert (told["entries"], told["size"]) == (2, 4 * BLOCK)
    assert told["ledger"] == told["disk"] == {"entries": 2, "size": 4 * BLOCK}


@pytest.mark.parametrize("wrong", ["damaged", "ledger"])
def test_check_repairs(filled, base_dir, run, wrong):
    """What is wrong ends with 1, again and again, until it is repaired."""
    if wrong == "damaged":
        os.truncate(path_of(base_dir, VALUE, b"value"), 20)
    else:
        with Ledger.open(f"{base_dir}/lock").shard(9):
            Ledger.open(f"{base_dir}/lock").add(9, 7 * BLOCK, 3)
    for _ in range(2):
        done = run("check")
        assert done.exit_code == 1
        assert "--repair" in done.stdout
    told = json.loads(run("check", "--json").stdout)
    assert (told["ok"], told["mended"], told["damaged"]) == (False, None, wrong == "damaged")
    mended = run("check", "--repair")
    assert (mended.exit_code, mended.stdout.splitlines()[-1]) == (0, "Mended.")
    assert run("check").exit_code == 0
    assert difference(base_dir) == []


def test_check_that_cannot_mend(filled, base_dir, run):
    """What still is wrong after a repair ends with 1."""
    path = path_of(base_dir, VALUE, b"value")
    shutil.move(os.path.dirname(path), f"{base_dir}/elsewhere")
    os.symlink(f"{base_dir}/elsewhere", os.path.dirname(path))
    done = run("check", "--repair")
    assert done.exit_code == 1
    assert "still wrong" in done.stdout


# evict


def test_evict_to(store, base_dir, run):
    """The least recently used go until the size is reached, as a dry run says; the ledger is right."""
    for number in range(20):
        assert store.put(b"%d" % number, b"value")
    assert store.get(b"0")
    store.flush()
    dry = run("evict", "--to", "40KiB", "--dry-run")
    assert dry.stdout == "Would remove 10 entries, 40 KiB.\n"
    assert run("evict", "--to", "40KiB").stdout == "Removed 10 entries, 40 KiB.\n"
    assert [store.get(b"%d" % number) is not None for number in range(20)] == [True, *[False] * 10, *[True] * 9]
    assert difference(base_dir) == []
    assert run("evict", "--to", "40KiB").stdout == "Removed 0 entries, 0 KiB.\n"


def test_evict_older_than(store, base_dir, run):
    """Those not used for so long go, however old they are; with --to, those also that it takes."""
    for number in range(10):
        assert store.put(b"%d" % number, b"value")
        used = time.time_ns() - number * 3600 * 10**9 - 60 * 10**9
        os.utime(path_of(base_dir, VALUE, b"%d" % number), ns=(0, used))
    assert run("evict", "--older-than", "6h", "-n").stdout == "Would remove 4 entries, 16 KiB.\n"
    assert run("evict", "--older-than", "6h").stdout == "Removed 4 entries, 16 KiB.\n"
    both = ["--older-than", "5h", "--to", 2 * BLOCK]
    assert run("evict", *both, "--dry-run").stdout == "Would remove 4 entries, 16 KiB.\n"
    assert run("evict", *both).stdout == "Removed 4 entries, 16 KiB.\n"
    assert [store.get(b"%d" % number) is not None for number in range(10)] == [True, True, *[False] * 8]
    assert difference(base_dir) == []


def test_evict_spares_entries_for_what_is_left_over(store, base_dir, run, spawn):
    """What a killed process left goes first: no entry has to go for it."""
    for number in range(5):
        assert store.put(b"%d" % number, b"value")
    program = """
        import os, signal, sys
        from dogpile_filesystem.store.reservation import Reservation
        from dogpile_filesystem.store.store import Store
        Reservation.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Store(sys.argv[1]).put(b"new", bytes(100_000))
    """
    assert spawn(program, base_dir).wait() == -9
    assert run("evict", "--to", 5 * BLOCK).stdout == "Removed 0 entries, 0 KiB.\n"
    assert difference(base_dir) == []


@pytest.mark.parametrize(
    "arguments", [[], ["--to", "0"], ["--to", "none"], ["--to", "-1"], ["--to", "1XB"], ["--older-than", "1y"]]
)
def test_evict_wrong_usage(filled, run, arguments):
    """Without a limit, or with one that makes no sense, nothing goes, and the exit code is 2."""
    done = run("evict", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert filled.usage().entries == 2


# remove


def test_remove_keys(filled, base_dir, run):
    """The entries of the keys go, of both kinds or one; a key without entry is told, with exit code 1."""
    assert filled.put(b"file", b"value")
    assert filled.put(b"stays", b"value")
    assert run("remove", "file", "value", "--dry-run").stdout == "Would remove 3 entries, 20 KiB.\n"
    assert run("remove", "file", "--kind", "value").stdout == "Removed 1 entry, 4 KiB.\n"
    done = run("remove", "file", "missing", "value")
    assert (done.exit_code, done.stdout) == (1, "Removed 2 entries, 16 KiB.\n")
    assert done.stderr == "no entry under missing\n"
    assert filled.get(b"stays") is not None
    assert difference(base_dir) == []


def test_remove_prefix(filled, base_dir, run):
    """All entries with the prefix go, and no others; that there are none ends with 1."""
    assert filled.put(b"val", b"value")
    assert filled.put_file(b"value:2", io.BytesIO(b"file"))
    assert run("remove", "--prefix", "value", "--dry-run").stdout == "Would remove 2 entries, 12 KiB.\n"
    assert run("remove", "--prefix", "value", "--kind", "file").stdout == "Removed 1 entry, 8 KiB.\n"
    assert run("remove", "--prefix", "value").stdout == "Removed 1 entry, 4 KiB.\n"
    done = run("remove", "--prefix", "value")
    assert (done.exit_code, done.stderr) == (1, "no key begins with value\n")
    assert filled.usage().entries == 2
    assert difference(base_dir) == []


@pytest.mark.parametrize("arguments", [[], ["key", "--prefix", "k"], ["--prefix", ""]])
def test_remove_wrong_usage(filled, run, arguments):
    """Neither keys nor prefix, both, or the prefix of everything: nothing goes, and the exit code is 2."""
    assert run("remove", *arguments).exit_code == 2
    assert filled.usage().entries == 2


# clear


def test_clear(filled, base_dir, run):
    """All entries go; the cache can be used at once."""
    assert run("clear", "--dry-run").stdout == "Would remove 2 entries, 16 KiB.\n"
    assert run("clear", "--yes").stdout == "Removed 2 entries, 16 KiB.\n"
    assert ondisk.usage_on_disk(base_dir) == Usage(0, 0, SHARDS)
    assert filled.put(b"a", b"value")
    assert difference(base_dir) == []


def test_clear_asks(filled, base_dir, start, terminal):
    """On a terminal it asks, and takes no for an answer."""
    ours, theirs = terminal
    for answer, left in ((b"n\n", 2), (b"y\n", 0)):
        process = start("clear", base_dir, stdin=theirs, stdout=theirs, stderr=theirs)
        read_until(ours, rb"Remove 2 entries, 16 KiB from .*\?")
        os.write(ours, answer)
        assert process.wait(30) == (1 if left else 0)
        assert filled.usage().entries == left


def test_clear_without_terminal(filled, base_dir, start):
    """Without a terminal to ask on, nothing goes without --yes, and the exit code is 2."""
    process = start("clear", base_dir)
    assert b"--yes" in process.communicate()[1]
    assert process.returncode == 2
    assert filled.usage().entries == 2
    assert start("clear", base_dir, "--yes").wait(30) == 0
    assert filled.usage().entries == 0


# Around them


@pytest.mark.parametrize("arguments", [["check"], ["remove", "--prefix", "k"], ["evict", "--to", "1"]])
def test_progress(store, base_dir, start, terminal, arguments):
    """On a terminal, a long work shows how far it is, beside its output; into a file, it does not."""
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
    """What goes into a pipe has no colours, no cut lines and no blanks at their ends."""
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


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 KiB"),
        (1023, "1023 bytes"),
        (BLOCK, "4 KiB"),
        (1 << 20, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 42, "4.0 TiB"),
    ],
)
def test_sizes(size, shown):
    """Sizes are shown in the largest unit that they reach."""
    assert formatting.size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (172_800, "2 d"), (7200, "2 h")],
)
def test_ages(seconds, shown):
    """Ages are shown in the largest unit of which there are two; a clock that is behind makes none negative."""
    assert formatting.age(seconds) == shown


@pytest.mark.parametrize(
    ("text", "seconds"), [("3600", 3600), ("90m", 5400), ("1.5 h", 5400), ("30d", 2_592_000), ("1w", 604_800), ("0", 0)]
)
def test_ages_as_given(text, seconds):
    """Ages are read with their units."""
    assert parameters.age(text) == seconds


@pytest.mark.stress
def test_while_applications_run(base_dir, start, spawn, monkeypatch):
    """
    While processes read and write without pause, every command does its work, no value is wrong, and in the end the
    ledger is what lies on the disk.
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
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
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
        process = start(command, base_dir, *rest)
        out, err = process.communicate()
        # Some of the keys have no entry in that moment.
        assert process.returncode in ((0, 1) if command == "remove" else (0,)), (command, rest, out, err)
    assert [process.poll() for process in processes] == [None, None]
    with open(f"{sources}/stop", "x"):
        pass
    assert [process.communicate()[0] for process in processes] == ["0\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert difference(base_dir) == []
