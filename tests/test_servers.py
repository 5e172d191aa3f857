"""
gunicorn on the loopback: every worker class, with and without a preloaded application, and both backends at once.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("gunicorn")
pytest.importorskip("gevent")
pytestmark = pytest.mark.servers

#: What a creator makes of a key. Larger than any buffer on the way, and holding every byte.
BODY = bytes(range(256)) * 300

APPLICATION = """
    import os, tempfile, time, wsgiref.util
    from dogpile.cache import make_region

    here = os.path.dirname(__file__)
    values = make_region().configure("paylogic.filesystem", arguments={"base_dir": f"{here}/values"})
    files = make_region().configure(
        "paylogic.raw_filesystem", arguments={"base_dir": f"{here}/files", "file_movable": True}
    )
    # In the master, if the application is preloaded.
    values.set("set on import", b"set on import")
    assert values.get("set on import") == b"set on import"

    def make(kind, key):
        with open(f"{here}/created", "a") as log:
            log.write(f"{kind} {key} {os.getpid()}\\n")
        time.sleep(0.02)
        while key.startswith("wait") and not os.path.exists(f"{here}/go on"):
            time.sleep(0.01)
        return f"{kind} {key} ".encode() + bytes(range(256)) * 300

    @values.cache_on_arguments()
    def value(key):
        return make("value", key)

    @files.cache_on_arguments()
    def file(key):
        made = tempfile.NamedTemporaryFile(dir=here, delete=False)
        made.write(make("file", key))
        made.seek(0)
        return made

    def application(environ, start_response):
        kind, key = environ["PATH_INFO"].strip("/").split("/")
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        if kind == "region":
            return [values.get(key) or b"missing"]
        if kind == "value":
            return [value(key)]
        wrapper = environ.get("wsgi.file_wrapper", wsgiref.util.FileWrapper)
        return wrapper(file(key))
"""


def wait_for(look):
    """
    What ``look`` returns, as soon as it is something.
    """
    give_up_at = time.monotonic() + 20
    while not (found := look()):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    return found


CONFIGURATION = """
    import os
    here = os.path.dirname(__file__)
    chdir = worker_tmp_dir = here
    bind, workers, control_socket_disable = "127.0.0.1:0", 3, True

    def post_worker_init(worker):
        with open(f"{here}/ready", "a") as ready:
            ready.write(f"{worker.pid}\\n")
"""


class Server:
    """
    A gunicorn that serves the application in a directory of its own.
    """

    def __init__(self, directory: Path, options: list[str]) -> None:
        self.log = directory / "log"
        self.go_on = directory / "go on"
        self._created = directory / "created"
        self._created.touch()
        self._ready = directory / "ready"
        self._ready.touch()
        (directory / "application.py").write_text(textwrap.dedent(APPLICATION))
        configuration = directory / "gunicorn.conf.py"
        configuration.write_text(textwrap.dedent(CONFIGURATION))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", configuration, *options, "application:application"],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONWARNINGS": "always::ResourceWarning"},
            )
        self.port = int(
            wait_for(lambda: re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.log.read_text()))[1]
        )

    def get(self, path: str) -> bytes:
        """The body, asked for again where the worker was killed under the request."""
        for _ in range(100):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            with contextlib.closing(connection), contextlib.suppress(ConnectionError, http.client.IncompleteRead):
                connection.request("GET", path)
                response = connection.getresponse()
                body = response.read()
                assert response.status == 200, body
                return body
        raise AssertionError("the server is gone")

    def created(self) -> list[list[str]]:
        """Kind, key and process of each creation so far."""
        return [line.split() for line in self._created.read_text().splitlines()]

    def until_created(self, count: int) -> list[list[str]]:
        """Wait until there were so many creations."""
        return wait_for(lambda: self.created()[count - 1 :] and self.created())

    def stop(self, workers_started: int) -> int:
        """Stop it gracefully; its exit code. A worker that is just starting would not notice."""
        wait_for(lambda: len(self._ready.read_text().splitlines()) == workers_started)
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def complaints(self) -> list[str]:
        """
        What it logged of exceptions, and of the cache. gunicorn leaves some of its own files and sockets unclosed.
        """
        unclosed = rf"ResourceWarning.*{re.escape(str(self.log.parent))}"
        pattern = re.compile(rf"Traceback|Exception|cache in |{unclosed}")
        return [line for line in self.log.read_text().splitlines() if pattern.search(line)]


@pytest.fixture(params=["sync", "gthread", "gevent"])
def worker_options(request):
    return ["--worker-class", request.param] + (["--threads", "8"] if request.param == "gthread" else [])


@pytest.fixture(params=[False, True], ids=["plain", "preload"])
def server(request, worker_options, tmp_path):
    running = Server(tmp_path, worker_options + ["--preload"] * request.param)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGQUIT)
        running.process.wait(30)


def expected(path: str) -> bytes:
    return path.strip("/").replace("/", " ").encode() + b" " + BODY


def test_server(server):
    """
    Many clients get every value and file right, each created once by all workers together; killing the worker that
    creates one delays nobody and loses nothing; and the server stops without a complaint.
    """
    paths = [f"/{kind}/{number}" for kind in ("value", "file") for number in range(12)]
    with ThreadPoolExecutor(24) as clients:
        assert list(clients.map(server.get, paths * 8)) == [expected(path) for path in paths * 8]
        created = ["/" + "/".join(line[:2]) for line in server.created()]
        assert sorted(created) == sorted(paths)
        assert server.get("/region/set%20on%20import") == b"set on import"

        for kind in ("value", "file"):
            path, count = f"/{kind}/wait", len(server.created())
            server.go_on.unlink(missing_ok=True)
            first = clients.submit(server.get, path)
            creator = int(server.until_created(count + 1)[-1][2])
            others = [clients.submit(server.get, path) for _ in range(8)]
            os.kill(creator, signal.SIGKILL)
            assert int(server.until_created(count + 2)[-1][2]) != creator
            server.go_on.touch()
            assert [client.result(30) for client in [first, *others]] == [expected(path)] * 9
            assert len(server.created()) == count + 2

        before = server.created()
        assert list(clients.map(server.get, paths)) == [expected(path) for path in paths]
        assert server.created() == before
    assert server.stop(workers_started=3 + 2) == 0
    assert server.complaints() == []
