"""
The commands ``unsent``, ``flush`` and ``discard``: what they show, what they send, and what they leave alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from commands import difference, read_until, snapshot
from patience import PATIENCE
from serving import wait_for

pytest.importorskip("fsspec")
backed = pytest.importorskip("backed")

from dogpile_filesystem import layout  # noqa: E402 - the packages it needs are there
from dogpile_filesystem.maintenance import unsent_entries  # noqa: E402 - likewise
from dogpile_filesystem.remote import UploadError  # noqa: E402 - likewise
from dogpile_filesystem.store.store import Store  # noqa: E402 - likewise

PASSWORD = "hunter2"


@pytest.fixture
def source(tmp_path):
    """
    A flaky source.
    """
    return backed.Flaky(tmp_path)


@pytest.fixture
def make(base_dir, source):
    """
    Makes filesystems that write back, and send nothing.
    """
    return lambda **arguments: source.make(base_dir, max_uploads=0, **arguments)


@pytest.fixture
def fs(make):
    return make()


@pytest.fixture
def listed(run):
    """What the command says is unsent, by the paths."""

    def listed():
        lines = run("unsent", "--json").stdout.splitlines()
        return {said["path"]: said for said in map(json.loads, lines)}

    return listed


def test_unsent(fs, run, base_dir, source):
    """The command lists what is unsent, the oldest first, with the tries and the last error, and changes nothing."""
    fs.pipe_file("a", b"content")
    source.control.fail("ConnectionError", "put", times=1)
    assert fs.uploader.flush([fs.versions.key("a")], None)
    fs.pipe_file("b", bytes(5000))
    fs.pipe_file("c", b"")
    fs.rm_file("c")
    source.fs.pipe_file("d", b"there")
    fs.pipe_file("d", b"new")
    source.control.fail("ConnectionError", "rm")
    fs.rm_file("d")
    before = snapshot(base_dir)
    done = run("unsent")
    assert (done.exit_code, done.stderr) == (0, "")
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["SIZE", "SINCE", "TRIES", "NEXT", "URL"]
    assert re.fullmatch(r" +7 bytes +\d+ s +1 +(now|\d+ s)  flaky://a", rows[0])
    assert "ConnectionError" in rows[1]
    assert re.fullmatch(r" +5 KiB +\d+ s +0 +(now|\d+ s)  flaky://b", rows[2])
    assert re.fullmatch(r" +removed +\d+ s +1 +(now|\d+ s)  flaky://d", rows[3])
    assert snapshot(base_dir) == before


def test_unsent_json(fs, listed, run):
    """A program is told the same as by the filesystem."""
    assert run("unsent").stdout == "Everything is sent.\n"
    before = time.time()
    fs.pipe_file("a", b"content")
    said = listed()["a"]
    [expected] = fs.unsent()
    assert (said["size"], said["since"], said["next_try"]) == (7, expected.since, expected.next_try)
    assert before <= said["since"] <= time.time()
    assert (said["url"], said["protocol"], said["missing_options"]) == ("flaky://a", "flaky", [])
    assert not said["removed"]


def test_unsent_beside(fs, listed, run, source):
    """Of a file that goes beside one that somebody else has changed, the command and the filesystem tell its name."""
    source.fs.pipe_file("a", b"old")
    fs.cat_file("a")
    fs.pipe_file("a", b"ours")
    assert fs.unsent()[0].beside == listed()["a"]["beside"] == ""
    source.fs.pipe_file("a", b"theirs")
    source.control.fail("ConnectionError", "put")
    with pytest.raises(UploadError):
        fs.flush(on_conflict="keep")
    [said] = fs.unsent()
    assert said.beside.startswith("a (conflict ")
    assert listed()["a"]["beside"] == said.beside
    assert f"\n      is sent as {said.beside}\n      ConnectionError" in run("unsent").stdout


def test_unsent_of_a_later_version(base_dir, store, run):
    """A file whose record cannot be read is listed, and neither sent nor forgotten."""
    store.unsent.accept(layout.version_key("flaky://a", "n"), b"another format")
    store.unsent.accept(b"another key", b"{}")
    done = run("unsent")
    assert done.exit_code == 0
    assert done.stdout.count("its record cannot be read") == 2
    assert "flaky://a" in done.stdout
    done = run("flush")
    assert (done.exit_code, done.stdout) == (1, "Sent 0 files, 0 KiB.\n")
    assert len(Store(base_dir).unsent.all()) == 2


def test_flush(fs, run, source, base_dir, listed):
    """All that is unsent is sent, also of several sources, without being told their options."""
    fs.pipe_file("a", b"content")
    fs.pipe_file("b/c", bytes(5000))
    other = backed.CachedFileSystem(
        target_protocol="file", target_options={"auto_mkdir": True}, base_dir=base_dir, write="back", max_uploads=0
    )
    other.pipe_file(f"{source.root}/local", b"x")
    done = run("flush")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Sent 3 files, 5 KiB.\n", "")
    assert source.files() == {"a": b"content", "b/c": bytes(5000), "local": b"x"}
    assert listed() == {}
    assert fs.cat_file("a") == b"content"
    assert run("flush").stdout == "Sent 0 files, 0 KiB.\n"
    assert difference(base_dir) == []


def test_flush_prefix(fs, run, source, listed):
    """With a prefix, other files are left alone."""
    for path in ("a/b", "ab", "b"):
        fs.pipe_file(path, b"x")
    assert run("flush", "--prefix", "flaky://a/").stdout == "Sent 1 file, 1 bytes.\n"
    assert set(listed()) == {"ab", "b"}
    assert source.files() == {"a/b": b"x"}


def test_flush_with_namespace(make, run, source):
    """Readers with a namespace of their own see afterwards what was sent, without asking for the bytes again."""
    fs = make(namespace="ours", block_size="1MiB")
    fs.pipe_file("a", b"content")
    assert run("flush").exit_code == 0
    source.control.forget_requests()
    assert make(namespace="ours", block_size="1MiB").cat_file("a") == b"content"
    assert source.control.totals().reads == 0


def test_flush_fails(fs, run, source, listed):
    """What cannot be sent is named, with exit code 1, and stays; the rest is sent."""
    fs.pipe_file("a", b"content")
    fs.pipe_file("b", b"more")
    source.control.fail("PermissionError", "put", times=1)
    done = run("flush", "--json", "--jobs", "1")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert (said["sent"], said["size"]) == (1, 4)
    assert [failed["url"] for failed in said["failed"]] == ["flaky://a"]
    assert "PermissionError" in said["failed"][0]["error"]
    assert listed()["a"]["is_lasting"]
    assert source.files() == {"b": b"more"}


def test_flush_conflict(fs, run, source):
    """What somebody else has changed is overwritten only if the person says so."""
    source.fs.pipe_file("a", b"old")
    fs.cat_file("a")
    fs.pipe_file("a", b"ours")
    source.fs.pipe_file("a", b"theirs")
    done = run("flush")
    assert done.exit_code == 1
    assert "changed by somebody else" in done.stderr
    assert source.files() == {"a": b"theirs"}
    assert run("flush", "--on-conflict", "overwrite").exit_code == 0
    assert source.files() == {"a": b"ours"}


def test_flush_with_secrets(base_dir, run, source, tmp_path, listed):
    """A secret is not kept; the command says which option it needs, and sends with it."""
    options = {
        **source.options,
        "password": PASSWORD,
        "client": {"api_key": PASSWORD},
        "proxy": f"http://u:{PASSWORD}@h",
    }
    fs = backed.CachedFileSystem(
        target_protocol="flaky", target_options=options, base_dir=base_dir, write="back", max_uploads=0
    )
    fs.pipe_file("a", b"content")
    assert listed()["a"]["missing_options"] == ["password", "client", "proxy"]
    kept = [content for content in snapshot(base_dir).values() if isinstance(content[-1], bytes)]
    assert kept
    assert not any(PASSWORD.encode() in content[-1] for content in kept)
    done = run("flush", "--option", "client=null", "-o", "proxy=null")
    assert done.exit_code == 1
    assert "--option password=VALUE" in done.stderr
    assert source.files() == {}
    assert run("flush", "-o", "client=null", "-o", "proxy=null", "-o", f"password={PASSWORD}").exit_code == 0
    assert source.files() == {"a": b"content"}


def test_flush_signed(make, run, source, monkeypatch):
    """What is signed is sent with the key, and only with it."""
    make(signing_key="key").pipe_file("a", b"content")
    assert run("flush", "--signing-key", "").exit_code == 2
    monkeypatch.setenv("DOGPILE_FILESYSTEM_SIGNING_KEY", "another")
    done = run("flush")
    assert (done.exit_code, done.stdout) == (1, "Sent 0 files, 0 KiB.\n")
    assert "signing key" in done.stderr
    assert source.files() == {}
    monkeypatch.setenv("DOGPILE_FILESYSTEM_SIGNING_KEY", "key")
    assert run("flush").exit_code == 0
    assert source.files() == {"a": b"content"}


def started(base_dir, **options):
    """The command in a process of its own, which knows the flaky source."""
    paths = [backed.HELPERS, os.environ.get("PYTHONPATH", "")]
    program = "import backed; from dogpile_filesystem.__main__ import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "flush", base_dir, "--jobs", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "80"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def test_flush_interrupted(fs, base_dir, source):
    """Ctrl-C ends the command although the source hangs; what is not sent then stays unsent."""
    fs.pipe_file("a", b"content")
    with source.control.holding("put"):
        process = started(base_dir, stderr=subprocess.PIPE)
        try:
            wait_for(lambda: source.control.requests("put"))
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 1
    assert err.decode().startswith("Error: interrupted: what is not sent stays unsent\n")
    assert [each.path for each in fs.unsent()] == ["a"]
    fs.flush()
    assert source.files() == {"a": b"content"}


def test_flush_progress(fs, base_dir, source, terminal):
    """A terminal shows how many files and bytes are sent."""
    ours, theirs = terminal
    fs.pipe_file("a", bytes(5000))
    fs.pipe_file("b", bytes(5000))
    process = None
    try:
        with source.control.holding("put"):
            process = started(base_dir, stdin=theirs, stdout=theirs, stderr=theirs)
            read_until(ours, rb"0 of 2 files.*0 KiB of 10 KiB")
        read_until(ours, rb"Sent 2 files, 10 KiB")
        assert process.wait(PATIENCE) == 0
    finally:
        if process is not None:
            process.kill()
            process.wait()


def test_discard(fs, run, source, base_dir):
    """Only the files of the URLs are removed, for good; a URL without one is named, with exit code 1."""
    fs.pipe_file("a", b"content")
    fs.pipe_file("ab", b"stays")
    done = run("discard", "flaky://a", "flaky://missing", "--yes")
    assert (done.exit_code, done.stdout) == (1, "Removed 1 unsent file, 7 bytes.\n")
    assert done.stderr == "no unsent file flaky://missing\n"
    assert [each.path for each in fs.unsent()] == ["ab"]
    assert not fs.exists("a")
    fs.flush()
    assert source.files() == {"ab": b"stays"}
    assert difference(base_dir) == []


def test_discard_asks(fs, run):
    """Without --yes, and without a terminal to ask on, nothing is removed."""
    fs.pipe_file("a", b"content")
    assert run("discard", "flaky://a").exit_code == 2
    assert len(fs.unsent()) == 1


def test_discard_while_sent(fs, run):
    """A file that is being sent is not removed in the middle of that."""
    fs.pipe_file("a", b"content")
    with fs.uploads.holding("a") as is_held:
        assert is_held
        done = run("discard", "flaky://a", "-y")
    assert (done.exit_code, done.stdout) == (1, "Removed 0 unsent files, 0 KiB.\n")
    assert len(fs.unsent()) == 1


def test_discard_of_what_is_written_anew(fs, run, monkeypatch):
    """Only the content that the person was shown is removed, and not one that was written since."""
    fs.pipe_file("a", b"content")

    def list_and_write(shards):
        found = unsent_entries(shards)
        fs.pipe_file("a", b"newer")
        return found

    monkeypatch.setattr("dogpile_filesystem.cli.unsent.unsent_entries", list_and_write)
    done = run("discard", "flaky://a", "-y")
    assert done.exit_code == 1
    assert "was written anew" in done.stderr
    assert fs.cat_file("a") == b"newer"


def test_stats(fs, run, source):
    """The statistics have what is unsent, its age, and the uploads by what became of them."""
    fs.pipe_file("a", bytes(5000))
    fs.pipe_file("b", b"x")
    told = fs.stats().unsent
    assert (told.files, told.size) == (2, 5 * layout.BLOCK)
    assert told.since == pytest.approx(fs.unsent()[0].since, abs=0.1)
    assert re.search(r"^Unsent +2 +20 KiB, the oldest for \d+ s$", run("stats").stdout, re.MULTILINE)
    assert json.loads(run("stats", "--json").stdout)["unsent"]["files"] == 2
    for error in ("PermissionError", "ENOSPC"):
        source.control.fail(error, "put", times=1)
        assert fs.uploader.flush([fs.versions.key("a")], None)
    fs.flush()
    counts = fs.stats().total.source
    assert (counts.uploads, counts.upload_bytes) == (2, 5001)
    assert (counts.uploads_failed, counts.uploads_refused, counts.uploads_full, counts.upload_conflicts) == (2, 1, 1, 0)
    shown = run("stats").stdout
    assert re.search(r"^Uploads +2 +5 KiB$", shown, re.MULTILINE)
    assert re.search(r"^Uploads failed +2 +1 refused, 1 full, 0 conflicts$", shown, re.MULTILINE)
    assert "Unsent" not in shown
    assert fs.stats().unsent.since is None


def test_conflicts_are_counted(make, source):
    """A conflict is counted as one, and not as a refusal."""
    source.fs.pipe_file("a", b"old")
    fs = make(on_conflict="error")
    fs.cat_file("a")
    fs.pipe_file("a", b"ours")
    source.fs.pipe_file("a", b"theirs")
    assert fs.uploader.flush([fs.versions.key("a")], None)
    counts = fs.stats().process.source
    assert (counts.uploads, counts.uploads_failed, counts.upload_conflicts, counts.uploads_refused) == (0, 1, 1, 0)
