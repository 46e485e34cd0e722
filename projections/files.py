"""The projection files in a folder: which one is live, and names that are never used twice."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eventstore import database
from eventstore.errors import EventStoreError

CURRENT = "CURRENT"
NONE_LIVE = "none"
FILE_NAME = re.compile(r"projections-([0-9]+)\.db")
SIDE_FILES = ("", "-wal", "-shm")


class ProjectionRefused(EventStoreError):
    """A projection that is not of this log as it stands. Nothing is repaired silently."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}; stop the server and run `imageledger rebuild`"


@dataclass(frozen=True, slots=True)
class Current:
    """What the file CURRENT says, a line each: the live file, then, where there is something to say,
    `highest N`, the highest number that any file had here, and `kept NAME`, a file that no build removes."""

    live: str | None = None
    highest: int = 0
    kept: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Current | None:
        """None for a text that is none of ours."""
        live, *others = text.removesuffix("\n").split("\n")
        highest, kept = 0, []
        for line in others:
            word, _, value = line.partition(" ")
            if word == "highest" and value.isascii() and value.isdigit() and len(value) < 19:
                highest = int(value)
            elif word == "kept" and FILE_NAME.fullmatch(value):
                kept.append(value)
            else:
                return None
        if live == NONE_LIVE:
            return cls(None, highest, tuple(kept))
        return cls(live, highest, tuple(kept)) if FILE_NAME.fullmatch(live) else None

    def text(self) -> str:
        lines = [self.live or NONE_LIVE]
        if self.highest > _number(self.live or ""):
            lines.append(f"highest {self.highest}")
        return "\n".join([*lines, *(f"kept {name}" for name in self.kept)]) + "\n"


class ProjectionFiles:
    """The projection files in a data directory. A name is never used twice."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def current(self) -> Path | None:
        """The live file, or None where there is none yet or it is gone."""
        text = self._text()
        if text is None:
            return None
        current = Current.parse(text)
        if current is None:
            raise ProjectionRefused(
                self.directory / CURRENT, f"it names {text[:64]!r}, which is no projection"
            )
        if current.live is None:
            return None
        path = self.directory / current.live
        return path if path.is_file() else None

    def unused(self) -> Path:
        """A name that no projection here has, or, as far as the folder and CURRENT tell, had."""
        return self.directory / f"projections-{self._highest() + 1}.db"

    def reserve(self) -> Path:
        """A name for a file that another process makes, or that comes from elsewhere.

        It is written down as used first: a process that outlives its server never meets a later file.
        """
        path, said = self.unused(), self._said()
        if not self._is_garbage():
            self._write(Current(said.live, _number(path.name), self._there(said.kept)))
        return path

    def make_current(self, path: Path, *, keep: Path | None = None) -> None:
        """Name the live file: written, fsynced, renamed. After the last line a power cut keeps it.

        `keep` is one that stays when others are removed.
        """
        before = self._said()
        kept = before.kept if keep is None else (*before.kept, keep.name)
        self._write(Current(path.name, before.highest, self._there(kept)))

    def remove_others(self, live: Path) -> None:
        """Remove what older builds, and builds that were killed, left behind."""
        kept = self._said().kept
        self._remove(
            name
            for name in self._names()
            if (found := FILE_NAME.match(name)) and found[0] != live.name and found[0] not in kept
        )

    def remove(self, path: Path) -> None:
        """Remove a file that is not live, with what SQLite keeps beside it."""
        there = set(self._names())
        self._remove(name for ending in SIDE_FILES if (name := path.name + ending) in there)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove files, once it is written down that their numbers were used."""
        going = list(names)
        said, highest = self._said(), max(map(_number, going), default=0)
        if highest > max(said.highest, _number(said.live or "")) and not self._is_garbage():
            self._write(Current(said.live, highest, self._there(said.kept)))
        for name in going:
            (self.directory / name).unlink(missing_ok=True)

    def _write(self, current: Current) -> None:
        draft = self.directory / f"{CURRENT}.new"
        with draft.open("w", encoding="utf-8") as file:
            file.write(current.text())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.directory / CURRENT)
        database.fsync_directory(self.directory)

    def _there(self, kept: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in kept if (self.directory / name).is_file()))

    def _highest(self) -> int:
        said = self._said()
        numbers = [_number(name) for name in (*self._names(), *said.kept, said.live or "")]
        return max(said.highest, *numbers)

    def _names(self) -> list[str]:
        return [entry.name for entry in self.directory.iterdir()]

    def _said(self) -> Current:
        """What CURRENT says; nothing where it is not there or holds other bytes."""
        return Current.parse(self._text() or "") or Current()

    def _is_garbage(self) -> bool:
        """Whether CURRENT is a file that we did not write, which only a rebuild may replace."""
        text = self._text()
        return text is not None and Current.parse(text) is None

    def _text(self) -> str | None:
        """What CURRENT says, whatever bytes it holds; None where there is no such file."""
        try:
            return (self.directory / CURRENT).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None


def _number(name: str) -> int:
    found = FILE_NAME.match(name)
    return int(found[1]) if found else 0
