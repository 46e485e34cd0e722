"""How far a long command has come: on stderr, and only if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

Item = TypeVar("Item")

STEP_ITEMS = 1000


@contextmanager
def progress_bar(label: str, *, length: int) -> Iterator[Callable[[int], None]]:
    """A bar, moved by calls with how much of the length is done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield lambda done: bar.update(done - bar.pos)


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
