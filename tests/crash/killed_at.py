"""`imageledger` that is killed at a point of its way: python killed_at.py POINT serve …

POINT is `before METHOD` or `after METHOD` of the log, for the batch that says ServerStarted or the first
checkpoint; or `STEP NAME`, just before a step of Python's on a file whose name begins so, like
`os.link .checkpoint`. A process that never comes there goes on as ever.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from eventstore.log import EventLog
from tools.cli import main

METHODS = ("append", "keep_checkpoint")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(step: str, name: str) -> None:
    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == step:
            paths = [Path(one) for one in arguments if isinstance(one, str | Path)]
            if any(path.name.startswith(name) for path in paths):
                die()

    sys.addaudithook(hear)


def die_at_method(when: str, method: str) -> None:
    plain = getattr(EventLog, method)

    def killed(log: EventLog, given: Any, **options: Any) -> None:
        is_it = method == "keep_checkpoint" or any(event.type == "ServerStarted" for event in given)
        if is_it and when == "before":
            die()
        plain(log, given, **options)
        if is_it and when == "after":
            die()

    setattr(EventLog, method, killed)


if __name__ == "__main__":
    first, second = sys.argv[1].split(" ")
    if second in METHODS:
        die_at_method(first, second)
    else:
        die_at_step(first, second)
    main(sys.argv[2:])
