"""
The applications in examples/, served by gunicorn with four workers to 32 clients.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import re
import shlex
import socket
import textwrap
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from patience import PATIENCE
from serving import Gunicorn, wait_for
from slow_control import Control

from dogpile_filesystem import GenericFSBackend

pytest.importorskip("flask")
pytest.importorskip("pyramid")
pytest.importorskip("gunicorn")
pytest.importorskip("fsspec")

EXAMPLES = Path(__file__).parents[2] / "examples"
WORKERS = 4
CLIENTS = 32
#: Seven reports of some 5 MB each fit, or three beside those that four workers are writing.
REPORTS_SIZE = "40MiB"
#: Where the slow store of the tests has the files.
FILES_URL = "slow://stored"
MIB = 1 << 20

#: The example, with its slow functions observed from outside.
APPLICATION = """
    import functools, os
    import slow_source  # The store of the files.
    from serving import creating

    here = os.path.dirname(__file__)
    settings = os.path.join(here, "settings.ini")
    {load}

    def watched(function):
        @functools.wraps(function)
        def query(*arguments):
            creating(here, "/".join(map(str, (function.__name__, *arguments))))
            if os.path.exists(os.path.join(here, "fail")):
                raise RuntimeError("the database is gone")
            return function(*arguments)
        return query

    for name in ("query_article", "query_headlines", "query_sales"):
        setattr(slow, name, watched(getattr(slow, name)))
"""
LOAD = {
    "flask": "import flask_app as slow; application = slow.application",
    "pyramid": "from pyramid_app import slow; import pyramid.paster; application = pyramid.paster.get_app(settings)",
}


def settings(directory: Path) -> dict[str, str]:
    """Makes the examples keep everything below a directory: Flask by its environment, Pyramid by its INI file."""
    text = (EXAMPLES / "pyramid_app/production.ini").read_text()
    text = text.replace("~/.cache/pyramid_app", f"{directory}/cache").replace("1GiB", REPORTS_SIZE)
    (directory / "files" / "stored").mkdir(parents=True, exist_ok=True)
    options = {"root": f"{directory}/files", "control": f"{directory}/control", "identity": "stat"}
    text = text.replace("files.url = %(here)s", f"files.url = {FILES_URL}")
    text = text.replace("files.options = {}", f"files.options = {json.dumps(options)}")
    (directory / "settings.ini").write_text(text)
    return {
        "FLASK_CACHE_DIR": f"{directory}/cache",
        "FLASK_REPORTS_SIZE": REPORTS_SIZE,
        "FLASK_FILES_URL": FILES_URL,
        "FLASK_FILES_OPTIONS": json.dumps(options),
    }


def start(example: str, directory: Path, *options: str) -> Gunicorn:
    (directory / "application.py").write_text(textwrap.dedent(APPLICATION).format(load=LOAD[example]))
    arguments = [*options, "--pythonpath", str(EXAMPLES), "application:application"]
    return Gunicorn(directory, arguments, WORKERS, settings(directory))


@pytest.fixture(scope="module", params=LOAD)
def example(request):
    return request.param


@pytest.fixture(scope="module", params=["sync", "gthread"])
def server(request, example, tmp_path_factory):
    """
    A server for all tests of this module: each uses keys of its own. It must end without a complaint, and leave whole
    caches.
    """
    directory = tmp_path_factory.mktemp(f"{example}-{request.param}")
    threads = ["--threads", "8"] if request.param == "gthread" else []
    running = start(example, directory, "--worker-class", request.param, *threads)
    yield running
    try:
        assert running.stop() == 0
        # The message when more reports are written at once than there is room for: they are sent, but not kept.
        assert [line for line in running.complaints() if "no room could be made" not in line] == []
        for name in ("pages", "news", "reports", "files"):
            report = GenericFSBackend({"base_dir": directory / "cache" / name}).check()
            assert report.ok or report.entries == 0, report
        assert list((directory / "cache").glob("tmp/*")) == []
    finally:
        running.quit()


@pytest.fixture
def clients():
    with ThreadPoolExecutor(CLIENTS) as pool:
        yield pool


def made(page: bytes) -> str:
    """Returns the time at which a page's content was made, which distinguishes its versions."""
    return re.search(rb"Made at ([^ ]+)\.", page)[1].decode()


def answered_by(page: bytes) -> int:
    return int(re.search(rb"Answered by worker (\d+)", page)[1])


def created(server: Gunicorn, since: int = 0) -> Counter[str]:
    return Counter(what for what, _ in server.created()[since:])


def post(server: Gunicorn, path: str, body: str = "") -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = server.request(path, method="POST", headers=headers, body=body)
    assert answer.status == 303, answer


def statistics(server: Gunicorn, region: str) -> dict[str, int]:
    """Returns the figures of a region on the administrator's page: its contents, and the counts of all processes."""
    row = rf"<td>{region}<td>(\d+)<td>\d+<td>all processes\s*<td>\d+<td>\d+<td>(\d+)<td>(\d+)"
    figures = re.search(row, server.get("/admin").decode()).groups()
    return dict(zip(("entries", "stores", "evictions"), map(int, figures), strict=True))


@functools.cache
def report_of(year: int) -> bytes:
    """Returns a report with a star in place of its time."""
    return "".join(f"{year},{order:06},{order * 7919 % 100_000:05},*\n" for order in range(100_000)).encode()


def as_of(report: bytes) -> bytes:
    """Returns the time in the first row of a report, which distinguishes its versions. All have the same length."""
    return report[: report.index(b"\n")].rpartition(b",")[2]


def is_one_version(report: bytes, year: int) -> bool:
    return report.replace(as_of(report), b"*") == report_of(year)


def test_once_per_key(server, clients):
    """
    Each slow function runs once per key over all workers, and every client gets its result, escaped.
    """
    articles = {
        f"/article/{section}/{number}": f"query_article/{section}/{number}"
        for section in ("books", "films")
        for number in range(1, 6)
    }
    keys = {**articles, "/news": "query_headlines", "/report/2001": "query_sales/2001"}
    paths, before = list(keys) * CLIENTS, len(server.created())
    bodies = list(zip(paths, clients.map(server.get, paths), strict=True))
    assert created(server, before) == Counter(keys.values())
    for path in keys:
        version = as_of if path.startswith("/report") else made
        assert len({version(body) for asked, body in bodies if asked == path}) == 1
    assert all(is_one_version(body, 2001) for path, body in bodies if path == "/report/2001")
    assert b"<h1>Article 5 of &lt;films&gt;</h1>\n<p>Fish &amp; chips.</p>" in dict(bodies)["/article/films/5"]
    workers = {answered_by(body) for path, body in bodies if path in articles}
    print(
        f"{len(paths)} requests of {CLIENTS} clients to {len(workers)} workers, {len(keys)} keys:",
        f"{created(server, before).total()} creations",
    )


def test_statistics(server):
    """
    The administrator's page shows the contents of the cache and, within seconds, the counts of all workers.
    """
    before = statistics(server, "pages")
    for number in range(10, 14):
        server.get(f"/article/books/{number}")
    assert statistics(server, "pages")["entries"] == before["entries"] + 4
    articles = sum(what.startswith("query_article") for what, _ in server.created())
    wait_for(lambda: statistics(server, "pages")["stores"] == articles)


def until_all_answered(server: Gunicorn, clients: ThreadPoolExecutor, path: str) -> tuple[set[str], int]:
    """Returns the versions of a page that all workers answered with, and how many requests that took."""
    workers, versions, requests = server.workers(), set[str](), 0

    def asked() -> bool:
        nonlocal requests
        pages = list(clients.map(server.get, [path] * CLIENTS))
        requests += len(pages)
        versions.update(map(made, pages))
        workers.difference_update(map(answered_by, pages))
        return not workers

    wait_for(asked)
    return versions, requests


def test_invalidation(server, clients):
    """
    A value that one worker invalidates or removes is made again once, and no worker shows the old one; no other value
    is removed, and none by GET.
    """
    book, film = "/article/books/20", "/article/films/20"
    old = {path: until_all_answered(server, clients, path)[0] for path in (book, film)}
    before = len(server.created())
    post(server, "/admin/invalidate/pages")
    new, requests = {}, 0
    for path in (book, film):
        new[path], asked = until_all_answered(server, clients, path)
        assert len(new[path]) == 1
        assert not new[path] & old[path]
        requests += asked
    assert created(server, before) == Counter(["query_article/books/20", "query_article/films/20"])
    post(server, "/admin/remove/films")
    assert until_all_answered(server, clients, book)[0] == new[book]
    versions, asked = until_all_answered(server, clients, film)
    assert len(versions) == 1
    assert not versions & new[film]
    for path in ("/admin/invalidate/pages", "/admin/remove/books"):
        assert server.request(path).status in {404, 405}
    server.get("/admin")
    assert made(server.get(book)) == new[book].pop()
    assert len(server.created()) == before + 3
    print(f"{requests + asked} requests answered by all workers after one invalidation and one removal: 3 creations")


def test_stale_while_refreshing(server, clients):
    """
    While one worker makes a new version of the news, clients get the old one at once, and then all get the new one.
    """
    old, before = made(server.get("/news")), len(server.created())
    with server.holding():
        post(server, "/admin/invalidate/news", "soft=1")
        versions, requests = until_all_answered(server, clients, "/news")
        assert versions == {old}
        server.until_created(before + 1)
    wait_for(lambda: made(server.get("/news")) != old)
    versions, _ = until_all_answered(server, clients, "/news")
    assert len(versions) == 1
    assert created(server, before) == Counter(["query_headlines"])
    print(f"{requests} requests answered with the old version during 1 refresh")


@pytest.mark.parametrize("path", ["/article/books/30", "/report/2003", "/news"])
def test_kill(server, clients, path):
    """
    If the worker that creates a value is killed, another one creates it once; no client waits for ever, and stored
    values stay.
    """
    kept, old = (made(server.get(page)) for page in ("/article/books/31", "/news"))
    if path == "/news":
        post(server, "/admin/invalidate/news", "soft=1")
    before = len(server.created())
    with server.holding():
        first = clients.submit(server.get, path)
        creator = int(server.until_created(before + 1)[-1][1])
        others = [clients.submit(server.get, path) for _ in range(CLIENTS - 1)]
        server.kill_worker(creator)
        if path == "/news":  # No client waits for the news, so one has to ask when the worker is gone.
            wait_for(lambda: server.get(path) and server.created()[before + 1 :])
        assert int(server.until_created(before + 2)[-1][1]) != creator
    pages = [client.result(30) for client in [first, *others]]
    assert len(server.created()) == before + 2
    if path == "/report/2003":
        assert len({as_of(page) for page in pages}) == 1
        assert all(is_one_version(page, 2003) for page in pages)
        # The file that the killed worker was writing. README.md says how it is removed.
        [left] = (server.directory / "cache/tmp").iterdir()
        left.unlink()
    elif path == "/news":
        wait_for(lambda: made(server.get(path)) != old)
        assert {made(page) for page in pages} <= {old, made(server.get(path))}
    else:
        assert len({made(page) for page in pages}) == 1
    assert made(server.get("/article/books/31")) == kept
    assert len(server.created()) == before + 2
    print(f"1 kill, {len(pages)} requests answered, 2 creations: the killed one and its successor")


def test_ranges(server):
    """
    A report is sent in the requested parts if its ETag shows that it is still the same one.
    """
    first, whole = server.request("/report/2004"), server.request("/report/2004")
    assert is_one_version(first.body, 2004)
    assert whole.body == first.body
    etag, length = whole.headers["ETag"], len(whole.body)
    assert first.headers["ETag"] == etag  # Its request moved the file in.
    assert "Last-Modified" not in whole.headers
    parts = {
        "bytes=0-99": (0, 100),
        "bytes=262144-262144": (262144, 262145),
        "bytes=1234567-3456789": (1234567, 3456790),
        f"bytes={length - 10}-{length + 10}": (length - 10, length),
        "bytes=4000000-": (4000000, length),
        "bytes=-1000": (length - 1000, length),
    }
    for asked, (start, stop) in parts.items():
        part = server.request("/report/2004", headers={"Range": asked, "If-Range": etag})
        assert part.status == 206
        assert part.body == whole.body[start:stop]
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{length}"
        assert part.headers["Content-Length"] == str(stop - start)
        assert part.headers["ETag"] == etag
    for other in ('"other"', whole.headers["Date"]):
        part = server.request("/report/2004", headers={"Range": "bytes=0-99", "If-Range": other})
        assert (part.status, part.body) == (200, whole.body)
    assert server.request("/report/2004", headers={"Range": f"bytes={length}-"}).status == 416
    assert server.request("/report/2004", headers={"If-None-Match": etag})[::2] == (304, b"")
    head = server.request("/report/2004", method="HEAD")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(length), b"")


def store_file(server: Gunicorn, name: str, content: bytes) -> bytes:
    """Put a file, or another version of it, into the slow store."""
    path = server.directory / "files" / "stored" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = server.directory / f"staged-{threading.get_ident()}"
    staged.write_bytes(content)
    os.replace(staged, path)
    return content


@functools.cache
def content_of(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def reads(server: Gunicorn, name: str) -> list[tuple[int, int]]:
    """The parts of a file that the slow store was asked for: where each begins, and its length."""
    requests = Control(server.directory / "control").requests("read", f"stored/{name}")
    return sorted((request.start, request.asked) for request in requests)


def test_files_once(server, clients):
    """The slow store sends each byte once to all workers, and every client gets the files whole."""
    sizes = {"one/a.bin": 5 * MIB + 123, "one/b.csv": 300_000, "one/c": MIB, "one/empty": 0}
    contents = {
        name: store_file(server, name, content_of(number, size)) for number, (name, size) in enumerate(sizes.items())
    }
    names = list(contents) * CLIENTS
    answers = list(clients.map(lambda name: server.request(f"/files/{name}"), names))
    assert all(answer.status == 200 for answer in answers)
    assert all(answer.body == contents[name] for name, answer in zip(names, answers, strict=True))
    for name, size in sizes.items():
        end = 0
        for start, asked in reads(server, name):
            assert start == end
            end += asked
        assert end == size
    types = {
        name: answer.headers["Content-Type"].partition(";")[0] for name, answer in zip(names, answers, strict=True)
    }
    assert types == {
        "one/a.bin": "application/octet-stream",
        "one/b.csv": "text/csv",
        "one/c": "application/octet-stream",
        "one/empty": "application/octet-stream",
    }
    print(f"{len(names)} requests of {CLIENTS} clients to {WORKERS} workers: each byte came from the store once")


def test_files_in_parts(server):
    """A part of a file is sent, and fetched, without the rest, if the ETag shows that the file is still the same."""
    content = store_file(server, "two.bin", content_of(2, 8 * MIB + 99))
    head = server.request("/files/two.bin", method="HEAD")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(content)), b"")
    etag = head.headers["ETag"]
    assert "Last-Modified" not in head.headers
    assert server.request("/files/two.bin", headers={"If-None-Match": etag})[::2] == (304, b"")
    assert server.request("/files/two.bin", headers={"Range": f"bytes={len(content)}-"}).status == 416
    assert reads(server, "two.bin") == []

    parts = {
        f"bytes={3 * MIB + 5}-{3 * MIB + 9}": (3 * MIB + 5, 3 * MIB + 10),
        f"bytes={3 * MIB}-{4 * MIB - 1}": (3 * MIB, 4 * MIB),
        f"bytes={6 * MIB - 1}-{6 * MIB}": (6 * MIB - 1, 6 * MIB + 1),
        "bytes=-9": (len(content) - 9, len(content)),
    }
    for asked, (start, stop) in parts.items():
        part = server.request("/files/two.bin", headers={"Range": asked, "If-Range": etag})
        assert part.status == 206
        assert part.body == content[start:stop]
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(content)}"
        assert part.headers["ETag"] == etag
    fetched = [range(start // MIB, -(-(start + asked) // MIB)) for start, asked in reads(server, "two.bin")]
    assert list(itertools.chain(*fetched)) == [3, 5, 6, 8]

    store_file(server, "two.bin", content_of(3, 8 * MIB + 99))
    whole = server.request("/files/two.bin", headers={"Range": "bytes=0-99", "If-Range": etag, "If-None-Match": etag})
    assert (whole.status, whole.body) == (200, content_of(3, 8 * MIB + 99))
    assert whole.headers["ETag"] != etag


@pytest.mark.parametrize(
    "path",
    ["missing", "", "three", "three/file/more", "../secret", "..%2fsecret", "%2e%2e/secret", "three/%00"],
)
def test_files_that_are_not_there(server, path):
    """What is not there, is no file, or lies outside of the directory, is not found."""
    store_file(server, "three/file", b"file")
    (server.directory / "files" / "secret").write_text("secret")
    assert server.request(f"/files/{path}").status == 404
    assert server.get("/files/three/file") == b"file"


@pytest.mark.parametrize("example", LOAD)
def test_files_that_change(example, clients, tmp_path):
    """
    While a file is replaced all the time, each body is one version, the one that its ETag and its length are of; parts
    of several versions are never joined. The last version is served from the next request on.
    """
    running = start(example, tmp_path, "--worker-class", "gthread", "--threads", "8")
    versions, numbers = {}, itertools.count()

    def replace() -> bytes:
        number = next(numbers)
        content = content_of(100 + number, 3 * MIB + number)
        versions[hashlib.sha256(content).digest()] = number
        return store_file(running, "file.bin", content)

    def download(number: int) -> tuple[str, int]:
        if number % 16 == 0:
            replace()
        if number % 2:
            answer = running.request("/files/file.bin")
            body, etag = answer.body, answer.headers["ETag"]
            assert answer.headers["Content-Length"] == str(len(body))
        else:
            body, etag = in_parts(running, "/files/file.bin", MIB)
        return etag, versions[hashlib.sha256(body).digest()]

    try:
        replace()
        seen = list(clients.map(download, range(6 * CLIENTS)))
        assert len(dict(seen)) == len({version for _, version in seen}) == len(set(seen)) > 1
        last = replace()
        assert set(clients.map(running.get, ["/files/file.bin"] * CLIENTS)) == {last}
        assert running.stop() == 0
        # A connection that ended early, since the version was gone before all of it was sent.
        log = running.log.read_text()
        assert len(running.complaints()) == log.count("SourceChanged: ")
        print(
            f"{len(seen)} downloads, {len(set(seen))} of {len(versions)} versions, {len(running.complaints())} cut off"
        )
    finally:
        running.quit()


def in_parts(server: Gunicorn, path: str, size: int) -> tuple[bytes, str]:
    """Downloads in parts as a client does that continues a broken download: from the start, if the file has changed."""
    body, etag, length = b"", None, None
    while len(body) != length:
        headers = {"Range": f"bytes={len(body)}-{len(body) + size - 1}", **({"If-Range": etag} if etag else {})}
        answer = server.request(path, headers=headers)
        if answer.status == 200:
            return answer.body, answer.headers["ETag"]
        assert answer.status == 206
        etag, length = answer.headers["ETag"], int(answer.headers["Content-Range"].rpartition("/")[2])
        body += answer.body
    return body, etag


class Downloads:
    """
    The actions of clients of changing reports, counted.
    """

    def __init__(self, server: Gunicorn) -> None:
        self._server = server
        self.done: Counter[str] = Counter()

    def __call__(self, number: int) -> None:
        # Half of the clients want one report, and the rest more reports than fit.
        year = 2010 if number % 4 < 2 else 2011 + number // 4 % 8
        if number % CLIENTS == 0:
            post(self._server, "/admin/invalidate/reports")
        report = self._in_parts(year) if number % 2 else self._in_full(year)
        assert is_one_version(report, year)

    def _in_full(self, year: int) -> bytes:
        self.done["in full"] += 1
        return self._server.get(f"/report/{year}")

    def _in_parts(self, year: int) -> bytes:
        """Continues a broken download as a client does: from the start, if the report has changed."""
        report, etag, size = b"", None, None
        while len(report) != size:
            headers = {
                "Range": f"bytes={len(report)}-{len(report) + 1_999_999}",
                **({"If-Range": etag} if etag else {}),
            }
            answer = self._server.request(f"/report/{year}", headers=headers)
            if answer.status == 200:
                self.done["in parts, then anew"] += 1
                return answer.body
            assert answer.status == 206
            etag, size = answer.headers["ETag"], int(answer.headers["Content-Range"].rpartition("/")[2])
            report += answer.body
        self.done["in parts"] += 1
        return report


def test_downloads_of_changing_reports(server, clients):
    """
    Every download is one complete version, also in parts, while reports are replaced and evicted all the time.
    """
    before, downloads = len(server.created()), Downloads(server)
    evictions = statistics(server, "reports")["evictions"]
    list(clients.map(downloads, range(3 * CLIENTS)))
    versions = created(server, before)
    assert min(downloads.done[how] for how in ("in full", "in parts", "in parts, then anew")) > 0
    assert versions.total() > len(versions)
    evictions = wait_for(lambda: statistics(server, "reports")["evictions"] - evictions)
    print(
        f"downloads of {CLIENTS} clients: {dict(downloads.done)};",
        f"{len(versions)} reports, {versions.total()} creations, {evictions} evictions or more",
    )


def test_slow_download(server, clients):
    """
    A report that is replaced and evicted while it is sent arrives whole and unchanged.
    """
    post(server, "/admin/invalidate/reports")
    with contextlib.closing(socket.socket()) as connection:
        # The kernel's buffers hold only a part of the report.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(b"GET /report/2020 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        report = connection.recv(1000)
        replacing = server.get("/report/2020")
        post(server, "/admin/invalidate/reports")
        assert as_of(server.get("/report/2020")) != as_of(replacing)
        list(clients.map(server.get, [f"/report/{year}" for year in range(2021, 2030)]))
        before = created(server)["query_sales/2020"]
        server.get("/report/2020")
        assert created(server)["query_sales/2020"] == before + 1  # It was evicted.
        report += b"".join(iter(lambda: connection.recv(1 << 20), b""))
    body = report.partition(b"\r\n\r\n")[2]
    assert body == replacing


@pytest.mark.parametrize("example", LOAD)
def test_failed_refresh(example, clients, tmp_path):
    """
    If a refresh fails, that is logged, the old version is shown, and the next request tries again.
    """
    running = start(example, tmp_path)
    try:
        old, fail = made(running.get("/news")), tmp_path / "fail"
        fail.touch()
        post(running, "/admin/invalidate/news", "soft=1")
        assert made(running.get("/news")) == old
        wait_for(lambda: "the database is gone" in running.log.read_text())
        fail.unlink()
        wait_for(lambda: made(running.get("/news")) != old)
        assert len(until_all_answered(running, clients, "/news")[0]) == 1
        assert re.search(r"cannot refresh .*headlines", running.log.read_text())
        assert running.stop() == 0
    finally:
        running.quit()


@pytest.mark.parametrize("example", LOAD)
def test_readme(example, tmp_path):
    """
    The commands in README.md start the examples, which then keep their caches in the user's own directory.
    """
    [command] = re.findall(rf"^gunicorn (.*{example}_app.*)$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    arguments = shlex.split(command.replace("examples", str(EXAMPLES)))
    running = Gunicorn(tmp_path, arguments, WORKERS, {"HOME": str(tmp_path)})
    try:
        assert b"Article 1 of" in running.get("/article/books/1")
        assert (tmp_path / f".cache/{example}_app/pages/lock").exists()
        name = {"flask": "README.md", "pyramid": "views.py"}[example]
        [stored] = EXAMPLES.glob(name) if example == "flask" else EXAMPLES.glob(f"pyramid_app/{name}")
        assert running.get(f"/files/{name}") == stored.read_bytes()
        assert running.stop() == 0
        assert running.complaints() == []
    finally:
        running.quit()
