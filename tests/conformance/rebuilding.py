"""`imageledger` whose online rebuilds end or wait where a test says: python rebuilding.py HOOK serve …

The child that waits writes its pid into the file `child` beside the data directory, and goes on once somebody
has written to the FIFO `go` there; so does a list of folder `slow`, with the FIFO `read`. The other hooks end
the server by SIGKILL, or let a step fail.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from eventstore import database
from projections import build
from projections.files import ProjectionFiles
from projections.queries import Queries
from server import live, rebuild_child, rebuilder
from server.live import LiveProjection
from server.rebuilder import Rebuilder
from tools.cli import main

FILE_BYTES_MAX = 300_000


def die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def fail(*_: Any, **__: Any) -> NoReturn:
    raise OSError(5, "Input/output error", "CURRENT")


def instead(owner: Any, name: str, then: Callable[..., Any]) -> None:
    setattr(owner, name, then)


def after(owner: Any, name: str, then: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    def run(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        then()
        return result

    setattr(owner, name, run)


def taking_over(owner: Any, name: str, then: Callable[..., Any]) -> None:
    """Patch only while a rebuild takes over: a start makes a file current, too, and names are reserved."""
    move_to = LiveProjection.move_to

    def run(*arguments: Any, **named: Any) -> Any:
        original = getattr(owner, name)
        setattr(owner, name, then)
        try:
            return move_to(*arguments, **named)
        finally:
            setattr(owner, name, original)

    LiveProjection.move_to = run  # type: ignore[method-assign]


def wait(data: Path) -> None:
    """In the child: the rows are in, and the file is not complete."""

    def waiting(*_: Any, **__: Any) -> None:
        (data.parent / "child").write_text(f"{os.getpid()}\n")
        (data.parent / "go").read_bytes()

    after(build, "build_rows", waiting)


def read_slowly() -> None:
    """In the server: a question that is under way until a test lets it end."""
    images = Queries.images

    def waiting(self: Queries, folder_id: str, **asked: Any) -> Any:
        if folder_id == "slow":
            data = Path(sys.argv[sys.argv.index("--data") + 1])
            (data.parent / "read").read_bytes()
        return images(self, folder_id, **asked)

    Queries.images = waiting  # type: ignore[method-assign]


SERVER: dict[str, Callable[[], None]] = {
    "reserved": lambda: after(ProjectionFiles, "reserve", die),
    "compared": lambda: instead(Rebuilder, "_replace", die),
    "caught-up": lambda: after(live, "catch_up", die),
    "before-rename": lambda: taking_over(Path, "replace", die),
    "after-rename": lambda: taking_over(database, "fsync_directory", die),
    "named": lambda: instead(LiveProjection, "_move_readers", die),
    "moved": lambda: after(LiveProjection, "_move_readers", die),
    "removing": lambda: instead(Rebuilder, "_end_of", die),
    "rename-fails": lambda: taking_over(Path, "replace", fail),
    "slow": read_slowly,
    "sync-fails": lambda: taking_over(database, "fsync_directory", fail),
}


def _short() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))


CHILD: dict[str, Callable[[Path], None]] = {
    "wait": wait,
    "slow": lambda data: wait(data) if (data.parent / "hold").exists() else None,
    "short": lambda data: _short(),
    "other": lambda data: instead(rebuild_child, "identity", lambda: ("99", "00")),
    "broken": lambda data: instead(rebuild_child, "follow", lambda *_, **__: 1 // 0),
}


def run(hook: str, arguments: list[str]) -> None:
    if arguments[0] == "child":
        CHILD.get(hook, lambda data: None)(Path(arguments[1]).parent)
        sys.exit(rebuild_child.main(arguments[1:]))
    SERVER.get(hook, lambda: None)()
    rebuilder.CHILD = (sys.executable, __file__, hook, "child")
    main(arguments)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
