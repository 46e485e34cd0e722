"""How far a long command has come: on stderr, and only if that is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self, TypeVar

import click

from tools.output import size_text

Item = TypeVar("Item")

STEP_ITEMS = 1000
REDRAW_S = 0.1
BAR_CHARACTERS = 24


@contextmanager
def progress_bar(label: str, *, length: int) -> Iterator[Callable[[int], None]]:
    """A bar, moved by calls with how much of the length is done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield lambda done: bar.update(done - bar.pos)


@contextmanager
def count_line(label: str) -> Iterator[Callable[[int], None]]:
    """A line with a count, moved by calls, where there is no telling how much there will be."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    yield lambda done: print(f"\r\x1b[K{label}: {done}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr, flush=True)


def counted(label: str, items: Iterable[Item]) -> Iterator[Item]:
    """The same items, counted in one line where there is no telling how many there will be."""
    if not sys.stderr.isatty():
        yield from items
        return
    number = 0
    for number, item in enumerate(items, start=1):
        if number % STEP_ITEMS == 0:
            print(f"\r{label}: {number}", end="", file=sys.stderr, flush=True)
        yield item
    print(f"\r{label}: {number}", file=sys.stderr, flush=True)


class Progress:
    """One line on the terminal, redrawn as bytes come; silent where stderr is no terminal."""

    def __init__(self, label: str, *, total_bytes: int) -> None:
        """`total_bytes` 0 is unknown."""
        self._label = label
        self.total_bytes = total_bytes
        self._started = time.monotonic()
        self._first_bytes: int | None = None
        self._next_draw = 0.0
        self._drawn = False
        self._is_live = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, done_bytes: int) -> None:
        now = time.monotonic()
        if self._first_bytes is None:
            # What was there before, of a resumed download, says nothing of the speed.
            self._first_bytes = done_bytes
        if not self._is_live or now < self._next_draw:
            return
        self._next_draw = now + REDRAW_S
        self._drawn = True
        speed = (done_bytes - self._first_bytes) / max(now - self._started, REDRAW_S)
        line = f"{self._label}  {self._share(done_bytes)}  {size_text(int(speed))}/s"
        columns = shutil.get_terminal_size().columns
        print(f"\r\x1b[K{line[: columns - 1]}", end="", file=sys.stderr, flush=True)

    def _share(self, done_bytes: int) -> str:
        if not self.total_bytes:
            return size_text(done_bytes)
        share = min(done_bytes / self.total_bytes, 1.0)
        filled = int(share * BAR_CHARACTERS)
        bar = "#" * filled + "." * (BAR_CHARACTERS - filled)
        return f"[{bar}] {share:4.0%}  {size_text(done_bytes)} of {size_text(self.total_bytes)}"


class Bars:
    """A line for each part of long work, one after the other."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._label = ""
        self._move: Callable[[int], None] = lambda done: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, label: str, done: int, total: int, *, is_bytes: bool = False) -> None:
        """How far a part is; `total` 0 is unknown."""
        if label != self._label:
            self.close()
            self._label = label
            self._move = self._stack.enter_context(_line(label, total, is_bytes=is_bytes))
        self._move(done)

    def close(self) -> None:
        """End the line, for another part or because something else is to be printed."""
        self._label = ""
        self._stack.close()


@contextmanager
def _line(label: str, total: int, *, is_bytes: bool) -> Iterator[Callable[[int], None]]:
    if is_bytes:
        with Progress(label, total_bytes=total) as progress:
            yield progress.show
    elif total:
        with progress_bar(label, length=total) as move:
            yield move
    else:
        with count_line(label) as move:
            yield move
