"""
The work of the demo, on files that every machine has: the modules and packages of Python's standard library.
"""

from __future__ import annotations

import ast
import gzip
import sysconfig
import tarfile
from pathlib import Path
from typing import BinaryIO

from dogpile_filesystem.cli.demo_report import ModuleCounts

#: Packages that are not archived: to compress Python's own tests takes longer than all the rest.
_LEFT_OUT = frozenset({"test"})


def stdlib_modules(limit: int | None = None) -> tuple[str, ...]:
    """
    The paths of the standard library's top-level modules, in alphabetical order.

    :param limit: the number of modules at most; None: all.
    """
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return tuple(str(path) for path in paths[:limit])


def stdlib_packages(limit: int | None = None) -> tuple[str, ...]:
    """
    The directories of the standard library's packages, in alphabetical order.

    :param limit: the number of packages at most; None: all.
    """
    inits = sorted(Path(sysconfig.get_path("stdlib")).glob("*/__init__.py"))
    return tuple(str(path.parent) for path in inits if path.parent.name not in _LEFT_OUT)[:limit]


def count(path: str) -> ModuleCounts:
    """Parse a module, and count what it defines and names."""
    nodes = list(ast.walk(ast.parse(Path(path).read_bytes(), path)))
    return ModuleCounts(
        functions=sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        names=sum(isinstance(node, ast.Name) for node in nodes),
    )


def write_archive(package: str, target: BinaryIO) -> None:
    """
    Write a package's modules as tar.gz. The same files always give the same bytes.

    :param package: its directory.
    """
    root = Path(package)
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(root.rglob("*.py")):
            archive.add(path, path.relative_to(root.parent), recursive=False)
