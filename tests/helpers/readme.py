"""
Helper: the examples of README.md, run as they stand there, but for their directories.
"""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

README = Path(__file__).parent.parent.parent / "README.md"
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OUR_PATHS = re.compile(r"(?=/(?:tmp|var/cache)/myapp)")
_PRINTS = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


class Section:
    """
    A part of the README.

    :param text: of it.
    :param root: the directory that the paths of the examples are put below.
    """

    def __init__(self, text: str, root: Path) -> None:
        self.text = _OUR_PATHS.sub(str(root), text)
        self.base_dir = f"{root}/var/cache/myapp"

    def blocks(self, language: str) -> list[str]:
        """The code of a language."""
        return [code for found, code in _FENCED.findall(self.text) if found == language]

    def find(self, pattern: str) -> str:
        """What the one group of a pattern matches."""
        found = re.search(pattern, self.text)
        assert found, f"the section has no {pattern}"
        return found[1]

    def arguments(self) -> dict[str, str]:
        """Those that stand in its text."""
        found: dict[str, str] = ast.literal_eval(self.find("`arguments=({.*?})`"))
        return found

    def module(self) -> ModuleType:
        """Its Python code, run in this process."""
        module = ModuleType("myapp")
        for code in self.blocks("python"):
            exec(compile(code, README, "exec"), module.__dict__)
        return module

    def complaints(self) -> str:
        """
        What is wrong with its Python code, run in a process of its own: what it says on stderr, or prints other than
        the comments behind its prints say, ``...`` standing for what varies. Empty: nothing is.
        """
        code = "\n".join(self.blocks("python"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        expected = "".join(f"{line}\n" for line in _PRINTS.findall(code))
        if done.returncode or done.stderr:
            return f"exit code {done.returncode}: {done.stderr}"
        is_right = doctest.OutputChecker().check_output(expected, done.stdout, doctest.ELLIPSIS)
        return "" if is_right else f"printed: {done.stdout}"


def chapter(title: str, root: Path) -> Section:
    """What stands under a heading."""
    return Section(_chapter(title), root)


def _chapter(title: str) -> str:
    return README.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def front(root: Path) -> Section:
    """What comes before the recipes."""
    return Section(README.read_text().partition("\n## Recipes\n")[0], root)


def recipe(title: str, root: Path) -> Section:
    """A recipe."""
    recipes = _chapter("Recipes").split("\n### ")[1:]
    return Section(dict(part.split("\n", 1) for part in recipes)[title], root)
