"""What stands in the writer's place where a copy of a log is served: it writes nothing, and knows the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from grpc import StatusCode

from eventstore.checkpoint import KeptCheckpoint
from projections.domain.decide import Command
from server.status import CallRefused
from server.writer import Switch, SystemEvent, Writer, Written


class NoWriter:
    """The writer of a log that does not grow. Calls that write are refused before they come here."""

    def __init__(self, *, head: int, clock: Callable[[], int]) -> None:
        self.applied = head
        self.alive = True
        self._clock = clock

    @property
    def closed_at(self) -> int:
        """Nothing will ever be stamped: every time that is past is closed."""
        return self._clock()

    def start(self) -> None:
        pass

    def begin_stop(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def submit(self, command: Command, *, deadline: float) -> Written:
        raise _refused()

    async def note(self, *events: SystemEvent) -> None:
        raise _refused()

    async def switch(self, switch: Switch) -> None:
        raise _refused()

    async def keep(self, checkpoint: KeptCheckpoint) -> None:
        raise _refused()

    async def close_time(self, at: int, *, deadline: float) -> None:
        """Nothing has to be kept: time goes on, and the log does not."""


def _refused() -> CallRefused:
    return CallRefused(
        StatusCode.FAILED_PRECONDITION,
        "This server serves a copy of a log, and signs and writes nothing: ask the server of the log",
        reason="READ_ONLY",
    )


AnyWriter: TypeAlias = Writer | NoWriter
