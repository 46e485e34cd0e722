"""A folder that gets the files of one export, then its manifest: one that is there never lies."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from eventstore.database import fsync_directory
from tools.errors import CommandFailed

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file as its manifest names it; `sha256` in lower-case hex."""

    name: str
    rows: int
    bytes: int
    sha256: str


class ExportFolder:
    """Every file is complete and on disk under a name of its own, `.<name>.partial`, before any gets its own.

    `publish` then goes in this order, each step durable before the next: the old manifest is removed, the
    files are renamed, the manifest is. So what a manifest names is always there, whole; a crash between the
    steps leaves whole files without a manifest.
    """

    def __init__(self, path: Path, *, names: Sequence[str], overwrite: bool) -> None:
        """`names` are those of all files that this kind of export can have."""
        self.path = path
        self._overwrite = overwrite
        self._names = (*names, MANIFEST)
        self._folder: int | None = None

    def __enter__(self) -> Self:
        """Takes the folder, which is made if it is absent. Raises CommandFailed."""
        with self._disk_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._lock(self._folder)
                self._refuse_what_is_there()
                self._remove_partials()
            except BaseException:
                os.close(self._folder)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is None:
            raise AssertionError("this folder was not entered")
        with suppress(OSError):
            self._remove_partials()
        os.close(self._folder)

    def write(self, name: str, lines: Iterable[bytes]) -> ExportedFile:
        """Writes a file under its partial name and makes it durable. Raises CommandFailed."""
        if name not in self._names:
            raise AssertionError(f"{name} is no file of this export")
        hashed = hashlib.sha256()
        rows = size = 0
        with self._disk_errors(), self._partial(name).open("wb") as file:
            for line in lines:
                file.write(line)
                hashed.update(line)
                rows += 1
                size += len(line)
            file.flush()
            os.fsync(file.fileno())
        return ExportedFile(name, rows, size, hashed.hexdigest())

    def publish(self, files: Sequence[ExportedFile], manifest: bytes) -> Path:
        """Gives the files their names, and then the manifest. Raises CommandFailed."""
        self.write(MANIFEST, [manifest])
        with self._disk_errors():
            for name in self._of_the_old_export():
                (self.path / name).unlink(missing_ok=True)
                # The manifest is the first of them. From here on the old export is no more.
                fsync_directory(self.path)
            for file in files:
                self._partial(file.name).replace(self.path / file.name)
            fsync_directory(self.path)
            self._partial(MANIFEST).replace(self.path / MANIFEST)
            fsync_directory(self.path)
            # Durable from here on, but for the folder's own name if it is new.
            fsync_directory(self.path.absolute().parent)
        return self.path / MANIFEST

    def _partial(self, name: str) -> Path:
        return self.path / f".{name}.partial"

    def _lock(self, folder: int) -> None:
        """Keeps a second export out; the kernel gives it back however this process ends."""
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(
                "FAILED_PRECONDITION",
                f"another export is writing into {self.path}",
                remedy="Wait for it, or give another --to.",
            ) from None
        except OSError:
            # Some network file systems lock no folders; there one export at a time is the caller's care.
            pass

    def _refuse_what_is_there(self) -> None:
        there = [name for name in self._names if os.path.lexists(self.path / name)]
        if there and not self._overwrite:
            raise CommandFailed(
                "ALREADY_EXISTS",
                f"{self.path} holds {there[-1]} already, and an export is never changed unasked",
                remedy="Give another --to, or --overwrite.",
            )

    def _of_the_old_export(self) -> list[str]:
        """The old manifest and the files it names, where it is one; only such as this kind of export has."""
        if not self._overwrite or not os.path.lexists(self.path / MANIFEST):
            return []
        named: set[str] = set()
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            old: Mapping[str, Any] = json.loads((self.path / MANIFEST).read_bytes())
            named = {file["name"] for file in old["files"]}
        return [MANIFEST, *(name for name in self._names if name in named and name != MANIFEST)]

    def _remove_partials(self) -> None:
        """Removes what this export, or one that was killed, did not come to publish."""
        for name in self._names:
            self._partial(name).unlink(missing_ok=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CommandFailed(
                "UNAVAILABLE",
                f"cannot write into {error.filename or self.path}: {error.strerror or error}",
                remedy="Look at its disk and permissions, or give another --to; then run it again.",
            ) from error
