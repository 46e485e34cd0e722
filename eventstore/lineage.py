"""What a log says of itself in its own stream: which keys sign its checkpoints, and when it was restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from eventstore.errors import KeyMalformed, LogCorrupt, SchemaTooNew
from eventstore.event import Event, Position
from eventstore.keys import Verifier, parse_vkey
from eventstore.log import LOG_STREAM
from eventstore.merkle import HASH_SIZE_BYTES, TreeSize
from eventstore.reader import LogReader

CHECKPOINT_KEY_ADDED: Final = "CheckpointKeyAdded"

LOG_RESTORED: Final = "LogRestored"

_SCHEMA: Final = 1


class LogKey(NamedTuple):
    """A key and the sizes of the checkpoints that it signed: from the event that added it, which the first of
    them covers, up to the one before the next key's; `until` is None for the key that signs now."""

    verifier: Verifier
    since: Position
    until: Position | None


class Restored(NamedTuple):
    """A restoration that gave up a history which had been published up to a checkpoint of this size."""

    position: Position
    leaf: bytes
    size: TreeSize
    root: bytes


@dataclass(frozen=True, slots=True)
class Lineage:
    """All keys in order, the last one signs now; and the restorations that gave up what was published."""

    keys: tuple[LogKey, ...]
    restored: tuple[Restored, ...]

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        """The keys, each once."""
        return tuple(dict.fromkeys(key.verifier for key in self.keys))


def lineage(log: LogReader) -> Lineage:
    """What the log says of itself. Raises LogCorrupt, SchemaTooNew.

    Its stream has an event for each start of a server, of which only these are read: damage in another one
    is no reason to trust the log's keys less.
    """
    added: list[tuple[Position, Verifier]] = []
    restored: list[Restored] = []
    for event in log.events_of_types(LOG_STREAM, CHECKPOINT_KEY_ADDED, LOG_RESTORED):
        if event.schema > _SCHEMA:
            raise SchemaTooNew(event.type, event.schema, _SCHEMA, event.position)
        if event.type == CHECKPOINT_KEY_ADDED:
            added.append((event.position, _added_key(event, log.log_id)))
        elif event.type == LOG_RESTORED and "root" in event.data:
            restored.append(_restored(event, log.leaf(event.position)))
    untils = [*(Position(since - 1) for since, _ in added[1:]), None]
    # Not strict: without a key there is no last one, either.
    keys = (LogKey(verifier, since, until) for (since, verifier), until in zip(added, untils, strict=False))
    return Lineage(tuple(keys), tuple(restored))


def _added_key(event: Event, log_id: str) -> Verifier:
    try:
        verifier = parse_vkey(str(event.data.get("public_key")))
    except KeyMalformed as error:
        raise LogCorrupt(event.position, f"the key added there is none: {error.reason}") from error
    if verifier.name != log_id:
        raise LogCorrupt(event.position, f"the key added there is that of log {verifier.name}")
    return verifier


def _restored(event: Event, leaf: bytes) -> Restored:
    size, root = event.data.get("size"), event.data.get("root")
    try:
        hash_ = bytes.fromhex(root) if isinstance(root, str) else b""
    except ValueError:
        hash_ = b""
    if type(size) is not int or len(hash_) != HASH_SIZE_BYTES:
        raise LogCorrupt(event.position, "the restoration there names no checkpoint")
    return Restored(event.position, leaf, TreeSize(size), hash_)
