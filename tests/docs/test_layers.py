"""
The layers: which package may import which, and that modules of other packages are reached by the package's face alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import documents
import pytest

NAME = "dogpile_filesystem"
PACKAGE = documents.ROOT / NAME

#: What each room may import. A room is a package, or a module at the top.
ALLOWED = {
    "layout": set(),
    "failures": set(),
    "flusher": set(),
    "sources": set(),
    "lockfile": {"layout", "failures", "flusher"},
    "poller": {"sources", "lockfile", "failures"},
    "store": {"lockfile", "layout", "failures", "flusher"},
    "maintenance": {"store", "lockfile", "layout", "failures"},
    "arguments": {"store", "layout"},
    "predecessor": set(),
    "pickling": set(),
    "backend": {"arguments", "pickling", "predecessor", "maintenance", "store", "lockfile", "layout", "failures"},
    "invalidation": {"arguments", "store", "lockfile", "layout", "failures"},
    "prometheus": {"backend", "lockfile"},
    "remote": {"arguments", "store", "sources", "lockfile", "layout", "failures", "flusher"},
    # The demo's job is an application: it alone uses a store and a region.
    "cli": {"maintenance", "arguments", "lockfile", "layout", "store", "remote", "poller"},
    "__init__": {"backend", "invalidation"},
    "__main__": {"cli"},
}

#: The rooms inside of ``remote``, and what each may import of the others. Its modules at the top, but for the faces,
#: stand below them all.
ALLOWED_IN_REMOTE = {
    "": set(),
    "metadata": {""},
    "reading": {"", "metadata"},
    "through": {"", "metadata", "reading"},
    "back": {"", "metadata", "reading", "through"},
}
FACES_OF_REMOTE = ("remote", "remote.filesystem")


def modules() -> list[str]:
    """All modules, by their dotted names below the package."""
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def imports(module: str) -> set[str]:
    """The modules of the package that a module imports, by their dotted names below the package."""
    known = set(modules())
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == NAME:
            target = (node.module or "").partition(".")[2]
            # A face may export an object that has the name of its module.
            exported = exports(target) if target else set()
            for alias in node.names:
                deeper = f"{target}.{alias.name}".strip(".")
                found.add(deeper if deeper in known and alias.name not in exported else target)
    return found


def parsed(module: str) -> ast.Module:
    """The code of a module."""
    path = PACKAGE / Path(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def exports(module: str) -> set[str]:
    """The names in a module's ``__all__``."""
    for node in parsed(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def room(module: str) -> str:
    """The package that a module stands in, or the module itself at the top."""
    return module.partition(".")[0]


@pytest.mark.parametrize("module", modules())
def test_imports(module):
    """A module imports nothing but its own package and the faces of the rooms that its room may import."""
    others = {target for target in imports(module) if room(target) != room(module)}
    assert {room(target) for target in others} <= ALLOWED[room(module)]
    assert {target for target in others if "." in target} == set()


@pytest.mark.parametrize("module", [each for each in modules() if room(each) == "remote"])
def test_imports_in_remote(module):
    """Inside of ``remote``, a module imports only the rooms that its own may import."""
    if module not in FACES_OF_REMOTE:
        here = module.split(".")[1] if module.count(".") > 1 else ""
        found = {target for target in imports(module) if room(target) == "remote"}
        assert not found & set(FACES_OF_REMOTE)
        inner = {target.split(".")[1] if target.count(".") > 1 else "" for target in found}
        assert inner - {here} <= ALLOWED_IN_REMOTE[here]


@pytest.mark.parametrize("rooms", [False, True], ids=["modules", "rooms"])
def test_no_circle(rooms):
    """No module, and no room, imports itself by way of others."""
    arrows: dict[str, set[str]] = {}
    for module in modules():
        # The face of a package stands above its modules, and is no step of a way between them.
        here = room(module) if rooms else module
        found = {room(target) if rooms else target for target in imports(module)}
        arrows.setdefault(here, set()).update(found - {here})
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for target in sorted(arrows.get(module, ())):
                walk(target, (*path, module))
            done.add(module)

    for module in sorted(arrows):
        walk(module, ())


def test_faces():
    """Each package says what it is for and what it may import, and exports names that exist."""
    for path in PACKAGE.glob("*/__init__.py"):
        tree = ast.parse(path.read_text())
        text = ast.get_docstring(tree) or ""
        assert "May import" in text, path
        assert "__all__" in path.read_text(), path


def test_optional_packages_are_not_imported():
    """To import the package imports none of the packages of the extras."""
    extras = {"click", "rich", "prometheus_client", "fsspec", "inotify_simple"}
    program = f"import sys, {NAME}; print(sorted({extras} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_logger_names():
    """The documented loggers keep their names, wherever their modules stand."""
    program = f"""
import logging, {NAME}
print(sorted(name for name in logging.root.manager.loggerDict if name.startswith("{NAME}.")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = set(ast.literal_eval(done.stdout))
    assert {f"{NAME}.{name}" for name in ("access", "failures", "predecessor")} <= names
