"""
A process on a host, as the one that started it sees it: it does jobs, several at a time if it is told to.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from patience import PATIENCE

#: Seconds that a dead process may need to let go of its pipes.
_MOMENT = 1.0
_HELPERS = str(Path(__file__).parent.parent)


class Gone(Exception):
    """The process ended before it had done its job."""


class Worker:
    """
    A process that runs ``two_hosts.agent``.

    :param prefix: of its command, which says on which host it runs.
    """

    def __init__(self, prefix: Sequence[str]) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([_HELPERS, *filter(None, sys.path)])}
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "two_hosts.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._lock = threading.Lock()
        self._jobs: dict[int, Future[Any]] = {}
        self._count = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, job: str, **arguments: object) -> Future[Any]:
        """
        Let it do a job of ``agent.JOBS``.

        :return: what it will return. An exception of the job is a ``RuntimeError`` here, with the traceback.
        """
        with self._lock:
            self._count += 1
            number, future = self._count, Future[Any]()
            self._jobs[number] = future
            try:
                self._process.stdin.write(json.dumps([number, job, arguments]) + "\n")
                self._process.stdin.flush()
            except OSError:
                self._give_up()
        return future

    def do(self, job: str, **arguments: object) -> Any:
        """
        Let it do a job, and wait for it.

        :raises TimeoutError: it takes far too long.
        """
        return self.start(job, **arguments).result(PATIENCE)

    def end(self) -> None:
        """Let it end in order, once it has done its jobs."""
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._reader.join()

    def kill(self) -> None:
        """SIGKILL, for the process itself and for what started it on its host."""
        if self._process.poll() is None:
            # `nsenter` would leave the process alone.
            with contextlib.suppress(Gone, TimeoutError):
                self.start("die").result(PATIENCE)
        self.forget()

    def forget(self) -> None:
        """Give up its jobs, since its host is dead."""
        self._process.kill()
        self._process.wait()
        # A process that waits for a dead filesystem keeps its end of the pipe until the kernel gives up, if ever.
        self._reader.join(_MOMENT)
        with self._lock:
            self._give_up()
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _read(self) -> None:
        with self._process.stdout as lines:
            for line in lines:
                number, result, error = json.loads(line)
                future = self._jobs.pop(number, None)
                if future is None:
                    continue
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(RuntimeError(error))
        with self._lock:
            self._give_up()

    def _give_up(self) -> None:
        while self._jobs:
            self._jobs.popitem()[1].set_exception(Gone("the process ended before it had done its job"))
