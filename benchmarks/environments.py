"""
The environments that the measurements run in. One has this project from the checkout and its peers; the other has
dogpile_filesystem 0.2.0 alone, since it has the same name. They are made beside this file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

#: The packages of each environment, by its name.
ENVIRONMENTS: dict[str, list[str]] = {
    "peers": [f"{HERE.parent}[cli,fsspec,inotify]", "diskcache", "lmdb", "cachelib", "Django"],
    "old": ["dogpile_filesystem==0.2.0", "dogpile.cache"],
}


def interpreter(environment: str) -> Path:
    """The interpreter of an environment."""
    return HERE / f".venv-{environment}" / "bin" / "python"


def prepare(environment: str) -> dict[str, str]:
    """
    Make an environment, or bring it up to date with the checkout.

    :returns: the packages that could not be installed → the end of pip's output.
    """
    python = interpreter(environment)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    return {package: problem for package in ENVIRONMENTS[environment] if (problem := _install(python, package))}


def _install(python: Path, package: str) -> str:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stderr.strip()[-1000:] if done.returncode else ""


def dbm_kind() -> str:
    """The name of the dbm module that the environment's interpreter uses for a new file."""
    code = "import dbm; dbm.open('kind', 'c').close(); print(dbm.whichdb('kind'))"
    with tempfile.TemporaryDirectory() as directory:
        command = [interpreter("peers"), "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=directory).stdout.strip()


def versions(environment: str) -> dict[str, str]:
    """The packages installed in an environment → their versions."""
    command = [interpreter(environment), "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(line.split("==", 1) for line in done.stdout.splitlines() if "==" in line)
