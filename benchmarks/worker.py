"""
Runs one job in an interpreter of its own, and prints its result as one line of JSON.

``python worker.py '{"job": "latency", "directory": "/mnt/empty", "parameters": {...}}'``. The directory is empty; the
caller removes it.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

#: The module and the name of each job's function, which takes the directory and the parameters.
JOBS = {
    "calls": ("jobs.calls", "calls"),
    "full": ("jobs.calls", "full"),
    "curve": ("jobs.sets", "curve"),
    "open": ("jobs.reads", "opening"),
    "open-once": ("jobs.reads", "open_once"),
    "trace": ("jobs.reads", "trace"),
    "tier": ("jobs.reads", "tier"),
    "leaks": ("jobs.reads", "leaks"),
    "mixed": ("jobs.processes", "mixed"),
    "herd": ("jobs.processes", "herd"),
    "overwriting": ("jobs.overwriting", "overwriting"),
    "bound": ("jobs.processes", "bound"),
    "moving": ("jobs.raw", "moving"),
    "copying": ("jobs.raw", "copying"),
    "large": ("jobs.large", "large"),
    "reading": ("jobs.tools", "reading"),
    "removing": ("jobs.tools", "removing"),
    "unchanged": ("jobs.pollers", "unchanged"),
    "state": ("jobs.pollers", "state"),
    "files-cold": ("jobs.files", "cold"),
    "files-first-byte": ("jobs.files", "first_byte"),
    "files-touched": ("jobs.files", "touched"),
    "files-memory": ("jobs.files", "memory"),
    "files-in-order": ("jobs.files_warm", "in_order"),
    "files-at-random": ("jobs.files_warm", "at_random"),
    "files-small": ("jobs.files_warm", "small"),
    "listings": ("jobs.listings", "trees"),
    "writing-closing": ("jobs.writing", "closing"),
    "writing-streaming": ("jobs.writing", "streaming"),
    "fault": ("jobs.faults", "fault"),
}


def main(task: dict[str, Any]) -> None:
    """Run a job."""
    module, name = JOBS[task["job"]]
    result = getattr(importlib.import_module(module), name)(task["directory"], **task["parameters"])
    print(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
