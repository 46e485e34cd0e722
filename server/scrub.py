"""A scrub: all that is stored is read again and held against what was written. Runs in a thread of its own.

It has connections of its own, and none of its read transactions outlives a page: calls do not wait for it,
and the write-ahead logs do not grow because of it. It repairs nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from grpc import StatusCode

from eventstore import database
from eventstore.audit import LogAudit, OnRead
from eventstore.checkpoint import KeptCheckpoint
from eventstore.errors import (
    EnvelopeTooNew,
    EventStoreError,
    LogCorrupt,
    LogUnreadable,
    NoSuchPosition,
)
from eventstore.finding import EDIT, TRUNCATION, Finding
from eventstore.lineage import lineage
from eventstore.reader import LogReader
from eventstore.verify import SIGNATURE, checkpoint_findings
from projections.audit import PROJECTION, REMEDY, ProjectionAudit
from projections.audit_blobs import BlobReference, blob_references
from projections.audit_tables import TablesAudit
from projections.damage import ProjectionDamaged
from projections.queries import Queries
from server.blobs import BlobError, BlobMissing, BlobStore
from server.encode import image_frame
from server.pace import Pace
from server.status import CallRefused

BLOB = "BLOB"
# In one part: whoever reads so many needs no further one.
FINDINGS_MAX = 1000
TOLD_S = 0.2
ATTEMPTS_MAX = 5
LOOK_BYTES = 4096  # What looking at a file, or at a checkpoint, costs, about.
PAGE_CHECKPOINTS = 20

Part = Literal["LOG", "LOG_INDEXES", "PROJECTION", "PROJECTION_INDEXES", "BLOBS"]


class Listener(Protocol):
    """Hears of a scrub, in its thread."""

    def progress(self, part: Part, done: int, total: int) -> None:
        """`total` is 0 where it is not known."""

    def finding(self, part: Part, found: Finding) -> None: ...


@dataclass(slots=True)
class Checked:
    """What was read: log and projection up to `position`. `gave_up`: after too many findings in a part."""

    position: int = 0
    log_entries: int = 0
    rows: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    unused_blobs: int = 0
    unused_blob_bytes: int = 0
    gave_up: bool = False


class _Replaced(Exception):
    """The projection that is read is not the live one any more."""


class Scrub:
    """One run. Its thread alone uses it."""

    def __init__(
        self, *, log_path: Path, live: Callable[[], Path], blobs: BlobStore, pace: Pace, listener: Listener
    ) -> None:
        """`live` gives the projection file that is served; `pace` may raise to end it."""
        self._log_path = log_path
        self._live = live
        self._blobs = blobs
        self._pace = pace
        self._listener = listener
        self._checked = Checked()
        self._told: Part | None = None
        self._told_at = 0.0
        self._counted = 0

    def run(self) -> Checked:
        """What was read, when all was. Raises CallRefused, EnvelopeTooNew, and what `pace` raises.

        Checkpoints are asked for apart: whoever has some of elsewhere, too, compares all of them at once.
        """
        self.read_log()
        for _ in range(ATTEMPTS_MAX):
            with suppress(_Replaced):
                self._projection()
                break
        else:
            raise CallRefused(
                StatusCode.UNAVAILABLE,
                f"The projection was replaced {ATTEMPTS_MAX} times while it was read: scrub again later",
                reason="PROJECTION_REPLACED",
            )
        self._check_blobs()
        return self._checked

    def read_log(self) -> Checked:
        """What was read of the log alone. Raises EnvelopeTooNew."""
        try:
            with LogAudit.open(self._log_path) as audit:
                head = audit.last_position()
                if head == 0:
                    self._say("LOG", Finding(TRUNCATION, None, "log.db: it has no event that can be read"))
                self._report("LOG", audit.findings(until=head, on_read=self._reader("LOG", head)))
                entries = audit.entry_findings(until=head, on_read=self._reader("LOG_INDEXES", 0))
                self._report("LOG_INDEXES", entries)
        except EnvelopeTooNew:
            raise
        except EventStoreError as error:
            self._say("LOG", Finding(EDIT, None, f"log.db: {getattr(error, 'reason', error)}"))
        return self._checked

    def check_checkpoints(self) -> None:
        """Hold the log to each of the checkpoints that it keeps itself."""
        try:
            with _PacedLog.open(self._log_path) as log:
                log.pace = self._pace
                self._report("LOG", checkpoint_findings(log, (), lineage(log).verifiers))
        except (LogCorrupt, LogUnreadable, NoSuchPosition):
            return  # Told of each event.
        except EventStoreError as error:
            self._say("LOG", Finding(SIGNATURE, None, f"log.db: its checkpoints cannot be checked: {error}"))

    def _projection(self) -> None:
        path = self._live()
        try:
            with (
                LogAudit.open(self._log_path) as log,
                closing(_connected(path)) as connection,
            ):
                audit = ProjectionAudit(connection, log, encode=image_frame)
                # In this order: the log is always ahead.
                self._check_ends(audit.at, log.last_position())
                self._check_projection(audit, path)
        except EventStoreError:
            return  # Of the log, which was told.
        except (ProjectionDamaged, *database.READ_ERRORS) as error:
            what = getattr(error, "what", error)
            self._say("PROJECTION", Finding(PROJECTION, None, f"{path.name}: {what}", REMEDY))

    def _check_ends(self, applied: int, head: int) -> None:
        if 0 < head < applied:
            message = f"the log ends at {head}, and the projection has applied position {applied}"
            self._say("LOG", Finding(TRUNCATION, head + 1, message))

    def _check_projection(self, audit: ProjectionAudit, path: Path) -> None:
        heard = self._reader("PROJECTION", audit.at, path)
        self._report("PROJECTION", audit.findings(on_read=heard))
        self._checked.position = audit.at
        heard = self._reader("PROJECTION_INDEXES", 0, path)
        self._report("PROJECTION_INDEXES", TablesAudit(audit, name=path.name).findings(on_read=heard))

    def _check_blobs(self) -> None:
        """Every blob that something current refers to, byte by byte; and how many others there are."""
        _, total = self._blobs.count_and_bytes()
        try:
            with closing(_connected(self._live())) as connection:
                for reference in blob_references(connection):
                    self._check_blob(reference, total)
                used = Queries(connection, encode=image_frame)
                for sha256 in self._blobs.digests():
                    self._count_unused(sha256, used)
        except (ProjectionDamaged, *database.READ_ERRORS) as error:
            message = f"which blobs are used cannot be read to its end: {error}"
            self._say("BLOBS", Finding(PROJECTION, None, message, REMEDY))
        self._tell("BLOBS", total, total, is_last=True)

    def _check_blob(self, reference: BlobReference, total: int) -> None:
        sha256, user, position, storage_size = reference
        self._checked.blobs += 1
        try:
            self._forget_cached(sha256)
            for chunk in self._blobs.read(sha256, offset=0, storage_size=storage_size):
                self._checked.blob_bytes += len(chunk)
                self._tell("BLOBS", self._checked.blob_bytes, total)
                self._pace.took(len(chunk))
            self._forget_cached(sha256)
        except BlobError as error:
            if self._is_used(sha256):
                what, _, remedy = str(error).rpartition("; ")
                self._say("BLOBS", Finding(BLOB, position, f"{user}: {what}", remedy))
        self._pace.took(LOOK_BYTES)

    def _forget_cached(self, sha256: str) -> None:
        """What memory remembers of a file says nothing of the disk; and it has better things to remember."""
        if hasattr(os, "posix_fadvise"):
            with self._blobs.open(sha256) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _is_used(self, sha256: str) -> bool:
        """Whether something refers to a blob by now, in the projection that is live by now."""
        try:
            with closing(_connected(self._live())) as connection:
                return Queries(connection, encode=image_frame).is_blob_used(sha256)
        except ProjectionDamaged:
            return True

    def _count_unused(self, sha256: str, used: Queries) -> None:
        with suppress(BlobMissing, ProjectionDamaged):
            if not used.is_blob_used(sha256):
                self._checked.unused_blob_bytes += self._blobs.size(sha256)
                self._checked.unused_blobs += 1
        self._pace.took(LOOK_BYTES)

    def _reader(self, part: Part, total: int, path: Path | None = None) -> OnRead:
        """What hears of each page of a part; of a projection at `path`, as long as that is the live one."""

        def on_read(done: int, size_bytes: int) -> None:
            if path is not None and self._live() != path:
                raise _Replaced
            self._count(part, done)
            self._tell(part, done, total, is_last=done == total)
            self._pace.took(size_bytes)

        self._counted = 0
        return on_read

    def _count(self, part: Part, done: int) -> None:
        """Of what is counted, `done` is how much there was in this part."""
        new, self._counted = done - self._counted, done
        if part == "LOG_INDEXES":
            self._checked.log_entries += new
        elif part == "PROJECTION_INDEXES":
            self._checked.rows += new

    def _report(self, part: Part, findings: Iterable[Finding]) -> None:
        for count, found in enumerate(findings, start=1):
            self._say(part, found)
            if count == FINDINGS_MAX:
                self._checked.gave_up = True
                return

    def _say(self, part: Part, found: Finding) -> None:
        self._listener.finding(part, found)

    def _tell(self, part: Part, done: int, total: int, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if is_last or part != self._told or now - self._told_at >= TOLD_S:
            self._told, self._told_at = part, now
            self._listener.progress(part, done, total)


class _PacedLog(LogReader):
    """A log whose checkpoints come a few at a time: checking a signature takes a while, too."""

    pace: Pace

    def checkpoints(self, *, after: int = 0, limit: int = PAGE_CHECKPOINTS) -> list[KeptCheckpoint]:
        found = super().checkpoints(after=after, limit=limit)
        self.pace.took(len(found) * LOOK_BYTES)
        return found


def _connected(path: Path) -> database.Connection:
    return database.connect(path, access="read", synchronous="NORMAL")
