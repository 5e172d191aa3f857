"""
Helper: the pages of the documentation, their links, and their examples, which run unchanged but for their directories.
"""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from patience import PATIENCE

#: The checkout.
ROOT = Path(__file__).parent.parent.parent
README = "README.md"
#: All pages, by their path in the checkout.
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"))
)

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]*)[^)]*\)|^\[[^]]+\]: *(\S+)|\b(?:href|src)=[\"']?([^\"' >]+)", re.MULTILINE)
_OUR_PATHS = re.compile(r"(?=/(?:tmp|var/cache)/myapp)")
_PRINTS = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


class Section:
    """
    A part of a page.

    :param text: of the part.
    :param root: the directory below which the paths of the examples are put.
    """

    def __init__(self, text: str, root: Path) -> None:
        self.text = _OUR_PATHS.sub(str(root), text)
        self.base_dir = f"{root}/var/cache/myapp"

    def blocks(self, language: str) -> list[str]:
        """The blocks of code in a language."""
        return _blocks(self.text, language)

    def find(self, pattern: str) -> str:
        """The text that the one group of a pattern matches."""
        found = re.search(pattern, self.text)
        assert found, f"the section has no {pattern}"
        return found[1]

    def arguments(self) -> dict[str, str]:
        """The arguments that the prose tells the reader to pass."""
        found: dict[str, str] = ast.literal_eval(self.find("`arguments=({.*?})`"))
        return found

    def module(self) -> ModuleType:
        """The Python code, run in this process."""
        module = ModuleType("myapp")
        for code in self.blocks("python"):
            exec(compile(code, "example", "exec"), module.__dict__)
        return module

    def complaints(self) -> str:
        """
        Run the Python code in a process of its own, and describe what is wrong: a line on stderr, or a line on stdout
        that differs from the comment behind its ``print``, in which ``...`` stands for text that varies. Empty if
        nothing is wrong.
        """
        code = "\n".join(self.blocks("python"))
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        expected = "".join(f"{line}\n" for line in _PRINTS.findall(code))
        if done.returncode or done.stderr:
            return f"exit code {done.returncode}: {done.stderr}"
        is_right = doctest.OutputChecker().check_output(expected, done.stdout, doctest.ELLIPSIS)
        return "" if is_right else f"printed: {done.stdout}"


def read(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text()


def section(page: str, title: str, root: Path) -> Section:
    """The part of a page under a heading of the second level. The empty title is what comes before the first one."""
    return Section(_sections(page)[title], root)


def titles_with(page: str, language: str) -> list[str]:
    """The titles of those sections of a page that have code in a language."""
    return [title for title, text in _sections(page).items() if _blocks(text, language)]


def titles(page: str) -> list[str]:
    """The titles of all sections of a page."""
    return [title for title in _sections(page) if title]


def rows(page: str) -> list[str]:
    """The rows of all tables of a page whose first column is code."""
    return re.findall(r"^\| `.*$", read(page), re.MULTILINE)


def links(page: str) -> list[str]:
    """The targets of all links and pictures of a page."""
    prose = _INLINE_CODE.sub("", _FENCED.sub("", read(page)))
    return ["".join(groups) for groups in _LINK.findall(prose)]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as the usual viewers of Markdown name them."""
    headings = _HEADING.findall(_FENCED.sub("", read(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _sections(page: str) -> dict[str, str]:
    first, *others = re.split(r"^## ", read(page), flags=re.MULTILINE)
    return {"": first} | dict(text.split("\n", 1) for text in others)


def _blocks(text: str, language: str) -> list[str]:
    return [code for found, code in _FENCED.findall(text) if found == language]
