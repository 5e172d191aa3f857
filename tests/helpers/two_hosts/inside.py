"""
The program of a virtual machine: runs a filesystem with two hosts, and the scenarios that it finds in a directory.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from two_hosts.mounted import Mounted
from two_hosts.scenarios import SCENARIOS


def main(name: str, directory: Path) -> None:
    # Of this kernel, so that its own files are not those of the machine outside.
    hosts = Path("/run/hosts")
    hosts.mkdir()
    mounted = Mounted(name, hosts)
    for number in itertools.count(1):
        path = directory / f"{number}.asked"
        while not path.exists():
            time.sleep(0.05)
        answer = directory / f"{number}.answer"
        answer.with_suffix(".new").write_text(json.dumps(_run(mounted, *json.loads(path.read_text()))))
        answer.with_suffix(".new").rename(answer)


def _run(mounted: Mounted, scenario: str, parameters: dict[str, Any]) -> dict[str, Any]:
    try:
        return SCENARIOS[scenario](mounted, **parameters)
    except BaseException:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
