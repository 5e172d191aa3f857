"""
The forms in which sizes, times and keys are shown, and the progress of long commands.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

#: Columns of output to a pipe or a file: enough that nothing is cut.
_PIPE_WIDTH = 1000
_TIMES = (("d", 86400), ("h", 3600), ("min", 60))
_KIB = 1 << 10
_SIZES = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20))
#: Bytes in a line of a hex dump.
_LINE = 16
_PRINTABLE = range(0x20, 0x7F)


def console() -> Console:
    """The console that prints tables. Without a terminal, tables are as wide as their content."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def show(table: RenderableType) -> None:
    """Print a table."""
    target = console()
    with target.capture() as captured:
        target.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), color=True)


def size(size: int) -> str:
    """Bytes, for people: ``12 KiB``, ``3.4 MiB``."""
    for unit, length in _SIZES:
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size / _KIB:.0f} KiB" if size >= _KIB or not size else f"{size} bytes"


def age(seconds: float) -> str:
    """A duration, for people: ``3 h``. In the largest unit of which there are at least two."""
    for unit, length in _TIMES:
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def moment(seconds: float) -> str:
    """An instant, in local time."""
    return f"{datetime.datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def count(number: int, noun: str, plural: str) -> str:
    """A number of things."""
    return f"{number:,} {noun if number == 1 else plural}"


def printable(text: str | bytes) -> str:
    """A key that is safe to show on a terminal: bytes that are not text, and control characters, are escaped."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def key_text(key: bytes) -> str:
    """A key as the string that a command takes: bytes that are not UTF-8 become lone surrogates."""
    return key.decode("utf-8", "surrogateescape")


def key_bytes(text: str) -> bytes:
    """The key that a command was given."""
    return text.encode("utf-8", "surrogateescape")


def url_bytes(text: str) -> bytes:
    """The beginning of the keys of a source's file, by the URL that a command was given."""
    return text.encode("utf-8", "surrogatepass")


def hex_dump(data: bytes) -> Iterator[str]:
    """Lines of offset, bytes and ASCII, in the form of ``hexdump -C``."""
    for offset in range(0, len(data), _LINE):
        line = data[offset : offset + _LINE]
        text = "".join(chr(byte) if byte in _PRINTABLE else "." for byte in line)
        yield f"{offset:08x}  {line[:8].hex(' '):<23}  {line[8:].hex(' '):<23}  |{text}|"


def grid(rows: Iterable[tuple[str, str, str, str]]) -> Table:
    """A table without lines: labels, two columns of numbers, and remarks."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for _ in range(2):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def missing(base_dir: str) -> str:
    """The message about a cache without a lock file."""
    command = f"dogpile-filesystem check --repair {shlex.quote(base_dir)}"
    return f"the lock file is missing, and the ledger with it: to count the entries anew, run {command}"


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """
    Show the progress of a command on a terminal.

    :param total: the number of steps; None: it is not known.
    :return: a function to be called with the number of each step as it finishes, from 0.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done + 1)


class Transfer:
    """
    The progress of a transfer of files: bytes, with their rate and the time left. One thread at a time may use it.

    :param bar: None: nothing is shown.
    """

    def __init__(self, bar: Progress | None, files: int, size: int | None) -> None:
        self._bar = bar
        self._files = count(files, "file", "files")
        self._done = 0
        self._task = (
            None if bar is None else bar.add_task("", total=size, files=f"0 of {count(files, 'file', 'files')}")
        )

    def on_bytes(self, done: int) -> None:
        """Show more bytes."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, done)

    def on_file(self) -> None:
        """Show that one more file is done."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, files=f"{self._done:,} of {self._files}")

    def say(self, line: str) -> None:
        """Print a line, to be kept, where errors go."""
        if self._bar is None:
            click.echo(line, err=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Amount(ProgressColumn):
    """Bytes done and in all, and bytes per second."""

    def render(self, task: Task) -> Text:
        of_all = "" if task.total is None else f" of {size(int(task.total))}"
        rate = "" if task.speed is None else f" {size(int(task.speed))}/s"
        return Text(f"{size(int(task.completed))}{of_all}{rate}")


@contextlib.contextmanager
def transfer(files: int, size: int | None) -> Iterator[Transfer]:
    """
    Show the progress of a transfer on a terminal.

    :param files: how many there are.
    :param size: bytes of all of them; None: it is not known.
    """
    if not sys.stderr.isatty():
        yield Transfer(None, files, size)
        return
    columns = (
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.fields[files]}", table_column=Column(no_wrap=True)),
        _Amount(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        yield Transfer(bar, files, size)


def load() -> None:
    """
    Import the modules that rich imports when it first prints. A process that then becomes another user may not be able
    to read them any more.
    """
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)) as bar:
        bar.console.print("…")
