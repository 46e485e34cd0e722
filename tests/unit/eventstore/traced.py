"""The system calls of a piece of code, in a process of its own under strace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

_WATCHED = "openat,write,fsync,link,linkat,rename,renameat,renameat2,chmod,fchmod,fchmodat"


def system_calls(code: str, *arguments: object, output: Path) -> list[str]:
    """The calls that name, write or sync files, in order, each descriptor followed by its path in <>."""
    strace = ["strace", "-f", "-y", "-e", f"trace={_WATCHED}", "-o", str(output)]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run([*strace, *command], check=True, timeout=60)
    return [line.split(maxsplit=1)[1] for line in output.read_text().splitlines()]


def index_of(calls: list[str], name: str, *parts: str) -> int:
    """Which call is the first of this name with all these parts."""
    return next(
        at for at, call in enumerate(calls) if call.startswith(name) and all(part in call for part in parts)
    )
