"""
The demo: what it measures, what it leaves behind, and what it prints.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from dogpile.cache import make_region
from patience import PATIENCE

from dogpile_filesystem import cli
from dogpile_filesystem.cli import demo_job, demo_library
from dogpile_filesystem.cli.demo_report import DemoReport, ModuleCounts
from dogpile_filesystem.layout import BLOCK

WORKERS = 4
MODULES = 8
DEMO = [sys.executable, "-m", "dogpile_filesystem", "demo"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """
    The directory of one run, and its report.
    """
    directory = tmp_path_factory.mktemp("demo")
    return directory, demo_job.run(str(directory), workers=WORKERS, limit=MODULES)


@pytest.fixture
def temporary(tmp_path):
    """
    An empty directory, in which the commands make their temporary directories.
    """
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


@pytest.fixture
def start(temporary):
    """
    Starts the demo as a command, for 100 columns, in a session of its own. No process of it survives the test.
    """
    started: list[int] = []

    def popen(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*DEMO, *map(str, arguments)],
            env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Tests that run in the background of a shell ignore SIGINT, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process.pid)
        return process

    yield popen
    for group in started:
        if members(group):
            os.killpg(group, signal.SIGKILL)


@pytest.fixture
def command(start):
    """
    Runs the demo as a command to its end. No process of it may be left then.
    """

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        process = start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        assert_nobody_left(process.pid)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


def assert_nobody_left(group: int) -> None:
    # The tracker of multiprocessing ends a moment after the program.
    deadline = time.monotonic() + PATIENCE
    while running := members(group):
        assert time.monotonic() < deadline, running
        time.sleep(0.02)


def members(group: int) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in lines.splitlines())
    return [" ".join(row) for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


def rows(output: str, title: str) -> dict[str, list[int]]:
    """
    The numbers in the table under a title, by the name of the row. "24 of 32" gives both numbers.
    """
    lines = output.splitlines()
    (at,) = (number for number, line in enumerate(lines) if title in line)
    column = lines[at].index(title)
    found = {}
    for line in lines[at + 3 :]:
        match = re.match(r" ?(modules|archives|small bound)((?: +[0-9,]+| of)+)", line[column:])
        if not match:
            break
        found[match[1]] = [int(number.replace(",", "")) for number in re.findall(r"[0-9,]+", match[2])]
    return found


def on_disk(base_dir: Path) -> tuple[int, int]:
    """
    The bytes in whole blocks, and the number of entries, of a cache, counted without its ledger.
    """
    files = [path for path in (base_dir / "values").rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in files), sum("." not in path.name for path in files)


# What it measures


def test_each_value_is_created_exactly_once(kept):
    """
    In a cache with room for everything, one worker creates each value once, and all calls get it.
    """
    _, report = kept
    for job in (report.modules, report.archives):
        assert len(job.paths) == MODULES
        assert job.created == dict.fromkeys(job.paths, 1)
        assert job.passes[0].calls == WORKERS * MODULES
        assert job.passes[0].hits == (WORKERS - 1) * MODULES


def test_second_pass_creates_nothing(kept):
    """
    While the cache is warm, every call is a hit.
    """
    _, report = kept
    for job in (report.modules, report.archives):
        assert not job.passes[1].created
        assert job.passes[1].hits == job.passes[1].calls == WORKERS * MODULES


def test_every_worker_goes_its_own_way(kept):
    """
    In every pass, each worker asks for all values, and no two workers in the same order.
    """
    _, report = kept
    for job in report.jobs:
        for each in job.passes:
            orders = {tuple(share.results) for share in each.shares}
            assert len(orders) == WORKERS
            assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(job.paths))}


def test_results_are_those_of_the_modules(kept):
    """
    In every pass, every worker gets the same results as counting without a cache.
    """
    _, report = kept
    expected = {path: demo_library.count(path) for path in report.modules.paths}
    for job in (report.modules, report.scarce):
        assert all(share.results == expected for share in job.shares)
    assert report.found.functions == sum(counts.functions for counts in expected.values())


def test_count(tmp_path):
    """
    All kinds of functions, classes, and each use of a name are counted.
    """
    path = tmp_path / "module.py"
    path.write_text("class A:\n def f(self): return x + x\n async def g(self): pass\ndef h(): y = 1\n")
    assert demo_library.count(str(path)) == ModuleCounts(functions=3, classes=1, names=3)


def test_archives_are_identical_and_open(kept):
    """
    The raw cache keeps the archive of each package, byte for byte; it opens and holds the package's modules.
    """
    directory, report = kept
    region = make_region().configure("paylogic.raw_filesystem", arguments={"base_dir": str(directory / "archives")})
    for package in map(Path, report.archives.paths):
        expected = io.BytesIO()
        demo_library.write_archive(str(package), expected)
        with region.get(f"dogpile_filesystem.cli.demo_job:pack|{package}") as file:
            assert file.read() == expected.getvalue()
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:gz") as archive:
                content = {name: archive.extractfile(name).read() for name in archive.getnames()}
        assert content == {str(path.relative_to(package.parent)): path.read_bytes() for path in package.rglob("*.py")}


def test_archives_are_moved_in(kept):
    """
    Every archive in the cache is the very file that a worker made, and no file is left where it was made.
    """
    directory, report = kept
    made = {archive.inode for archive in report.archives.made.values()}
    contents = {path.stat().st_ino for path in (directory / "archives" / "values").rglob("*.*")}
    assert contents == made
    assert report.moved == len(made) == MODULES
    assert not (directory / "incoming").exists()


def test_disk_is_measured(kept):
    """
    The reported bytes and entries of every cache are those on the disk, and within the bound.
    """
    directory, report = kept
    for job in report.jobs:
        assert (job.disk.charged, job.disk.entries) == on_disk(directory / job.name)
        assert 0 < job.disk.on_disk <= job.disk.bound
        assert job.disk.charged <= job.disk.bound


def test_evictions(kept):
    """
    With a bound too small for everything, the entries that were created and are no longer there count as evicted.
    """
    directory, report = kept
    scarce = report.scarce
    assert scarce.disk.bound < report.modules.disk.charged
    assert scarce.created.total() >= MODULES
    assert scarce.evictions == scarce.created.total() - on_disk(directory / "scarce")[1] > 0
    assert set(scarce.created) == set(scarce.paths)


def test_all_is_well(kept):
    """
    A run reports no problems.
    """
    assert kept[1].problems == []


def tampered(report: DemoReport, **changes: object) -> DemoReport:
    """
    A report in which one share of the first pass over the modules is changed.
    """
    job = report.modules
    first, *others = job.passes[0].shares
    shares = (dataclasses.replace(first, **changes), *others)
    passes = (dataclasses.replace(job.passes[0], shares=shares), *job.passes[1:])
    return dataclasses.replace(report, modules=dataclasses.replace(job, passes=passes))


def problems_in(report: DemoReport) -> list[DemoReport]:
    modules = report.modules
    full = dataclasses.replace(modules.disk, bound=modules.disk.charged - 1)
    return [
        tampered(report, created=tuple(modules.made.items()) * 2),
        tampered(report, results=dict.fromkeys(modules.paths, ModuleCounts(-1, 0, 0))),
        tampered(report, failures=Counter(ENOSPC=1)),
        dataclasses.replace(report, modules=dataclasses.replace(modules, disk=full)),
    ]


@pytest.mark.parametrize("number", range(4))
def test_problems_are_told(kept, number):
    """
    A value created twice, a result that differs, a failure and an exceeded bound are each reported in a line.
    """
    expected = ["more than once", f"{MODULES} results differ", "ENOSPC, 1 time.", "more than the bound"][number]
    (problem,) = problems_in(kept[1])[number].problems
    assert problem.startswith("modules: ")
    assert expected in problem


# The command


def test_command_keeps_base_dir(command, tmp_path, temporary):
    """
    With --base-dir, the command prints all five tables, keeps its caches there, and uses no other directory.
    """
    base_dir = tmp_path / "base"
    done = command("--modules", MODULES, "--base-dir", base_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Kept: {base_dir}" in done.stdout
    assert sorted(path.name for path in base_dir.iterdir()) == ["archives", "modules", "scarce"]
    assert list(temporary.iterdir()) == []

    assert re.search(r"^ modules +[0-9.]+ m?s +[0-9.]+ m?s ", done.stdout, re.MULTILINE)
    hits = [(WORKERS - 1) * MODULES, WORKERS * MODULES, WORKERS * MODULES, WORKERS * MODULES]
    assert rows(done.stdout, "Hits") == {"modules": hits, "archives": hits}
    once = [MODULES, 0, MODULES, 0]
    assert rows(done.stdout, "Values created") == {"modules": once, "archives": once}
    sizes = rows(done.stdout, "Bytes on disk")
    for label, name in {"modules": "modules", "small bound": "scarce"}.items():
        size, entries = on_disk(base_dir / name)
        assert sizes[label][:2] == [entries, size // 1024]
    created, still_there, evicted = rows(done.stdout, "Evictions")["small bound"][:3]
    assert still_there == on_disk(base_dir / "scarce")[1]
    assert evicted == created - still_there > 0


def test_command_removes_its_directory(command, temporary):
    """
    Without --base-dir, the command works in a temporary directory, names it and removes it.
    """
    done = command("--modules", 2, "--workers", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^Removed: {re.escape(str(temporary))}/dogpile-filesystem-\w+$", done.stdout, re.MULTILINE)
    assert list(temporary.iterdir()) == []
    assert rows(done.stdout, "Hits")["modules"] == [2, 4, 4, 4]


@pytest.mark.time_intensive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_command_leaves_nothing(start, temporary, number):
    """
    A demo that SIGTERM or Ctrl-C ends in the middle leaves no directory and no process.
    """
    process = start()
    while not list(temporary.glob("dogpile-filesystem-*/modules/values/*")):
        assert process.poll() is None
        time.sleep(0.005)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 1}[number]
    assert "Removed" not in out
    assert "Traceback" not in err
    assert list(temporary.iterdir()) == []
    assert_nobody_left(process.pid)


def test_killed_command_leaves_no_process(start, temporary):
    """
    When the command is killed, its workers end too.
    """
    process = start()
    while not list(temporary.glob("dogpile-filesystem-*/modules/values/*")):
        assert process.poll() is None
        time.sleep(0.005)
    assert len(members(process.pid)) > WORKERS
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert_nobody_left(process.pid)


def test_used_directory_is_refused(command, tmp_path):
    """
    A directory that is not empty is refused with a line that says so, and stays as it is.
    """
    base_dir = tmp_path / "base"
    base_dir.mkdir()
    (base_dir / "mine").touch()
    done = command("--base-dir", base_dir)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "is not empty" in done.stderr
    assert [path.name for path in base_dir.iterdir()] == ["mine"]


def test_problems_fail_the_command(kept, monkeypatch, tmp_path):
    """
    If something is wrong, the command says so and its exit code is 1.
    """
    report = problems_in(kept[1])[1]
    monkeypatch.setattr(demo_job, "run", lambda *_, **__: report)
    done = CliRunner().invoke(cli.main, ["demo", "--base-dir", str(tmp_path / "base")])
    assert done.exit_code == 1
    assert report.problems[0] in done.stdout


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra(package):
    """
    If a package of the extra is missing, one line on stderr says how to install the extra; the exit code is 1.
    """
    program = (
        "import runpy, sys; sys.modules[sys.argv.pop(1)] = None;"
        "runpy.run_module('dogpile_filesystem', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, package, "demo"], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "pip install 'dogpile_filesystem[cli]'" in line


def test_another_missing_module_is_not_taken_for_the_extra():
    """
    An import that fails for another reason shows its traceback, not the advice to install the extra.
    """
    program = (
        "import sys; sys.modules['tarfile'] = None; sys.argv[1:] = ['demo'];"
        "from dogpile_filesystem.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install" not in done.stderr
