"""Which position a reading call is answered at: `x-as-of` and `x-min-position`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from grpc import StatusCode

from eventstore.event import Position
from eventstore.reader import LogReader
from projections.moments import (
    AtHead,
    AtPosition,
    AtTime,
    Moment,
    TimeBeyondLogs,
    format_time,
    parse_moment,
)
from projections.queries import Queries
from server.call import Call
from server.read_only import AnyWriter
from server.status import CallRefused

SETTLE_NS = 2_000_000_000
POLL_S = 0.01
WAIT_S_MAX = 5.0


class Moments:
    """Resolves moments to positions, so that an answer once given never changes."""

    def __init__(
        self, log: LogReader, queries: Queries, writer: AnyWriter, *, clock: Callable[[], int]
    ) -> None:
        self._log = log
        self._queries = queries
        self._writer = writer
        self._clock = clock
        # The applied position and its event's time when they were last asked for: they never go back.
        self._applied = 0
        self._newest = 0

    async def position(self, call: Call) -> int | None:
        """The position that the call asks as of; None is now. Raises CallRefused, MomentInvalid."""
        metadata = call.metadata
        if "x-min-position" in metadata:
            await self._wait_for(call)
        text = metadata.get("x-as-of")
        if text is None:
            return None
        try:
            moment = parse_moment(text)
        except TimeBeyondLogs as error:
            raise self._before_the_log() if error.is_past else self._in_the_future(text) from None
        if isinstance(moment, AtPosition):
            return self._known(moment.position)
        return await self._at_time(moment.ns, call)

    async def resolve(self, moment: Moment, call: Call, *, head: Callable[[], int], field: str) -> int:
        """The position of a moment that a field of the request names, by the same rules.

        `head` gives the last position that may be asked for; it is asked when times have settled.
        Raises CallRefused.
        """
        match moment:
            case AtHead():
                return head()
            case AtPosition(position):
                pass
            case AtTime(ns):
                position = await self._at_time_of(field, ns, call)
        if position > (last := head()):
            raise _out_of_range(f"Position {position} is beyond the head of the log, {last}", field)
        return position

    async def _at_time_of(self, field: str, ns: int, call: Call) -> int:
        try:
            return await self._at_time(ns, call)
        except CallRefused as refused:
            if refused.field is None:
                raise
            raise CallRefused(refused.code, str(refused), reason=refused.reason, field=field) from None

    def _known(self, position: int) -> int:
        if not self._has_applied(position):
            raise _out_of_range(
                f"Position {position} is beyond the head of the log, {self._applied}", "x-as-of"
            )
        return position

    def _look(self) -> None:
        _, self._applied, self._newest = self._queries.applied()

    async def _at_time(self, at: int, call: Call) -> int:
        if at > self._newest:
            self._look()
        if at > self._newest and at > self._writer.closed_at:
            await self._settle(at, call)
        position = self._log.position_at(at)
        if position == 0:
            raise self._before_the_log()
        return position

    def _before_the_log(self) -> CallRefused:
        begins = format_time(self._log.at(Position(1)))
        return _out_of_range(f"The log begins at {begins}: there is nothing before it", "x-as-of")

    def _in_the_future(self, time_text: str) -> CallRefused:
        now = format_time(self._clock())
        return _out_of_range(f"{time_text} is in the future: it is {now} here", "x-as-of")

    async def _settle(self, at: int, call: Call) -> None:
        """Wait until nothing can be stamped at or before `at` any more."""
        now = self._clock()
        if at > now:
            raise self._in_the_future(format_time(at))
        if now - at < SETTLE_NS:
            await asyncio.sleep((SETTLE_NS - (now - at)) / 1e9)
        await self._writer.close_time(at, deadline=call.deadline())

    async def _wait_for(self, call: Call) -> None:
        text = str(call.metadata["x-min-position"])
        if not text.isascii() or not text.isdecimal() or len(text) > 19:
            raise CallRefused(
                StatusCode.INVALID_ARGUMENT,
                "x-min-position must be a position, like 1234",
                reason="HEADER_INVALID",
                field="x-min-position",
            )
        wanted = int(text)
        if wanted <= self._applied:
            return
        head = self._log.head()
        if wanted > head:
            raise _out_of_range(f"Position {wanted} is beyond the head of the log, {head}", "x-min-position")
        give_up = min(time.monotonic() + WAIT_S_MAX, call.deadline())
        while not self._has_applied(wanted):
            if time.monotonic() > give_up:
                raise CallRefused(
                    StatusCode.UNAVAILABLE,
                    f"Position {wanted} is in the log and not applied here yet: try again",
                    reason="NOT_APPLIED",
                )
            await asyncio.sleep(POLL_S)

    def _has_applied(self, position: int) -> bool:
        if position > self._applied:
            self._look()
        return position <= self._applied


def _out_of_range(message: str, field: str) -> CallRefused:
    return CallRefused(StatusCode.OUT_OF_RANGE, message, reason="OUT_OF_RANGE", field=field)
