"""
Helper: thousands of cases in one test: a directory for them, a process that runs them, and a summary of violations.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A directory that is removed at the end, in memory where possible, since thousands of cases each make one."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield directory


def run_cases(program: str, *arguments: str) -> dict[str, Any]:
    """Runs a program, given as a file name, in a process of its own, and returns the JSON that it prints."""
    command = [sys.executable, program, *arguments]
    answer: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return answer


def summary(violations: Iterable[str]) -> str:
    """Returns each kind of violation with how often it occurred, and its first case."""
    kinds: dict[str, list[str]] = {}
    for violation in violations:
        kinds.setdefault(re.sub(r"[0-9a-f]{6,}|\d+", "#", violation.partition(": ")[2]), []).append(violation)
    return "\n".join(f"{len(found)} × {found[0]}" for found in kinds.values())
