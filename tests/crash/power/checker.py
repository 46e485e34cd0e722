"""Opens what a power cut left as the server would, and looks for anything that is lost, or half there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from eventstore import database, merkle
from eventstore.event import Event
from eventstore.log import EventLog
from eventstore.reader import LogReader
from projections.domain.evolve import MemoryState
from projections.queries import Queries
from projections.store import ProjectionFiles, build, digest_of, open_queries
from server.config import Config
from server.encode import image_frame, operation_message, source_message
from server.identity import TokenRefused
from server.start import Stores, open_stores
from tests.crash.power.disk import State
from tests.crash.power.recording import DATA
from tests.crash.power.told import OperationTold, PositionTold, SourceTold, TimeTold, TokenTold, Told

ALWAYS_ASKED = 8
EVENTS = "SELECT position, body, hashes FROM event ORDER BY position"


class Lost(AssertionError):
    """A state in which something is not as it was promised."""


@dataclass(slots=True)
class History:
    """How the log went on after every cut: what a cut leaves of it must be its beginning."""

    bodies: list[bytes]
    events: list[Event]
    # By position, the blobs of READY images and registered sources after it.
    blobs: list[frozenset[str]]
    _digests: dict[int, str] = field(default_factory=dict)
    # By position, how many of the first answers were given again by a state that ends there.
    _asked: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> History:
        with LogReader.open(path) as log:
            events = list(log.events())
            bodies = [log.body(event.position) for event in events]
        state, blobs = MemoryState(), [frozenset[str]()]
        for event in events:
            state.apply(event)
            users = (*state.images.values(), *state.sources.values())
            blobs.append(frozenset(user["blob"]["sha256"] for user in users if user["blob"]))
        return cls(bodies, events, blobs)

    def ends_batch(self, head: int) -> bool:
        """Whether a batch, which has one stamp, ends at a position."""
        return head in (0, len(self.events)) or self.events[head - 1].at != self.events[head].at

    def digest(self, log: LogReader, head: int) -> str:
        """The digest of a projection made anew of the first events, from a log that holds just these."""
        if head not in self._digests:
            with tempfile.TemporaryDirectory(dir=place()) as folder:
                path = build(ProjectionFiles(Path(folder)), log, encode=image_frame)
                self._digests[head] = digest_of(path, encode=image_frame)
        return self._digests[head]

    def not_asked(self, head: int, told: list[Told]) -> list[Told]:
        """The answers to ask for in a state whose log and projection are those of every state with this head.

        Equal ones have given the first of them before, so that of these only the latest are asked for again.
        """
        asked = self._asked.get(head, 0)
        self._asked[head] = max(asked, len(told))
        return told[min(asked, max(0, len(told) - ALWAYS_ASKED)) :]


def place() -> Path:
    """Where states are laid out: in memory, where the machine has a file system there."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def check(state: State, told: Sequence[Told], history: History, *, folder: Path) -> None:
    """Lay a state out in a new folder, start from it, and compare. Raises whatever is wrong with it."""
    lay_out(state, folder)
    try:
        with ExitStack() as stack:
            config = Config(data=folder / DATA, listen="127.0.0.1:0", min_free=0.0)
            _check_stores(open_stores(config, stack), list(told), history)
    finally:
        shutil.rmtree(folder)


def lay_out(state: State, folder: Path) -> None:
    """Write a state's files below a new folder."""
    folder.mkdir()
    for path, entry in state.items():
        if entry.content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(entry.content)
        (folder / path).chmod(entry.mode)


def _check_stores(stores: Stores, told: list[Told], history: History) -> None:
    head = _check_log(stores.log, history)
    if head == 0:
        if told:
            raise Lost(f"nothing of the log is left, and {len(told)} answers were given")
        return
    lost = [one for one in told if one.position > head]
    if lost:
        raise Lost(f"the log ends at {head}, and {len(lost)} later answers were given: {lost[0]}")
    if digest_of(stores.projection, encode=image_frame) != history.digest(stores.log, head):
        raise Lost(f"the projection at {head} is not what a rebuild makes of the log")
    with closing(open_queries(stores.projection, encode=image_frame)) as queries:
        _check_told(stores, queries, history.not_asked(head, told))
    for sha256 in history.blobs[head]:
        for _ in stores.blobs.read(sha256, offset=0):
            pass


def _check_log(log: EventLog, history: History) -> int:
    """The head, once every event up to it is whole, hashed, and the one that was written; 0 for a new log."""
    with closing(database.connect(log.path, access="read", synchronous="FULL")) as connection:
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        rows = connection.execute(EVENTS).fetchall()
    if found != "ok":
        raise Lost(f"log.db: {found}")
    events = list(log.events())
    if len(rows) == 1 and rows[0][1] != history.bodies[0]:
        return 0  # Its creation was not durable yet, and start made another one.
    positions = [row[0] for row in rows]
    if positions != list(range(1, len(rows) + 1)) or len(events) != len(rows):
        raise Lost(f"the log has the positions {positions}")
    if [row[1] for row in rows] != history.bodies[: len(rows)]:
        raise Lost("the log holds other events than were written")
    _, hashes = merkle.extend(merkle.EMPTY, [merkle.leaf_hash(row[1]) for row in rows])
    if [row[2] for row in rows] != hashes:
        raise Lost("the log holds other hashes than its events have")
    if not history.ends_batch(len(rows)):
        raise Lost(f"the log ends at {len(rows)}, inside of a batch")
    return len(rows)


def _check_told(stores: Stores, queries: Queries, told: list[Told]) -> None:
    """Every answer, asked for again as of the position at which it was given."""
    for one in told:
        match one:
            case OperationTold(_, position, operation):
                view, _ = queries.operation(operation.id, at=position)
                if operation_message(view) != operation:
                    raise Lost(f"operation {operation.id} is {view}, and this was told: {operation}")
                if not stores.log.events_of_operation(operation.id):
                    raise Lost(f"the log does not find operation {operation.id}")
            case SourceTold(_, position, source):
                found = source_message(queries.source(source.id, at=position)[0])
                if found != source:
                    raise Lost(f"source {source.id} is {found}, and this was told: {source}")
            case TimeTold(_, _, closed_ns):
                if max(stores.log.closed(), stores.log.at(stores.log.head())) < closed_ns:
                    raise Lost(f"time {closed_ns} is open again, and was answered as of")
            case TokenTold(_, _, token, subject):
                if _subject(stores, token) != subject:
                    raise Lost(f"the token of {subject} names {_subject(stores, token)}")
            case PositionTold():
                pass


def _subject(stores: Stores, token: str) -> str | None:
    try:
        return stores.tokens.subject(token)
    except TokenRefused:
        return None
