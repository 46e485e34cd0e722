"""A disk whose calls fail as a test says: failing_disk.c in front of the C library, and what it noted."""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("failing_disk.c")
EIO, ENOSPC = errno.EIO, errno.ENOSPC
FOR_EVER = -1


@dataclass(frozen=True, slots=True)
class Fault:
    """Calls that fail; `path` is a pattern for fnmatch, see failing_disk.c for the rest."""

    call: str
    path: str
    error: int
    when: str = "before"
    skip: int = 0
    times: int = FOR_EVER

    def __str__(self) -> str:
        much = "" if self.times == FOR_EVER else f"-{self.times}-after-{self.skip}"
        return f"{self.call}-{self.path.rpartition('*/')[2]}-{errno.errorcode[self.error]}-{self.when}{much}"


def compiled(folder: Path) -> Path:
    """The library, made in a folder; the test is skipped where that is not possible."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = folder / "failing_disk.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


class FailingDisk:
    """What a process sees that runs with `environment`. `folder` is how the two talk."""

    _ids = itertools.count(1)

    def __init__(self, library: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.environment = {"LD_PRELOAD": str(library), "FAILING_DISK": str(folder)}

    @contextlib.contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Let calls fail for a block. The first fault that matches a call counts."""
        lines = [
            f"{next(self._ids)} {one.call} {one.error} {one.when} {one.skip} {one.times} {one.path}\n"
            for one in faults
        ]
        draft, rules = self.folder / "draft", self.folder / "rules"
        draft.write_text("".join(lines))
        draft.replace(rules)
        try:
            yield
        finally:
            rules.unlink()

    def hits(self) -> list[str]:
        """The calls that were made to fail so far, and their paths."""
        hits = self.folder / "hits"
        return hits.read_text().splitlines() if hits.exists() else []

    def follow(self, *files: Path) -> Followed:
        """Note from now on what becomes of log.db and log.db-wal; what they hold now counts as durable."""
        contents = {str(file): file.read_bytes() for file in files}
        journal = self.folder / "journal"
        journal.write_bytes(b"")
        return Followed(contents, journal)


class Followed:
    """Files, and what a power cut would leave of them."""

    def __init__(self, contents: dict[str, bytes], journal: Path) -> None:
        self._contents = contents
        self._journal = journal

    def after_a_power_cut(self, *, is_lost: bool) -> dict[str, bytes]:
        """Of each file what an fsync has made durable.

        What was pending when an fsync failed may be lost for good: Linux marks such pages clean, so that no
        later fsync writes them, though every read finds them until the power goes. Or it may be on the disk.
        """
        durable = {path: bytearray(content) for path, content in self._contents.items()}
        pending: dict[str, list[tuple[int, bytes | None]]] = {path: [] for path in durable}
        for kind, path, number, content in self._records():
            if kind in "WT":
                pending[path].append((number, content))
                continue
            if kind == "S" or not is_lost:
                for offset, written in pending[path]:
                    _apply(durable[path], offset, written)
            pending[path].clear()
        return {path: bytes(content) for path, content in durable.items()}

    def _records(self) -> Iterator[tuple[str, str, int, bytes | None]]:
        with self._journal.open("rb") as file:
            for line in file:
                kind, rest = line[:1].decode(), line[2:-1].decode()
                if kind == "W":
                    offset, size, path = rest.split(" ", 2)
                    yield kind, path, int(offset), file.read(int(size))
                elif kind == "T":
                    size, path = rest.split(" ", 1)
                    yield kind, path, int(size), None
                else:
                    yield kind, rest, 0, None


def _apply(content: bytearray, offset: int, written: bytes | None) -> None:
    if written is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(written)] = written
