"""
The command ``check``: what it finds and repairs, and how it ends.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
from commands import difference, path_of

from dogpile_filesystem.layout import BLOCK, VALUE
from dogpile_filesystem.lockfile.ledger import Ledger


def test_check(filled, run):
    """The check of a cache with nothing wrong ends with 0."""
    done = run("check")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith("\nNothing is wrong.\n")
    told = json.loads(run("check", "--json").stdout)
    assert told["ok"]
    assert (told["entries"], told["size"]) == (2, 4 * BLOCK)
    assert told["ledger"] == told["disk"] == {"entries": 2, "size": 4 * BLOCK}


@pytest.mark.parametrize("wrong", ["damaged", "ledger"])
def test_check_repairs(filled, base_dir, run, wrong):
    """The check of a cache with something wrong ends with 1, until it is repaired."""
    if wrong == "damaged":
        os.truncate(path_of(base_dir, VALUE, b"value"), 20)
    else:
        with Ledger.open(f"{base_dir}/lock").shard(9):
            Ledger.open(f"{base_dir}/lock").add(9, 7 * BLOCK, 3)
    for _ in range(2):
        done = run("check")
        assert done.exit_code == 1
        assert "--repair" in done.stdout
    told = json.loads(run("check", "--json").stdout)
    assert (told["ok"], told["mended"], told["damaged"]) == (False, None, wrong == "damaged")
    mended = run("check", "--repair")
    assert (mended.exit_code, mended.stdout.splitlines()[-1]) == (0, "Repaired.")
    assert run("check").exit_code == 0
    assert difference(base_dir) == []


def test_check_that_cannot_mend(filled, base_dir, run):
    """A repair that leaves something wrong ends with 1, and says what to look at."""
    path = path_of(base_dir, VALUE, b"value")
    shutil.move(os.path.dirname(path), f"{base_dir}/elsewhere")
    os.symlink(f"{base_dir}/elsewhere", os.path.dirname(path))
    done = run("check", "--repair")
    assert done.exit_code == 1
    assert "still wrong" in done.stdout
