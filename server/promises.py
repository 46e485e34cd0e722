"""What a log has promised, checked when its server starts: the checkpoints that it keeps, and those outside.

All of this is looked at before anything is changed. What the start has to say of it stands in its events.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eventstore.errors import (
    CheckpointContradicted,
    ForeignCheckpoint,
    NoSuchPosition,
    NoteMalformed,
    NoteUnverified,
    PublishedRefused,
    SignatureWrong,
)
from eventstore.heads import check_kept
from eventstore.keys import Signer, format_vkey
from eventstore.lineage import CHECKPOINT_KEY_ADDED, LOG_RESTORED, Lineage, lineage
from eventstore.published import Contradiction, contradictions, newest_of
from eventstore.reader import LogReader
from projections.moments import format_time
from server.config import Config
from server.signing import KeyFiles, newest_key
from server.writer import SystemEvent

KEY_LOST = "the key of its checkpoints was not here"
NOTHING_SAID = Lineage((), ())


class PromiseBroken(Exception):
    """The log is not the one whose checkpoint was signed, and is not served. The last part is the remedy."""


class RollbackRefused(Exception):
    """The log is not the one that was published, and nobody has accepted that yet."""


@dataclass(frozen=True, slots=True)
class Promises:
    """What a log has said of itself, the key to sign with if it is there, what of its past it gives up."""

    said: Lineage
    signer: Signer | None
    is_key_lost: bool
    given_up: tuple[Contradiction, ...]


def key_files(config: Config) -> KeyFiles:
    return KeyFiles(config.data, config.checkpoint_key)


def check_promises(config: Config, log: LogReader | None) -> Promises:
    """What a start may rely on. `log` is None where there is none yet. Nothing is written.

    Raises PromiseBroken, RollbackRefused, KeyFileRefused, PublishedRefused, EventStoreError.
    """
    files = key_files(config)
    said = NOTHING_SAID if log is None else check_kept_one(log)
    signer = files.find(said, None if log is None else log.log_id, rotate=config.rotate_checkpoint_key)
    given_up: tuple[Contradiction, ...] = ()
    if config.publish_checkpoints is not None:
        _check_writable(config.publish_checkpoints)
        given_up = _given_up(config.publish_checkpoints, config.accept_rollback, log, said, signer)
    return Promises(said, signer, files.is_lost(said, signer), given_up)


def check_kept_one(log: LogReader) -> Lineage:
    """What a log says of itself, if it leads to the newest checkpoint that it keeps.

    Raises PromiseBroken, EventStoreError.
    """
    said, kept = lineage(log), log.newest_checkpoint()
    if kept is None:
        return said
    which = f"its checkpoint of {kept.size} events, signed at {format_time(kept.at)}"
    remedy = "do not serve it: restore the log from a backup"
    try:
        check_kept(log, kept, said.verifiers)
    except NoSuchPosition as error:
        raise PromiseBroken(
            f"TRUNCATION: the log ends at position {error.head}, and {which}, says that there was more;"
            f" {remedy}"
        ) from error
    except CheckpointContradicted as error:
        raise PromiseBroken(
            f"FORK: the first {kept.size} events are not those of {which}: their root is {error.actual}, and"
            f" {error.root} was signed; {remedy}"
        ) from error
    except (NoteMalformed, NoteUnverified, SignatureWrong, ForeignCheckpoint, ValueError) as error:
        why = str(error).rpartition("; ")[0] or str(error)
        raise PromiseBroken(f"SIGNATURE: {which}, is not what was signed: {why}; {remedy}") from error
    return said


def first_events(promises: Promises, signer: Signer, *, reason: str | None) -> tuple[SystemEvent, ...]:
    """What the log has to say of its past and of its key before anything else is written."""
    said: list[SystemEvent] = []
    for contradiction in promises.given_up:
        newest = contradiction.newest.checkpoint
        names: dict[str, str | int] = {"size": newest.size, "root": newest.root.hex()}
        said.append(SystemEvent(LOG_RESTORED, {"reason": reason or "", **names}))
    if promises.is_key_lost and not said:
        said.append(SystemEvent(LOG_RESTORED, {"reason": reason or KEY_LOST}))
    if signer.verifier != newest_key(promises.said):
        said.append(SystemEvent(CHECKPOINT_KEY_ADDED, {"public_key": format_vkey(signer.verifier)}))
    return tuple(said)


def _check_writable(directory: Path) -> None:
    """Raises PublishedRefused. Asked, not tried: a refused start writes nothing, there, too."""
    denied = 0
    if not directory.is_dir():
        denied = errno.ENOTDIR if directory.exists() else errno.ENOENT
    elif os.statvfs(directory).f_flag & os.ST_RDONLY:
        denied = errno.EROFS
    elif not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=_effective()):
        denied = errno.EACCES
    if denied:
        raise PublishedRefused(
            directory,
            f"cannot take checkpoints: {os.strerror(denied).lower()}",
            "make it or mount it, let this user write there, or give another folder with"
            " --publish-checkpoints",
        )


def _effective() -> bool:
    return os.access in os.supports_effective_ids


def _given_up(
    directory: Path, reason: str | None, log: LogReader | None, said: Lineage, signer: Signer | None
) -> tuple[Contradiction, ...]:
    """What was published and is not of this log's past, if that is accepted. Raises RollbackRefused."""
    verifiers = (*said.verifiers, *(() if signer is None else (signer.verifier,)))
    try:
        if log is None:
            _check_unused(directory)
            return ()
        found = contradictions(directory, log, said, dict.fromkeys(verifiers))
    except OSError as error:
        where = Path(error.filename or directory)
        why = f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise PublishedRefused(where, why, "look at its disk and permissions") from error
    if found and reason is None:
        raise RollbackRefused(_told(found))
    return tuple(found)


def _check_unused(directory: Path) -> None:
    """Raises PublishedRefused where a log has published that is not here any more."""
    for newest, _ in newest_of(directory, ()):
        raise PublishedRefused(
            newest.path,
            f"was published by log {newest.checkpoint.origin}, and there is no log here",
            "put that log back; or give a new one another folder with --publish-checkpoints",
        )


def _told(found: Iterable[Contradiction]) -> str:
    first, *others = found
    more = f" (and so in {len(others)} more folders)" if others else ""
    newest = first.newest
    by = "" if newest.is_known else ", signed by a key that this log does not know"
    agree = f"they agree on the first {first.common} events" if first.common else "none of them agrees"
    if first.kind == "ROLLBACK":
        told = (
            f"ROLLBACK: the log ends at position {first.head}, and {newest.path} was published when it had"
            f" {newest.checkpoint.size}{by}: as far as checkpoints were published, {agree}{more}"
        )
    else:
        told = (
            f"FORK: the log, at position {first.head}, does not lead to {newest.path}, published{by}:"
            f" as far as checkpoints were published, {agree}{more}"
        )
    return (
        f"{told}; put the log back that was published, or, if it is lost, give up what was in it with"
        " --accept-rollback REASON, which the log records for ever"
    )
