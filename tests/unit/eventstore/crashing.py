"""A process that dies between two steps on files, as far as what is then on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STEPS = frozenset({"open", "os.link", "os.rename", "os.remove", "os.mkdir"})


class Died(BaseException):
    """No `except Exception` may go on after it, as nothing would."""


class _Deaths:
    """From step number `at` on, no step on a file with this in its name is taken any more."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.at = 0
        self.step = 0

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.name is None or event not in STEPS:
            return
        paths = [str(one) for one in arguments if isinstance(one, str | Path)]
        if any(self.name in Path(path).name for path in paths):
            self.step += 1
            if self.step >= self.at:
                # And so do not the steps that clean up while this goes up: a dead process takes none.
                raise Died(f"before {event} {paths}")


_deaths = _Deaths()


@contextmanager
def dying(name: str, *, at: int) -> Iterator[None]:
    """Dies before step number `at`, counted from 1, on a file whose name holds `name`."""
    if _deaths.hear not in _heard:
        sys.addaudithook(_deaths.hear)
        _heard.append(_deaths.hear)
    _deaths.name, _deaths.at, _deaths.step = name, at, 0
    try:
        yield
    finally:
        _deaths.name = None


# A hook cannot be removed again, so there is one.
_heard: list[Callable[..., None]] = []


def deaths(
    name: str, run: Callable[[], object], *, prepare: Callable[[], object] = lambda: None
) -> Iterator[int]:
    """Runs it again and again, each time one step further, until it does not die any more.

    `prepare` comes before each run, and lives.
    """
    for at in range(1, 100):
        prepare()
        try:
            with dying(name, at=at):
                run()
        except Died:
            yield at
            continue
        assert at > 1, f"no step on a file called {name}"
        return
    raise AssertionError("it never ends")
