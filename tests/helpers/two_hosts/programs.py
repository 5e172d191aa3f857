"""
Programs of Debian that the filesystems need: installed if they are missing, and run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable

from patience import PATIENCE

_SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


class Unavailable(Exception):
    """What a filesystem needs is not here, and cannot be installed. The message says what."""


def install(packages: dict[str, str]) -> None:
    """
    Install what is missing. In a container, nothing is started by it; elsewhere Debian may start the servers.

    :param packages: program -> Debian's package that has it.
    :raises Unavailable: this is not root, or no Debian, or it cannot be installed.
    """
    if os.geteuid() != 0:
        msg = "needs to be root, to mount filesystems and to make namespaces"
        raise Unavailable(msg)
    missing = sorted({package for program, package in packages.items() if find(program) is None})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        msg = f"cannot install {' '.join(missing)} here: there is no apt-get"
        raise Unavailable(msg)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", *command],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            msg = f"cannot install {' '.join(missing)}: {done.stderr.strip()[-500:]}"
            raise Unavailable(msg)


def find(program: str) -> str | None:
    """The path of a program, also where only root looks for it."""
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + os.pathsep + _SBIN)


def run(command: Iterable[object], *, check: bool = True) -> str:
    """
    Run a program to its end.

    :return: what it printed.
    :raises RuntimeError: it failed; the message has what it printed.
    """
    words = [str(word) for word in command]
    environment = os.environ | {"PATH": os.environ.get("PATH", os.defpath) + os.pathsep + _SBIN}
    done = subprocess.run(
        words,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=PATIENCE,
    )
    if check and done.returncode:
        msg = f"{' '.join(words)} failed with {done.returncode}: {done.stdout.strip()[-2000:]}"
        raise RuntimeError(msg)
    return done.stdout


def wait_until(holds: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """
    Wait for a condition.

    :raises TimeoutError: it does not come to hold.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            msg = f"waited {seconds} s for nothing: {what}"
            raise TimeoutError(msg)
        time.sleep(0.05)


def repeat(command: Iterable[object], what: str) -> str:
    """Run a program until it succeeds, since what it needs is just being started."""
    words, printed = list(command), [""]

    def succeeds() -> bool:
        try:
            printed[0] = run(words)
        except RuntimeError as error:
            printed[0] = str(error)
            return False
        return True

    try:
        wait_until(succeeds, what, 60)
    except TimeoutError as error:
        msg = f"{what}: {printed[0]}"
        raise RuntimeError(msg) from error
    return printed[0]
