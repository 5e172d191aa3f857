"""
Without the packages of the extra, all else works, and the cached filesystem says what to install.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

WORKS = """
from dogpile.cache import make_region
import dogpile_filesystem, dogpile_filesystem.sources, dogpile_filesystem.maintenance
region = make_region().configure("paylogic.filesystem", arguments={"base_dir": sys.argv[1]})
region.set("k", "value")
print(region.get("k"))
"""

IMPORTS = """
try:
    import dogpile_filesystem.remote
except ImportError as error:
    print(error)
"""


def run(program, *blocked, arguments=()):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == ""
    return done.stdout


def test_all_else_works(base_dir):
    """The package is imported, and a region works, without the packages of the extra."""
    assert run(WORKS, "fsspec", "platformdirs", arguments=[base_dir]) == "value\n"


@pytest.mark.parametrize("missing", ["fsspec", "platformdirs"])
def test_message(missing):
    """To import the filesystem without one of them says which extra to install."""
    assert run(IMPORTS, missing) == (
        "dogpile_filesystem.remote needs more packages: pip install 'dogpile_filesystem[fsspec]'\n"
    )
