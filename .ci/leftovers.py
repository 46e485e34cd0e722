"""Exits 1 if a process is left whose environment holds NAME=VALUE: python3 leftovers.py NAME=VALUE

Every process that a test starts inherits the environment that the test run was given.
"""

import sys
from pathlib import Path


def left(mark: bytes) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # It ended while we looked, or is not ours.
            continue
        if mark in environment:
            found.append(f"process {process.name} was left running: {command}")
    return found


if __name__ == "__main__":
    processes = left(sys.argv[1].encode())
    print(*processes, sep="\n", end="\n" if processes else "")
    sys.exit(1 if processes else 0)
