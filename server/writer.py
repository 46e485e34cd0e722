"""The one writer: a queue, a thread, and one transaction and one fsync for each batch of commands.

The order: decide and fold inside the projection's transaction, append to the log (durable), commit the
projection (visible), answer. A crash anywhere leaves either no event or all of a command's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from grpc import StatusCode

from eventstore import database
from eventstore.checkpoint import KeptCheckpoint
from eventstore.errors import AppendFailed, HeadMoved, OutcomeUnknown, StampTooOld
from eventstore.event import Event, Position, Version, canonical
from eventstore.log import LOG_STREAM, SYSTEM_ACTOR, SYSTEM_AUTH, EventLog
from projections.domain.command import Asked, NewEvent, Repeat, folder_of
from projections.domain.decide import Beginning, Command, Ending, decide
from projections.domain.refusals import Refused
from projections.projector import Projector, catch_up
from projections.rows import OperationView, RowDamaged
from server.answers import Answers
from server.status import CallRefused

BATCH_MAX = 512
QUEUE_MAX = 4096
STAMP_NS_MAX = 1_000_000_000  # A batch older than this when it reaches the log is stamped again.
ATTEMPTS_MAX = 8  # So that a command that always takes longer than that ends, too.
SECOND_NS = 1_000_000_000
REOPEN_S = 0.25
REOPEN_S_MAX = 5.0
REOPEN_TOLD_S = 60.0
RETRY_AFTER_MS = 200
SWITCH_S_MAX = 60.0

_log = logging.getLogger(__name__)


class Written(NamedTuple):
    """A command's operation, and the position of its last event."""

    view: OperationView
    position: int


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """An event of the log itself, in stream `log`."""

    type: str
    data: dict[str, str | int]


@dataclass(frozen=True, slots=True)
class SystemEvents:
    """Several of them, durable together or not at all."""

    events: tuple[SystemEvent, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep a checkpoint, which was made and signed elsewhere."""

    checkpoint: KeptCheckpoint


@dataclass(frozen=True, slots=True)
class CloseTime:
    """Stamp nothing at or before this time any more, in nanoseconds since the epoch."""

    at: int


@dataclass(frozen=True, slots=True)
class Switch:
    """Go on with another projection. `take_over` gives it for the present one and the head, both at the same
    position, and has by then moved whoever reads; where it raises, all stays as it is."""

    take_over: Callable[[Projector, Position], Projector]


Job = Command | SystemEvents | CloseTime | Keep | Switch
Outcome = Written | Exception | None
NO_COMMANDS = (SystemEvents, CloseTime, Keep, Switch)


@dataclass(slots=True)
class _Entry:
    job: Job
    future: asyncio.Future[Written | None]
    deadline: float
    outcome: Outcome = field(default=None)


class Unavailable(CallRefused):
    def __init__(self, message: str, reason: str) -> None:
        super().__init__(StatusCode.UNAVAILABLE, message, reason=reason, retry_after_ms=RETRY_AFTER_MS)


class Writer:
    """Takes commands from the event loop and answers them once they are durable and readable."""

    def __init__(
        self,
        log: EventLog,
        projector: Projector,
        *,
        clock: Callable[[], int],
        open_projector: Callable[[], tuple[Projector, int]],
        on_freed: Callable[[list[str]], None] = lambda digests: None,
        answers: Answers | None = None,
        on_state: Callable[[bool], None] = lambda is_writing: None,
    ) -> None:
        """`open_projector` gives a fresh projector and its applied position, after a failure.

        `on_freed` is told, in the event loop, which blobs lost a use, once that is durable. `answers` is told
        what changes before anybody can see it; `on_state`, in the event loop, whether commands are taken.
        """
        self._on_state = on_state
        self._answers = answers or Answers()
        self._on_freed = on_freed
        self._freed: list[str] = []
        self._log = log
        self._projector = projector
        self._clock = clock
        self._open_projector = open_projector
        self._head = log.head()
        self._last_at = log.at(self._head) if self._head else 0
        self._closed_at = log.closed()
        self._queue: deque[_Entry] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        # What the writer recovers from; None while it takes commands.
        self._failure: OutcomeUnknown | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    @property
    def closed_at(self) -> int:
        """Nothing is stamped at or before this time any more."""
        return self._closed_at

    @property
    def applied(self) -> int:
        """The last position that is durable and readable; known without a look at the disk."""
        return self._head

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def begin_stop(self) -> None:
        """Take no more commands, and give up a recovery; what is queued is still answered."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    async def stop(self) -> None:
        """Answer what is queued, then end the thread."""
        self.begin_stop()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def close(self) -> None:
        """Close the projector, which may be another one than at the start. Needs the thread ended or idle."""
        self._projector.close()

    async def submit(self, command: Command, *, deadline: float) -> Written:
        """The command's operation, durable and readable. Raises Refused, CallRefused, EventStoreError."""
        written = await self._enqueue(command, deadline)
        if written is None:
            raise AssertionError("a command was answered with nothing")
        return written

    async def note(self, *events: SystemEvent) -> None:
        """Append events of the log itself, in one batch."""
        await self._enqueue(SystemEvents(events), time.monotonic() + 60)

    async def keep(self, checkpoint: KeptCheckpoint) -> None:
        """Return once the checkpoint is kept, durably; what it covers must be. Raises EventStoreError."""
        await self._enqueue(Keep(checkpoint), time.monotonic() + 60)

    async def switch(self, switch: Switch) -> None:
        """Return once the other projection is written to. Raises what `take_over` does, and CallRefused."""
        await self._enqueue(switch, time.monotonic() + SWITCH_S_MAX)

    async def close_time(self, at: int, *, deadline: float) -> None:
        """Return once no batch stamped at or before `at` is undecided, and none ever will be, durably."""
        await self._enqueue(CloseTime(at), deadline)

    async def _enqueue(self, job: Job, deadline: float) -> Written | None:
        future: asyncio.Future[Written | None] = asyncio.get_running_loop().create_future()
        with self._wake:
            if self._failure is not None:
                raise _reopening(self._failure)
            if self._stopping:
                raise Unavailable("The server is stopping", "STOPPING")
            if len(self._queue) >= QUEUE_MAX:
                raise CallRefused(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"The limit on queued commands has exceeded: {QUEUE_MAX}",
                    reason="QUEUE_FULL",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            self._queue.append(_Entry(job, future, deadline))
            if len(self._queue) == 1:
                self._wake.notify()
        return await future

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._serve(batch)
            except Exception as error:
                # The thread must outlive a defect: nobody else answers the callers.
                _log.error("a batch failed for a reason of ours", exc_info=error)
                self._fail(batch, error)
            self._answer(batch)

    def _next_batch(self) -> list[_Entry]:
        with self._wake:
            while not self._queue:
                if self._stopping:
                    return []
                self._wake.wait()
            return [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_MAX))]

    def _answer(self, batch: Sequence[_Entry]) -> None:
        loop = self._loop
        if loop is None:
            raise AssertionError("the writer was not started")
        loop.call_soon_threadsafe(_settle, batch)

    def _serve(self, batch: Sequence[_Entry]) -> None:
        """Give every entry its outcome."""
        now = time.monotonic()
        live = [entry for entry in batch if not entry.future.cancelled()]
        for entry in live:
            if now > entry.deadline:
                entry.outcome = CallRefused(
                    StatusCode.DEADLINE_EXCEEDED,
                    "The deadline passed before the command's turn came: nothing was written",
                    reason="DEADLINE",
                )
        live = [entry for entry in live if entry.outcome is None]
        commands = [entry for entry in live if not isinstance(entry.job, CloseTime | Keep | Switch)]
        if commands:
            self._write(commands)
        closing = [entry for entry in live if isinstance(entry.job, CloseTime)]
        if closing:
            self._close(closing)
        for entry in live:
            if isinstance(entry.job, Keep):
                self._keep(entry, entry.job.checkpoint)
            if isinstance(entry.job, Switch):
                self._switch(entry, entry.job)

    def _write(self, entries: list[_Entry]) -> None:
        if self._failure is not None:
            self._fail(entries, _not_reopened())
            return
        try:
            self._write_once(entries)
        except OutcomeUnknown as error:
            _log.error("the outcome of a write is unknown", extra={"reason": str(error)})
            self._recover(entries, error)
        except database.IntegrityError as error:
            # A constraint is broken by one command, not by the disk.
            self._one_by_one(entries, error)
        except (AppendFailed, database.Error) as error:
            _log.error("a batch was not written", extra={"reason": str(error)})
            self._fail(entries, _as_append_failed(error))
        except Exception as error:
            self._one_by_one(entries, error)

    def _write_once(self, entries: list[_Entry]) -> None:
        """Write the batch, in halves if it is late. Raises what its last attempt raised."""
        for _ in range(ATTEMPTS_MAX):
            try:
                if self._attempt(entries):
                    return
            except _Late:
                if len(entries) > 1:
                    half = len(entries) // 2
                    self._write(entries[:half])
                    self._write(entries[half:])
                    return
        raise AppendFailed(
            f"{ATTEMPTS_MAX} times the batch took over {STAMP_NS_MAX} ns to decide, or the log had moved on",
            full=False,
        )

    def _attempt(self, entries: Sequence[_Entry]) -> bool:
        """Decide, append, commit. False if the batch must be decided again, as of another head.

        Raises, with nothing written: AppendFailed, Error, _Late and what a defect raises; or OutcomeUnknown.
        """
        for entry in entries:
            entry.outcome = None
        self._freed = []
        started = self._clock()
        stamp = max(started, self._last_at + 1, self._closed_at + 1)
        self._projector.begin()
        try:
            events = self._decide(entries, stamp)
            if not events:
                self._projector.rollback()
                return True
            if self._clock() - started > STAMP_NS_MAX:
                raise _Late
            self._log.append(events, expected_head=self._head)
            # Durable from here on.
        except (HeadMoved, StampTooOld):
            self._projector.rollback()
            self._follow()
            return False
        except BaseException:
            self._projector.rollback()
            raise
        self._commit(events)
        return True

    def _decide(self, entries: Sequence[_Entry], stamp: int) -> list[Event]:
        events: list[Event] = []
        versions: dict[str, Version] = {}
        for entry in entries:
            job = entry.job
            if isinstance(job, SystemEvents):
                new = [NewEvent(LOG_STREAM, event.type, "", dict(event.data)) for event in job.events]
                self._apply(entry, new, None, events, versions, stamp)
                continue
            if isinstance(job, CloseTime | Keep | Switch):
                raise AssertionError(f"{type(job).__name__} is no command")
            try:
                decision = decide(self._projector, job, at=stamp)
            except (Refused, RowDamaged) as error:
                entry.outcome = error
                continue
            if isinstance(decision, Repeat):
                entry.outcome = self._repeated(decision)
            else:
                self._apply(entry, decision, job.asked, events, versions, stamp)
        return events

    def _repeated(self, decision: Repeat) -> Outcome:
        operation = self._projector.operation(decision.operation_id)
        if operation is None:
            raise AssertionError(f"operation {decision.operation_id} answered a command and is not there")
        return Written(self._projector.view(operation), operation["last"])

    def _apply(
        self,
        entry: _Entry,
        decided: Sequence[NewEvent],
        asked: Asked | None,
        events: list[Event],
        versions: dict[str, Version],
        stamp: int,
    ) -> None:
        """Number the events and fold them into the projection; the last one's result is the outcome."""
        first = isinstance(entry.job, Beginning)
        for new in decided:
            version = versions.get(new.stream) or self._log.stream_version(new.stream)
            versions[new.stream] = Version(version + 1)
            position = Position(self._head + len(events) + 1)
            event = _event(new, asked, position, versions[new.stream], stamp, first=first)
            first = False
            applied = self._projector.apply(event)
            events.append(event)
            if applied.freed is not None:
                self._freed.append(applied.freed)
            if applied.operation is not None:
                entry.outcome = Written(
                    OperationView(applied.operation, applied.resource, applied.wire), position
                )

    def _commit(self, events: Sequence[Event]) -> None:
        """Make the rows of durable events visible. Raises OutcomeUnknown for whatever goes wrong here."""
        last = events[-1]
        folders = {folder_of(event.stream) for event in events}
        self._answers.changing(folders | {event.resource_id for event in events})
        try:
            self._projector.commit(last=last, leaf=self._log.leaf(last.position))
        except Exception as error:
            reason = f"the projection's commit failed after the log's: {error}"
            raise OutcomeUnknown(reason, database.is_full(error)) from error
        self._answers.changed(last.position)
        self._head = last.position
        self._last_at = last.at
        self._tell_freed()

    def _tell_freed(self) -> None:
        """Say which blobs may have lost a use; whoever removes one looks for another use first."""
        if self._freed and self._loop is not None:
            # A loop that is closed has nobody to tell, and the batch is written all the same.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_freed, self._freed)

    def _follow(self) -> None:
        """Catch up with a log that someone else has written to."""
        self._answers.forget_all()
        catch_up(self._projector, self._log, after=self._head, on_progress=self._moved_to)
        self._answers.changed(self._head)
        self._closed_at = self._log.closed()

    def _moved_to(self, position: int) -> None:
        """The projection stands here now, which need not be the log's head: another writer may be faster."""
        self._head = Position(position)
        self._last_at = self._log.at(self._head) if position else 0

    def _close(self, entries: Sequence[_Entry]) -> None:
        """Close times, rounded up to a second so that at most one write a second is needed."""
        if self._failure is not None:
            self._fail(entries, _not_reopened())
            return
        at = max(entry.job.at for entry in entries if isinstance(entry.job, CloseTime))
        if at <= max(self._closed_at, self._last_at):
            return
        rounded = -(-at // SECOND_NS) * SECOND_NS
        try:
            self._log.close_time(rounded)
            self._closed_at = rounded
        except OutcomeUnknown as error:
            _log.error("the outcome of closing a time is unknown", extra={"reason": str(error)})
            self._recover(entries, error)
        except Exception as error:
            # Not further up: the batch's commands have their answers already.
            self._fail(entries, error)

    def _keep(self, entry: _Entry, checkpoint: KeptCheckpoint) -> None:
        if self._failure is not None:
            self._fail([entry], _not_reopened())
            return
        try:
            self._log.keep_checkpoint(checkpoint)
        except OutcomeUnknown as error:
            _log.error("the outcome of keeping a checkpoint is unknown", extra={"reason": str(error)})
            self._recover([entry], error)
        except Exception as error:
            # Not further up: the batch's commands have their answers already.
            self._fail([entry], error)

    def _switch(self, entry: _Entry, switch: Switch) -> None:
        if self._failure is not None:
            self._fail([entry], _not_reopened())
            return
        try:
            self._projector = switch.take_over(self._projector, self._head)
        except Exception as error:
            self._fail([entry], error)
            return
        # The file before may have been wrong, and so what was read from it.
        self._answers.forget_all()
        self._answers.changed(self._head)

    def _fail(self, entries: Sequence[_Entry], error: Exception) -> None:
        for entry in entries:
            entry.outcome = error

    def _one_by_one(self, entries: list[_Entry], error: Exception) -> None:
        """A defect of ours in one command must not fail its neighbours: find it by writing each alone."""
        if len(entries) == 1:
            entries[0].outcome = error
            return
        for entry in entries:
            self._write([entry])

    def _recover(self, entries: Sequence[_Entry], failure: OutcomeUnknown) -> None:
        """Reopen log and projection, catch up, and answer by what the log says; until then take nothing.

        Where a stop comes first, nobody is told what became of the commands: their outcome stays unknown.
        """
        self._refuse_queued(failure)
        self._tell(is_writing=False)
        before = self._head
        pause_s, told_at = REOPEN_S, -REOPEN_TOLD_S
        while (error := self._reopen()) is not None:
            if time.monotonic() - told_at >= REOPEN_TOLD_S:
                told_at = time.monotonic()
                _log.error("the log cannot be reopened; nothing is written", extra={"reason": str(error)})
            if self._stopping:
                self._fail(entries, _not_reopened())
                return
            # Of what is no command the log will have nothing to tell: who asked need not wait for it.
            others = [entry for entry in entries if isinstance(entry.job, NO_COMMANDS)]
            self._fail(others, _interrupted(failure))
            self._answer(others)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, REOPEN_S_MAX)
        if self._head > before:
            self._tell_freed()
        for entry in entries:
            try:
                entry.outcome = self._found(entry.job, failure)
            except Exception as error:
                entry.outcome = error
        with self._wake:
            self._failure = None
        self._tell(is_writing=True)

    def _refuse_queued(self, failure: OutcomeUnknown) -> None:
        """Take no commands from now on; what waits in the queue has been neither decided nor written."""
        with self._wake:
            self._failure = failure
            waiting = list(self._queue)
            self._queue.clear()
        self._fail(waiting, _reopening(failure))
        self._answer(waiting)

    def _tell(self, *, is_writing: bool) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_state, is_writing)

    def _reopen(self) -> Exception | None:
        """What went wrong, None if log and projection are open again and at the same position."""
        try:
            self._log.reopen()
            self._projector.close()
            self._projector, applied = self._open_projector()
            self._moved_to(applied)
            self._follow()
        except Exception as error:
            # Whatever it is: with a projection that is not at the head there is no going on.
            return error
        return None

    def _found(self, job: Job, failure: OutcomeUnknown) -> Outcome:
        """What became of a job whose outcome was unknown: read back, never guessed."""
        if isinstance(job, NO_COMMANDS):
            return _interrupted(failure)
        operation = self._projector.operation(job.asked.operation_id)
        if operation is None or (isinstance(job, Ending) and not operation["done"]):
            # The log was read back, and certainly has nothing of it.
            return _left_nothing(failure)
        return Written(self._projector.view(operation), operation["last"])


class _Late(Exception):
    """The batch took too long to decide."""


def _reopening(failure: OutcomeUnknown) -> Unavailable:
    why = f"the log is being reopened after a failure: {failure.reason}"
    return Unavailable(f"Nothing was written, {why}; {_remedy(failure)}", "LOG_REOPENING")


def _interrupted(failure: OutcomeUnknown) -> Unavailable:
    return Unavailable(
        f"The log is reopened after a failure: {failure.reason}; {_remedy(failure)}", "LOG_REOPENED"
    )


def _left_nothing(failure: OutcomeUnknown) -> CallRefused:
    message = f"The write failed and left nothing: {failure.reason}; {_remedy(failure)}"
    if failure.full:
        return CallRefused(StatusCode.RESOURCE_EXHAUSTED, message, reason="DISK_FULL")
    return Unavailable(message, "LOG_REOPENED")


def _remedy(failure: OutcomeUnknown) -> str:
    return "free some space on its disk, and try again" if failure.full else "try again, and look at its disk"


def _not_reopened() -> OutcomeUnknown:
    return OutcomeUnknown("the server stops before the log could be reopened")


def _settle(batch: Sequence[_Entry]) -> None:
    """In the event loop: hand every outcome to whoever waits for it."""
    for entry in batch:
        if entry.future.done():
            continue
        if isinstance(entry.outcome, Exception):
            entry.future.set_exception(entry.outcome)
        else:
            entry.future.set_result(entry.outcome)


def _as_append_failed(error: Exception) -> Exception:
    if isinstance(error, AppendFailed):
        return error
    return AppendFailed(f"the projection: {error}", database.is_full(error))


def _event(
    new: NewEvent, asked: Asked | None, position: Position, version: Version, stamp: int, *, first: bool
) -> Event:
    return Event(
        position=position,
        stream=new.stream,
        version=version,
        type=new.type,
        schema=new.schema,
        at=stamp,
        operation_id=None if asked is None else asked.operation_id,
        resource_id=new.resource_id or None,
        actor=SYSTEM_ACTOR if asked is None else asked.actor,
        auth=SYSTEM_AUTH if asked is None else asked.auth,
        request_id=None if asked is None else asked.request_id,
        method=asked.method if asked is not None and first else None,
        key=asked.key if asked is not None and first else None,
        request=asked.request if asked is not None and first else None,
        reason=None if asked is None else asked.reason,
        data=canonical(new.data),
    )
