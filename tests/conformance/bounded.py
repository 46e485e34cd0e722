"""`imageledger` with other bounds than its own: python bounded.py JSON serve …"""

from __future__ import annotations

import json
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import tools.serve
from server.bounds import Bounds
from server.config import Config
from tools.cli import main

CONFIG = ("in_flight_max",)


def program(**given: Any) -> list[str]:
    """What a tests.harness.Server runs.

    `given` are fields of Bounds, those of Config that no option of serve sets, and how many files it may have
    open, `files_max`.
    """
    return [sys.executable, str(Path(__file__)), json.dumps(given)]


if __name__ == "__main__":
    given = json.loads(sys.argv.pop(1))
    if files_max := given.pop("files_max", None):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    own = {name: given.pop(name) for name in CONFIG if name in given}
    tools.serve.Config = partial(Config, bounds=Bounds(**given), **own)  # type: ignore[assignment,misc]
    sys.exit(main())
