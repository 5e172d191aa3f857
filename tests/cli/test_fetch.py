"""
The command ``fetch``: what is in the cache afterwards, what it says, and what it leaves to the others that use it.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import click
import ondisk
import pytest
from commands import COMMAND, as_root, difference, invoke, read_until, snapshot
from patience import PATIENCE
from serving import wait_for
from slow_control import Control

pytest.importorskip("fsspec")

import fsspec
from slow_source import SlowSource

from dogpile_filesystem.cli.cache import cache_to_fill
from dogpile_filesystem.layout import BLOCK, TAG, TAG_NAME
from dogpile_filesystem.remote import CachedFileSystem
from dogpile_filesystem.store.store import Store

SIZES = {"a.bin": 300_000, "b.bin": 70_000, "c.txt": 1000, "deep/er/d.bin": 200_000, "empty": 0}
BLOCK_SIZE = 1 << 16


@pytest.fixture
def control(tmp_path):
    return Control(tmp_path / "control")


@pytest.fixture
def options(tmp_path, control):
    """What the source needs to know."""
    return {"root": f"{tmp_path}/source", "control": control.directory}


@pytest.fixture
def contents(tmp_path):
    """The files of the source."""
    rng = random.Random(5)
    files = {name: rng.randbytes(size) for name, size in SIZES.items()}
    for name, content in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


@pytest.fixture
def fetch(base_dir, options, contents):
    """Fetches URLs from the slow source."""
    given = [text for name, value in options.items() for text in ("--option", f"{name}={value}")]

    def fetch(*arguments):
        return invoke("fetch", "--base-dir", base_dir, "--block-size", "64KiB", *given, *arguments)

    return fetch


@pytest.fixture
def reader(base_dir, options):
    """Makes the filesystem of an application, with the arguments that ``fetch`` has."""

    def make(**arguments):
        arguments = {"base_dir": base_dir, "block_size": BLOCK_SIZE, **arguments}
        return CachedFileSystem(target_protocol="slow", target_options=options, skip_instance_cache=True, **arguments)

    return make


def asked_for(control):
    """The files of which bytes were asked for."""
    return {request.path for request in control.requests("read")}


def test_fetch(fetch, reader, control, contents, base_dir):
    """After a directory was fetched, readers with the same options get all of it from the cache; all came once."""
    done = fetch("slow://")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "Fetched 5 files, 558 KiB: 558 KiB came from the source.\n"
    assert control.totals().bytes == sum(SIZES.values())
    control.forget_requests()
    fs = reader()
    for name, content in contents.items():
        assert fs.cat_file(name) == content
    assert control.totals().reads == 0
    assert difference(base_dir) == []


def test_fetch_again(fetch, control):
    """What is there already is not fetched again, and what has changed is."""
    assert fetch("slow://").exit_code == 0
    control.forget_requests()
    with open(f"{control.directory}/../source/a.bin", "wb") as file:
        file.write(b"new")
    done = fetch("slow://", "--json")
    assert json.loads(done.stdout) == {
        "files": 5,
        "size": sum(SIZES.values()) - SIZES["a.bin"] + 3,
        "source_bytes": 3,
        "evictions": 0,
        "problems": [],
    }
    assert asked_for(control) == {"a.bin"}


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (["slow://a.bin"], {"a.bin"}),
        (["dogpile::slow://a.bin", "slow://a.bin"], {"a.bin"}),
        (["slow://*.bin"], {"a.bin", "b.bin"}),
        (["slow://**/*.bin"], {"a.bin", "b.bin", "deep/er/d.bin"}),
        (["slow://deep"], {"deep/er/d.bin"}),
        (["slow://deep/"], {"deep/er/d.bin"}),
        (["slow://d*"], {"deep/er/d.bin"}),
        (["slow://[a]*.bin", "slow://c.txt"], {"a.bin", "c.txt"}),
    ],
)
def test_urls(fetch, control, urls, expected):
    """A URL means a file, all files below a directory, or those that match a pattern; each file is fetched once."""
    done = fetch(*urls, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["files"] == len(expected)
    assert asked_for(control) == expected
    assert control.totals().bytes == sum(SIZES[name] for name in expected)


def test_name_that_looks_like_a_pattern(fetch, control, options):
    """A file whose name has brackets is fetched by its name."""
    with open(f"{options['root']}/x[1].bin", "wb") as file:
        file.write(b"bytes")
    assert fetch("slow://x[1].bin").exit_code == 0
    assert asked_for(control) == {"x[1].bin"}


def test_options_of_the_source(run, options, contents, base_dir):
    """Options are JSON, so that readers whose options are no text share what was fetched."""
    given = ["--option", f"root={options['root']}", "--option", f"control={options['control']}"]
    given += ["--option", "latency=0.0", "--option", 'other={"a": [1, true]}']
    assert invoke("fetch", "slow://a.bin", "--base-dir", base_dir, *given).exit_code == 0
    options |= {"latency": 0.0, "other": {"a": [1, True]}}
    fs = CachedFileSystem(target_protocol="slow", target_options=options, base_dir=base_dir, skip_instance_cache=True)
    fs.cat_file("a.bin")
    assert fs.stats().process.source.source_bytes == 0


def test_chained_url(base_dir, tmp_path, contents):
    """The members of an archive are fetched by a chained URL, whose options have the name of their protocol."""
    import zipfile  # noqa: PLC0415

    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("member", contents["a.bin"])
    done = invoke("fetch", f"zip://member::file://{tmp_path}/archive.zip", "--base-dir", base_dir, "--check", "never")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "300" not in done.stdout
    assert "293 KiB came from the source" in done.stdout


def test_problems(fetch, control):
    """What goes wrong with a URL or a file is said in a line and in JSON; all others are fetched."""
    control.fail("EIO", "read", "b.bin")
    done = fetch("slow://*.bin", "slow://missing", "slow://no*", "quark://a", "slow://c.txt", "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["files"] == 2
    assert [problem["url"] for problem in report["problems"]] == [
        "slow://missing",
        "slow://no*",
        "quark://a",
        "slow://b.bin",
    ]
    lines = done.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [problem["url"] for problem in report["problems"]]
    assert "OSError" in lines[-1]
    assert {"a.bin", "c.txt"} <= asked_for(control)


def test_problem_with_control_characters(fetch):
    """A name cannot steer a terminal."""
    done = fetch("slow://\x1b]0;evil\x07")
    assert "\x1b" not in done.stderr
    assert done.exit_code == 1


def test_source_without_identity(fetch, reader, control):
    """A file that no version can be told of is not fetched in vain; with --check it is kept for so long."""
    done = fetch("slow://a.bin", "--option", "identity=none")
    assert (done.exit_code, asked_for(control)) == (1, set())
    assert done.stderr.startswith("slow://a.bin: its source does not tell")
    assert fetch("slow://a.bin", "--option", "identity=none", "--check", "3600").exit_code == 0
    assert asked_for(control) == {"a.bin"}


def test_file_that_was_changed_just_now(fetch, control, options):
    """A version that is too young to be told from the next is not fetched in vain."""
    ahead = 4_000_000_000  # A time of change that has whole seconds, and does not become old while the test runs.
    os.utime(f"{options['root']}/a.bin", (ahead, ahead))
    done = fetch("slow://a.bin", "--option", "identity=second")
    assert (done.exit_code, asked_for(control)) == (1, set())
    assert "changed just now" in done.stderr


# The cache of an application


def test_bound_of_the_applications(fetch, reader, base_dir):
    """Without --cache-size, the bound that the applications gave to the cache holds, and what was evicted is said."""
    fs = reader(cache_size="256KiB", max_entries=7)
    fs.cat_file("c.txt")
    fs.store.flush()
    done = fetch("slow://")
    assert done.exit_code == 0
    assert "evicted to make room" in done.stdout
    assert ondisk.usage_on_disk(base_dir).size <= 256 << 10
    seen = json.loads(invoke("stats", base_dir, "--json").stdout)
    assert (seen["cache_size"], seen["max_entries"]) == (256 << 10, 7)
    assert json.loads(fetch("slow://", "--cache-size", "1MiB", "--json").stdout)["source_bytes"] > 0
    assert json.loads(invoke("stats", base_dir, "--json").stdout)["cache_size"] == 1 << 20


def test_no_room(fetch, base_dir):
    """Blocks that the cache has no room for are a problem."""
    done = fetch("slow://a.bin", "--cache-size", 8 * BLOCK)
    assert done.exit_code == 1
    assert re.search(r"^\d+ blocks could not be kept", done.stderr, re.MULTILINE)


def test_signed(fetch, reader, control, monkeypatch):
    """With the key of the applications, which may be in the environment, they accept what was fetched."""
    monkeypatch.setenv("DOGPILE_FILESYSTEM_SIGNING_KEY", "secret")
    assert fetch("slow://a.bin").exit_code == 0
    control.forget_requests()
    reader(signing_key="secret").cat_file("a.bin")
    assert control.totals().reads == 0
    reader(signing_key="another").cat_file("a.bin")
    assert control.totals().reads > 0


def test_namespace(fetch, reader, control, options):
    """Readers with other options share what was fetched if the namespace is the same."""
    assert fetch("slow://a.bin", "--namespace", "ours").exit_code == 0
    control.forget_requests()
    reader(namespace="ours", target_options={}).cat_file("a.bin") if False else reader(namespace="ours").cat_file(
        "a.bin"
    )
    assert control.totals().reads == 0


def test_modes(fetch, base_dir):
    """What is made in a directory has the modes that follow from its own."""
    os.makedirs(base_dir)
    os.chmod(base_dir, 0o750)
    assert fetch("slow://a.bin").exit_code == 0
    assert {seen[0] & 0o777 for path, seen in snapshot(f"{base_dir}/values").items()} == {0o750, 0o640}


@as_root
def test_root_acts_as_owner(parent, start, contents, options):
    """Root leaves nothing in another user's directory that belongs to root."""
    os.mkdir(f"{parent}/cache")
    os.chown(f"{parent}/cache", 65533, 65533)
    with open(f"{parent}/file", "wb") as file:
        file.write(contents["a.bin"])
    process = start("fetch", f"{parent}/file", "--base-dir", f"{parent}/cache")
    assert process.communicate()[1] == b""
    assert process.returncode == 0
    assert {seen[1] for seen in snapshot(f"{parent}/cache").values()} == {65533}


# Wrong usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["slow://a.bin", "--block-size", "3"],
        ["slow://a.bin", "--cache-size", "1XB"],
        ["slow://a.bin", "--check", "sometimes"],
        ["slow://a.bin", "--option", "key"],
        ["slow://a.bin", "--jobs", "0"],
        ["slow://a.bin", "--signing-key", ""],
    ],
)
def test_wrong_usage(fetch, base_dir, arguments):
    """Arguments that make no sense are refused with exit code 2, and nothing is made."""
    done = fetch(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert not os.path.exists(base_dir)


@pytest.mark.parametrize("what", ["a file", "somebody's", ""])
def test_no_cache(tmp_path, contents, what):
    """A directory with something else in it is refused with one line and exit code 2, and is left as it is."""
    directory = tmp_path / "directory"
    if what == "a file":
        directory.write_text("mine")
    else:
        directory.mkdir()
        (directory / "mine").write_text("mine")
    before = snapshot(tmp_path)
    done = invoke("fetch", f"{tmp_path}/source/a.bin", "--base-dir", directory if what else "")
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert snapshot(tmp_path) == before


def test_without_the_extra(tmp_path, base_dir):
    """Without fsspec, the command says how to install it, and the other commands work."""
    Store(base_dir).open()
    program = "import sys; sys.modules['fsspec'] = None; from dogpile_filesystem.__main__ import main; main()"
    for arguments, code in ((["ls", base_dir], 0), (["fetch", "/file", "--base-dir", base_dir], 1)):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
    assert done.stderr == "Error: this command needs more packages: pip install 'dogpile_filesystem[cli,fsspec]'\n"


# Processes


PROGRAM = """
    import slow_source, sys
    from dogpile_filesystem.cli import main
    main()
"""


def slow_command(options, *arguments):
    """The command, in a process that knows the slow source."""
    given = [text for name, value in options.items() for text in ("--option", f"{name}={value}")]
    return [sys.executable, "-c", textwrap.dedent(PROGRAM), "fetch", *given, "--block-size", "64KiB", *arguments]


def environment():
    paths = [os.path.dirname(sys.modules[SlowSource.__module__].__file__), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "80"}


def test_interrupted(base_dir, control, options, contents, reader):
    """Ctrl-C ends the command although the source hangs; what was fetched stays."""
    with control.holding("read", "b.bin"):
        command = slow_command(options, "slow://a.bin", "slow://b.bin", "--base-dir", base_dir, "--jobs", "1")
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            env=environment(),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            wait_for(lambda: control.requests("read", "b.bin"))
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 1
    assert err.decode() == "Error: interrupted: what was fetched stays in the cache\n"
    control.forget_requests()
    assert reader().cat_file("a.bin") == contents["a.bin"]
    assert control.totals().reads == 0


def test_progress(base_dir, control, options, contents, terminal):
    """A terminal shows how many files and bytes are done, the rate, the time left, and problems as they come."""
    ours, theirs = terminal
    control.fail("EIO", "read", "c.txt")
    command = slow_command(options, "slow://", "--base-dir", base_dir, "--jobs", "1")
    process = None
    try:
        with control.holding("read", "deep/er/d.bin"):
            process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment())
            shown = read_until(ours, rb"3 of 5 files.*KiB of 558 KiB.*iB/s.*0:00:0")
            assert b"slow://c.txt: OSError" in shown
        read_until(ours, rb"Fetched 4 files")
        assert process.wait(PATIENCE) == 1
    finally:
        if process is not None:
            process.kill()
            process.wait()


def test_several_processes(base_dir, control, options, contents):
    """Commands that run at once fetch each byte once."""
    command = slow_command(options, "slow://", "--base-dir", base_dir, "--json")
    with control.holding("read"):
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(3)]
        wait_for(lambda: len(control.requests("read")) >= 4)
    for process in processes:
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert json.loads(out)["size"] == sum(SIZES.values())
    assert control.totals().bytes == sum(SIZES.values())


def test_cache_that_is_being_made(base_dir, tmp_path, contents, monkeypatch):
    """A command that finds the directory while another one is just making it a cache waits for its tag."""
    os.makedirs(base_dir)
    tag = Path(base_dir, TAG_NAME)
    tag.touch()
    waits = []

    def write_tag(seconds):
        waits.append(seconds)
        tag.write_bytes(TAG)

    monkeypatch.setattr(time, "sleep", write_tag)
    with click.Context(click.Command("fetch")):
        assert cache_to_fill(base_dir).directory.base_dir == base_dir
    assert len(waits) == 1


def test_face(base_dir, contents, tmp_path):
    """The command that a package installs fetches local files, and a URL of the protocol finds them."""
    done = subprocess.run(
        [*COMMAND, "fetch", f"{tmp_path}/source", "--base-dir", base_dir], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    fs = CachedFileSystem(target_protocol="file", base_dir=base_dir, skip_instance_cache=True)
    path = f"{tmp_path}/source/a.bin"
    assert fs.cat_file(path) == contents["a.bin"] == fsspec.filesystem("file").cat_file(path)
    assert fs.stats().process.source.source_bytes == 0
