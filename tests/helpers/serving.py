"""
Helper: gunicorn on the loopback, clients that ask again where a worker was killed, and a log of what was created.

The creators of the served applications call :func:`creating`: it leaves a line in the log, and waits as long as the
test holds creations.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from patience import PATIENCE

T = TypeVar("T")

CONFIGURATION = """
    import os
    here = os.path.dirname(__file__)
    chdir = worker_tmp_dir = here
    bind, control_socket_disable = "127.0.0.1:0", True

    def post_worker_init(worker):
        with open(f"{here}/ready", "a") as ready:
            ready.write(f"{worker.pid}\\n")
"""


def creating(directory: str, *what: object) -> None:
    """Called by a creator, in the server: write down what it creates, and wait while creations are held."""
    with open(f"{directory}/created", "a") as log:
        log.write(" ".join(map(str, (*what, os.getpid()))) + "\n")
    while os.path.exists(f"{directory}/hold"):
        time.sleep(0.01)


def wait_for(look: Callable[[], T]) -> T:
    """
    Returns the result of ``look`` as soon as it is true.
    """
    give_up_at = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    return found


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Gunicorn:
    """
    A gunicorn that serves from a directory of its own.

    :param directory: holds its configuration, its logs, and modules that it serves.
    :param arguments: of its command line.
    :param workers: how many workers it has.
    :param environment: variables for it beside those of this process.

    :ivar port: where it listens.
    :ivar log: what it and its workers wrote.
    """

    def __init__(
        self, directory: Path, arguments: list[str], workers: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.log = directory / "log"
        self._created, self._ready, self._hold = (directory / name for name in ("created", "ready", "hold"))
        self._created.touch()
        self._ready.touch()
        self._workers, self._killed = workers, set[int]()
        configuration = directory / "gunicorn.conf.py"
        configuration.write_text(textwrap.dedent(CONFIGURATION))
        command = [sys.executable, "-m", "gunicorn", "--config", str(configuration), "--workers", str(workers)]
        python_path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    **(environment or {}),
                    "PYTHONPATH": python_path,
                    "PYTHONWARNINGS": "always::ResourceWarning",
                },
            )
        listening = r"Listening at: http://127\.0\.0\.1:(\d+)"
        self.port = int(wait_for(lambda: re.search(listening, self.log.read_text()))[1])

    def request(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: str | None = None
    ) -> Answer:
        """Returns an answer, and asks again if the worker was killed during the request."""
        for _ in range(100):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            with contextlib.closing(connection), contextlib.suppress(ConnectionError, http.client.IncompleteRead):
                connection.request(method, path, body, dict(headers or {}))
                response = connection.getresponse()
                return Answer(response.status, response.headers, response.read())
        raise AssertionError("the server is gone")

    def get(self, path: str) -> bytes:
        """Returns the body of an existing page."""
        answer = self.request(path)
        assert answer.status == 200, answer
        return answer.body

    def created(self) -> list[list[str]]:
        """The words of each creation so far; the last one is its process."""
        return [line.split() for line in self._created.read_text().splitlines()]

    def until_created(self, count: int) -> list[list[str]]:
        """Wait until there were this many creations."""
        return wait_for(lambda: self.created()[count - 1 :] and self.created())

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Keep all creations from ending while the context lasts."""
        self._hold.touch()
        try:
            yield
        finally:
            self._hold.unlink()

    def kill_worker(self, pid: int) -> None:
        """Kill a worker. The server starts another one."""
        os.kill(pid, signal.SIGKILL)
        self._killed.add(pid)

    def workers(self) -> set[int]:
        """Returns the processes of its workers, once all of them serve."""

        def serving() -> set[int]:
            started = {int(line) for line in self._ready.read_text().splitlines()}
            return started - self._killed if len(started) == self._workers + len(self._killed) else set()

        return wait_for(serving)

    def stop(self) -> int:
        """Stop it gracefully; its exit code. A worker that is just starting would not notice."""
        self.workers()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def quit(self) -> None:
        """Stop it now, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(PATIENCE)

    def complaints(self) -> list[str]:
        """
        Returns the lines of its log about exceptions and about the cache. gunicorn leaves some of its own files
        unclosed.
        """
        unclosed = rf"ResourceWarning.*{re.escape(str(self.directory))}"
        pattern = re.compile(rf"Traceback|Exception|cache in |{unclosed}")
        return [line for line in self.log.read_text().splitlines() if pattern.search(line)]
