"""
The program of a worker: reads jobs from its input, a line each, does each in a thread of its own, and prints what
came of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from two_hosts import jobs


def die() -> None:
    """SIGKILL, for this process."""
    os.kill(os.getpid(), signal.SIGKILL)


JOBS: dict[str, Callable[..., Any]] = {name: getattr(jobs, name) for name in jobs.__all__} | {"die": die}


def main() -> None:
    printing = threading.Lock()

    def do(number: int, job: str, arguments: dict[str, Any]) -> None:
        result = error = None
        try:
            result = JOBS[job](**arguments)
        except BaseException:
            error = traceback.format_exc()
        with printing:
            print(json.dumps([number, result, error]), flush=True)

    for line in sys.stdin:
        threading.Thread(target=do, args=json.loads(line), daemon=True).start()


if __name__ == "__main__":
    main()
