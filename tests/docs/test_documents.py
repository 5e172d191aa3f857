"""
The README and the pages of docs/: their examples print what they say, each recipe does what it promises, their links
lead somewhere, and their tables list everything that there is.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import disks
import documents
import ondisk
import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from forked import Child, Forked
from patience import PATIENCE
from serving import Gunicorn, wait_for

from dogpile_filesystem import arguments as argument_module
from dogpile_filesystem.store.store import Store

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to mount and to act as several users")
MIB = 1 << 20
RECIPES = "docs/recipes.md"
#: Pages whose examples have tests of their own.
WITH_OWN_TESTS = (RECIPES, "docs/files.md")
_CLONE_NEWNS = 0x20000


@pytest.fixture
def root():
    """
    The directory in which the examples work. Every user can reach it, unlike those of pytest.
    """
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    for name in ("tmp", "var/cache"):
        (path / name).mkdir(parents=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def recipe(root):
    return lambda title: documents.section(RECIPES, title, root)


@pytest.fixture
def moved_clock(clock, monkeypatch):
    """
    The clock of dogpile, and of the caches that are made from now on.
    """
    monkeypatch.setattr(time, "time", clock)
    # A backend has no argument for the clock of its store.
    monkeypatch.setitem(Store.__init__.__kwdefaults__, "clock", clock)
    return clock


@pytest.fixture
def loaded(tmp_path):
    """
    Everything imported while this is still root: others may not be allowed to read what is installed.
    """
    for name, value in (("paylogic.filesystem", b""), ("paylogic.raw_filesystem", io.BytesIO())):
        region = make_region().configure(name, arguments={"base_dir": tmp_path})
        region.set("k", value)
        region.delete("k")


def failures(region):
    return dict(region.backend.store.failures.counts)


def test_length_of_readme():
    """The README has at most 250 lines, and its first screen has an example and the two commands."""
    lines = documents.read(documents.README).splitlines()
    assert len(lines) <= 250
    first_screen = "\n".join(lines[:45])
    assert "dogpile_filesystem demo" in first_screen
    assert "# runs the tests" in first_screen
    assert "make_region" in first_screen


def test_links_of_readme():
    """The README has no relative link or picture, since these lead nowhere on the page of the package index."""
    assert documents.links(documents.README)
    assert [link for link in documents.links(documents.README) if not link.startswith("https://")] == []


def test_files_that_readme_names():
    """Every file or directory that the README names in code, such as a page of docs/, exists."""
    named = re.findall(r"`((?:docs|examples)/[^` ]*|[A-Z]+\.md)`", documents.read(documents.README))
    assert named
    assert [name for name in named if not (documents.ROOT / name).exists()] == []


@pytest.mark.parametrize("page", documents.PAGES)
def test_links(page):
    """Every relative link of a page leads to a file that exists, and to a heading that this file has."""
    broken = []
    for link in documents.links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (documents.ROOT / page).parent / path if path else documents.ROOT / page
        if not target.is_file() or (
            anchor and anchor not in documents.anchors(os.path.relpath(target, documents.ROOT))
        ):
            broken.append(link)
    assert broken == []


def test_index():
    """The index of docs/ links to every other page there, and the README names every one of them."""
    pages = {page for page in documents.PAGES if page.startswith("docs/")}
    linked = {os.path.normpath(f"docs/{link}") for link in documents.links("docs/README.md")}
    assert pages - linked == {"docs/README.md"}
    assert [page for page in pages if f"`{page}`" not in documents.read(documents.README)] == []


@pytest.mark.parametrize(
    ("page", "title"),
    [
        (page, title)
        for page in documents.PAGES
        if page not in WITH_OWN_TESTS
        for title in documents.titles_with(page, "python")
    ],
)
def test_examples(root, page, title):
    """The examples of a section run one after the other, print what their comments say, and cause no warning."""
    section = documents.section(page, title, root)
    for package in ("prometheus_client", "fsspec"):
        if f"import {package}" in section.text:
            pytest.importorskip(package)
    assert section.complaints() == ""


def test_every_recipe_is_tested():
    """Each recipe has a test in this module."""
    tested = set(re.findall(r'recipe\("(.*?)"\)', Path(__file__).read_text()))
    assert tested == set(documents.titles(RECIPES))


def test_arguments():
    """The README lists all arguments of the backends, and no others."""
    rows = documents.section(documents.README, "Arguments", Path()).text.splitlines()
    listed = [name for row in rows if row.startswith("| `") for name in re.findall("`(.*?)`", row.split("|")[1])]
    assert sorted(listed) == sorted(argument_module._KNOWN)


def test_commands():
    """The README and the page of the command line list all commands, and the latter also all options."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    commands = importlib.import_module("dogpile_filesystem.cli").main.commands
    rows = {row.split("`")[1].split()[0]: row for row in documents.rows("docs/command-line.md")}
    for name, command in commands.items():
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if option not in rows[name]] == []
    listed = {row.split("`")[1].split()[0] for row in documents.rows(documents.README)}
    assert set(commands) <= listed
    assert set(commands) == {name for name in rows if name.isalpha()}


def test_packages():
    """The page on how it works lists every module of the packages below the commands."""
    package = documents.ROOT / "dogpile_filesystem"
    modules = [
        str(path.relative_to(package))
        for path in package.glob("*/*.py")
        if path.name != "__init__.py" and path.parent.name != "cli"
    ]
    listed = {row.split("`")[1] for row in documents.rows("docs/internals.md")}
    assert modules
    assert [module for module in modules if module not in listed] == []


def test_metrics(root):
    """The page on metrics lists all metrics of the collector, and no others."""
    pytest.importorskip("prometheus_client")
    collector = importlib.import_module("dogpile_filesystem.prometheus").RegionCollector
    arguments = {"base_dir": root / "cache", "max_entries": 100}
    region = make_region().configure("paylogic.filesystem", arguments=arguments)
    region.get_or_create("k", lambda: "v")
    region.backend.store.source_counter.requests += 1  # Before that, the collector leaves out what is about sources.
    region.backend.prune()  # Counts the ledger; before that, the collector leaves out the usage.
    exported = {metric.name.removeprefix("dogpile_filesystem_") for metric in collector({"r": region}).collect()}
    names = [name for row in documents.rows("docs/metrics.md") for name in re.findall("`(.*?)`", row.split("|")[1])]
    listed = {name.partition("{")[0].removesuffix("_total") for name in names if not name.startswith("dogpile_")}
    assert listed == exported


def test_examples_of_the_command(root):
    """The commands on the page of the command line work, and print lines with the labels that the page shows."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    section = documents.section("docs/command-line.md", "", root)
    arguments = {"base_dir": section.base_dir, "cache_size": "64MiB", "expiration_time": 3600}
    region = make_region().configure("paylogic.filesystem", arguments=arguments)
    for number in (*range(3), *range(1000, 1003)):
        region.get_or_create(f"myapp.views:page|/product/{number}", lambda: "B" * 20_000)
    region.get("myapp.views:page|/product/2")
    region.backend.prune()
    region.backend.stats()  # Writes the counts in memory to the lock file.

    [transcript] = section.blocks("")
    run_transcript(transcript)


def test_examples_of_source_files(root):
    """The commands on files of sources work, on a local directory, and print lines with the labels that are shown."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    pytest.importorskip("fsspec")
    filesystem = importlib.import_module("dogpile_filesystem.remote").CachedFileSystem
    for name, size in (("2026/sales.parquet", MIB), ("2026/stock.parquet", 1000), ("2025/log.parquet", 1 << 36)):
        path = root / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size)
    fs = filesystem(target_protocol="file", target_options={"anon": True}, base_dir=root / "var/cache/myapp-files")
    for start in (0, 4711 * MIB, 65532 * MIB):
        fs.cat_file(f"{root}/bucket/2025/log.parquet", start, start + 4 * MIB)
    fs.store.flush()

    [transcript] = documents.section("docs/command-line.md", "Files of sources", root).blocks("console")
    run_transcript(transcript.replace("s3://bucket", f"file://{root}/bucket"))


def test_examples_of_unsent_files(root):
    """The commands on what is unsent work, and print lines with the labels that are shown."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    pytest.importorskip("fsspec")
    filesystem = importlib.import_module("dogpile_filesystem.remote").CachedFileSystem
    fs = filesystem(
        target_protocol="file",
        target_options={"auto_mkdir": True},
        base_dir=root / "var/cache/myapp-back",
        write="back",
        max_uploads=0,
    )
    fs.pipe_file(f"{root}/tmp/myapp/report.csv", b"a,b\n")
    fs.pipe_file(f"{root}/tmp/myapp/wrong.csv", b"not a table\n")

    [transcript] = documents.section("docs/writing-back.md", "Watching it", root).blocks("console")
    run_transcript(transcript)
    assert (root / "tmp/myapp/report.csv").read_bytes() == b"a,b\n"
    assert not (root / "tmp/myapp/wrong.csv").exists()


def run_transcript(transcript):
    """Run the commands of a transcript. They must print lines with the labels that it shows."""
    _, *examples = re.split(r"^\$ dogpile-filesystem ", transcript, flags=re.MULTILINE)
    assert examples
    for example in examples:
        command, _, shown = example.partition("\n")
        done = subprocess.run(
            [sys.executable, "-m", "dogpile_filesystem", *shlex.split(command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert labels(done.stdout) == labels(shown), command


def labels(output):
    """The words at the beginning of each line that is not empty."""
    return [re.match(r"(?:[A-Za-z]+(?: [a-z]+)*)?", line)[0] for line in output.splitlines() if line]


def test_old_value(recipe, moved_clock):
    """
    After a minute, every caller in every process gets the old value without waiting while exactly one thread creates
    the new one; then every caller gets the new value, and after a day the old one is a miss.
    """
    region = recipe("The old value while a new one is made").module().region
    made, go_on = [], threading.Event()

    @region.cache_on_arguments()
    def slow(key):
        made.append(key)
        assert len(made) == 1 or go_on.wait(PATIENCE)
        return len(made)

    def elsewhere(pipe):
        for _ in range(2):
            moved_clock.move(*pipe.recv())
            pipe.send((slow("k"), made))

    other = Forked(elsewhere)
    assert slow("k") == 1
    moved_clock.move(61)
    assert [slow("k") for _ in range(3)] == [1, 1, 1]
    assert other.ask(61) == (1, [])
    go_on.set()
    # A call of slow() would start another refresh if it read the old value just before the new one is stored.
    wait_for(lambda: slow.get("k") == 2)
    assert slow("k") == 2
    assert other.ask(0) == (2, [])
    moved_clock.move(86401)
    assert slow("k") == 3
    assert other.wait() == 0


def test_old_value_if_the_creator_raises(recipe, moved_clock, monkeypatch):
    """A refresh that raises leaves the old value in place, and the next caller starts another refresh."""
    region = recipe("The old value while a new one is made").module().region
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.append(arguments.exc_value))
    assert region.get_or_create("k", lambda: "old") == "old"
    moved_clock.move(61)
    for count in (1, 2):
        assert region.get_or_create("k", lambda: 1 // 0) == "old"
        wait_for(lambda count=count: len(raised) == count)
    assert region.get_or_create("k", lambda: "new") == "old"
    wait_for(lambda: region.get("k") == "new")


def test_expiry_per_function(recipe, moved_clock):
    """A value expires after the time of its function, or else of its region, and at the latest that of the backend."""
    module = recipe("Expiry per function").module()

    def function(name, **arguments):
        return module.region.cache_on_arguments(namespace=name, **arguments)(lambda x: time.time())

    of_the_region = function("region")
    week = function("week", expiration_time=7 * 86400)
    longer_than_the_backends = function("long", expiration_time=60 * 86400)
    functions = [module.stock, of_the_region, week, longer_than_the_backends]
    first = [function("x") for function in functions]

    def which_are_old():
        return [function("x") == value for function, value in zip(functions, first, strict=True)]

    moved_clock.move(59)
    assert which_are_old() == [True, True, True, True]
    moved_clock.move(2)
    assert module.stock.get("x") == first[0]
    assert which_are_old() == [False, True, True, True]
    moved_clock.move(3600)
    assert week.get("x") is NO_VALUE
    assert which_are_old() == [False, False, True, True]
    moved_clock.move(7 * 86400)
    assert which_are_old() == [False, False, False, True]
    moved_clock.move(30 * 86400)
    assert which_are_old() == [False, False, False, False]


def test_invalidation(recipe):
    """All processes see an invalidation at once; after a soft one, they get the old value until a new one is there."""
    region = recipe("Invalidation in all workers").module().region
    started, go_on = threading.Event(), threading.Event()

    def elsewhere(pipe):
        for _ in range(4):
            pipe.send(region.get_or_create("k", lambda *created: created[0], creator_args=(pipe.recv(), {})))

    def create():
        started.set()
        assert go_on.wait(PATIENCE)
        return "of this one"

    other = Forked(elsewhere)
    region.set("k", "old")
    assert other.ask("new") == "old"
    region.invalidate()
    assert region.get("k") is NO_VALUE
    assert other.ask("of the other") == "of the other"
    assert region.get("k") == "of the other"

    region.invalidate(hard=False)
    creator = threading.Thread(target=region.get_or_create, args=("k", create))
    creator.start()
    assert started.wait(PATIENCE)
    assert other.ask("new") == region.get_or_create("k", lambda: "new") == "of the other"
    go_on.set()
    creator.join(PATIENCE)
    assert other.ask("new") == region.get_or_create("k", lambda: "new") == "of this one"
    assert other.wait() == 0


def test_invalidation_while_a_value_is_made(recipe):
    """A value that is being created at the moment of an invalidation is kept."""
    region = recipe("Invalidation in all workers").module().region
    region.get_or_create("k", region.invalidate)
    assert region.get("k") is None


def test_one_tenant(recipe):
    """All values of one tenant are removed together, and none of a tenant whose name only begins alike."""
    section = recipe("Everything of one tenant at once")
    assert section.complaints() == ""
    module = section.module()
    module.region.backend.clear()

    @module.region.cache_on_arguments(namespace="logos")
    def logo(tenant):
        return f"logo of {tenant}"

    def fill():
        return module.invoices(4, 2025), module.invoices(4, 2026), logo(4), module.invoices(42, 2026), logo(42)

    def which_are_there():
        keys = [f"{tenant}|{name}" for tenant in (4, 42) for name in ("myapp.invoices|2026", "logos")]
        return [value is not NO_VALUE for value in module.region.get_multi(keys)]

    made = fill()
    assert which_are_there() == [True, True, True, True]
    assert module.region.backend.remove_matching(prefix="4|") == 3
    assert which_are_there() == [False, False, True, True]
    assert fill() == made
    assert module.region.backend.remove_matching(prefix="4") == 5


def test_several_regions(recipe, usage_of):
    """Regions on one directory have separate keys and a common bound; a region with its own directory loses nothing."""
    section = recipe("Several regions")
    section.text = section.text.replace("2GiB", "1MiB").replace("64MiB", "256KiB")
    module = section.module()
    values = [module.pages, module.users, module.sessions]
    for number, region in enumerate(values):
        region.set("k", number)
    module.images.set("k", io.BytesIO(b"image"))
    assert [region.get("k") for region in values] == [0, 1, 2]
    with module.images.get("k") as file:
        assert file.read() == b"image"

    for number in range(40):
        module.pages.set(f"{number}", bytes(50_000))
        assert usage_of(section.base_dir) <= MIB
    assert usage_of(section.base_dir) > MIB * 3 // 4
    assert [region.get("k") for region in values] == [NO_VALUE, NO_VALUE, 2]
    assert module.images.get("k") is NO_VALUE


def test_several_regions_without_prefixes(recipe):
    """Two regions of one kind on one directory share their keys unless they have prefixes, and are cleared together."""
    section = recipe("Several regions")
    module = section.module()
    arguments = {"base_dir": section.base_dir}
    others = [make_region().configure("paylogic.filesystem", arguments=arguments) for _ in range(2)]
    others[0].set("k", "of the first")
    assert others[1].get("k") == "of the first"
    assert module.pages.get("k") is NO_VALUE
    module.pages.set("k", "page")
    module.users.backend.clear()
    assert module.pages.get("k") is others[1].get("k") is NO_VALUE


@pytest.fixture
def usage_of():
    return lambda base_dir: ondisk.usage_on_disk(base_dir).size


def test_big_files(recipe, capsys):
    """A file is moved in, not copied, can be read in parts, and leaves nothing behind, even if its creator raises."""
    section = recipe("Big files")
    assert section.complaints() == ""
    module = section.module()
    with module.video("outro") as file:
        inode = os.fstat(file.fileno()).st_ino
    with module.video("outro") as file:
        assert os.fstat(file.fileno()).st_ino == inode
        file.seek(11 * 999)
        assert file.read() == b"frame 0999 "
        assert os.pread(file.fileno(), 10, 11) == b"frame 0001"
    module.range = lambda _: 1 // 0
    with pytest.raises(ZeroDivisionError):
        module.video("broken")
    assert os.listdir(section.base_dir) == ["videos"]
    assert ondisk.left_over(f"{section.base_dir}/videos") == []


@needs_root
def test_two_users(recipe, loaded):
    """Each user of the group can read and replace what the other stores, whatever the umask, and no other user can."""
    section = recipe("Shared by two users")
    group = 4242
    subprocess.run(section.find("`(install .*?)`").replace("-g myapp ", f"-g {group} ").split(), check=True)

    def act_as(user, groups, umask, key, value):
        def act():
            os.umask(umask)
            region = make_region().configure("paylogic.filesystem", arguments=section.arguments())
            found = region.get(key)
            region.set(key, value)
            return None if found is NO_VALUE else found, failures(region)

        return Child(act, (user, user, groups)).result()

    assert act_as(65533, [group], 0o077, "k", "of the first") == (None, {})
    assert act_as(65534, [group], 0o022, "k", "of the second") == ("of the first", {})
    assert act_as(65533, [group], 0o077, "k", "of the first again") == ("of the second", {})
    found, counts = act_as(65532, [], 0o022, "k", "of nobody")
    assert (found, set(counts)) == (None, {"EACCES"})


@needs_root
def test_tmpfs(recipe, loaded):
    """A cache on a tmpfs never fills it: it keeps its bound, and evicts entries to leave room for other programs."""
    section = recipe("On tmpfs")
    options = section.find("`tmpfs [^ ]* tmpfs ([^ ]*) 0 0`")
    user = int(re.search(r"uid=(\d+)", options)[1])

    def use(disk):
        region = make_region().configure("paylogic.filesystem", arguments=section.arguments())
        for number in range(100):
            region.set(f"{number}", bytes(MIB - 4096))
        usage, free = ondisk.usage_on_disk(section.base_dir).size, disk.free()
        with disk.filled(leaving=4 * MIB):
            region.set("k", bytes(MIB - 4096))
            return usage, free, disk.free(), region.get("k") is not NO_VALUE, failures(region)

    with disks.mounted(disks.Disk(Path(section.base_dir), "-t", "tmpfs", "-o", options, "tmpfs")) as disk:
        usage, free, free_beside_others, is_kept, counts = Child(lambda: use(disk), (user, user, [])).result()
    assert 40 * MIB < usage <= 48 * MIB
    assert free > 8 * MIB
    assert free_beside_others >= 8 * MIB
    assert (is_kept, counts) == (True, {})


def make_read_only(volume, options):
    """
    Give this process its own mounts, all of them read-only except for ``volume``.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        pytest.skip(f"cannot unshare mounts here: {os.strerror(ctypes.get_errno())}")
    disks.run("mount", "--make-rprivate", "/")
    with open("/proc/self/mounts") as mounts:
        mount_points = {line.split()[1] for line in mounts}
    for mount_point in mount_points:
        # "bind" makes only this mount read-only, and not the filesystem in every process.
        subprocess.run(["mount", "-o", "remount,bind,ro", mount_point], check=False, capture_output=True)
    disks.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", volume)


# Marked as a fault, because those tests run one at a time: while this one runs, its copy of all mounts keeps the
# filesystems of other tests in use after they were unmounted.
@pytest.mark.faults
@needs_root
def test_containers(recipe, loaded, monkeypatch):
    """
    With a read-only root filesystem, an unprivileged user and a volume that everybody can write to, files are moved
    into a private directory of the volume, while the volume itself is refused.
    """
    section = recipe("In containers")
    volume, user = section.find(r"mountPath: ([^}]+)}"), int(section.find(r"runAsUser: (\d+)"))
    os.mkdir(volume)

    def start():
        make_read_only(volume, "size=16M,mode=0777")
        monkeypatch.setenv("TMPDIR", section.find(r"name: TMPDIR, value: ([^}]+)}"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        return use()

    def use():
        files = section.module().files
        made = tempfile.NamedTemporaryFile(delete=False)
        made.write(b"report")
        made.seek(0)
        inode = os.fstat(made.fileno()).st_ino
        files.set("k", made)
        with files.get("k") as file:
            is_moved = (os.fstat(file.fileno()).st_ino, file.read()) == (inode, b"report")
        base = os.stat(f"{volume}/files")
        with pytest.raises(OSError, match="Read-only file system"):
            open(f"{volume}/../elsewhere", "w")
        with pytest.raises(PermissionError, match="subdirectory"):
            make_region().configure("paylogic.filesystem", arguments={"base_dir": volume})
        return is_moved, base.st_uid, stat.S_IMODE(base.st_mode), os.listdir(volume), failures(files)

    assert Child(start).result() == (True, user, 0o700, ["files"], {})
    assert os.listdir(volume) == []


def test_of_an_application(recipe, root):
    """Each test of an application gets an empty cache, or no cache, whatever the application has configured."""
    section = recipe("Tests of an application")
    (root / "myapp.py").write_text(f"""
from dogpile.cache import make_region
region = make_region().configure("paylogic.filesystem", arguments={{"base_dir": {section.base_dir!r}}})
made = []

@region.cache_on_arguments()
def square(x):
    made.append(x)
    return x * x
""")
    (root / "conftest.py").write_text(section.blocks("python")[0])
    (root / "test_myapp.py").write_text(f"""
from myapp import made, region, square

def test_first():
    assert (square(3), square(3), made) == (9, 9, [3])

def test_second():
    assert (square(3), square(3), made) == (9, 9, [3, 3])

def test_without():
    {section.find("`(region.configure.*?)`")}
    assert (square(3), square(3), made) == (9, 9, [3, 3, 3, 3])
""")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout
    assert ondisk.usage_on_disk(section.base_dir).entries == 0


@pytest.mark.servers
def test_preloading_server(recipe, root):
    """A region that the master used before it forked works in all workers, and they share the values of each worker."""
    pytest.importorskip("gunicorn")
    section = recipe("Preloading servers")
    (root / "myapp.py").write_text(section.blocks("python")[0])
    server = Gunicorn(root, section.find("`gunicorn (.*?)`").split(), workers=3)
    try:
        page = server.get("/a").decode()
        worker = int(page.removeprefix(f"/a of master {server.process.pid}, made by worker "))
        assert worker in server.workers()
        server.kill_worker(worker)
        assert server.get("/a").decode() == page
        assert server.get("/b").decode().startswith(f"/b of master {server.process.pid}, ")
        assert server.stop() == 0
    finally:
        server.quit()
    assert server.complaints() == []
