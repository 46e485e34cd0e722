"""imageledger.v1.HistoryService: the events themselves, and what they changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from grpc import StatusCode

from eventstore.errors import LogCorrupt
from eventstore.event import Position
from eventstore.search import LogSearch, Wanted
from projections.diff import difference, touched
from projections.domain.command import Image, folder_stream
from projections.domain.refusals import NotFound
from projections.history import is_of_image
from projections.moments import AtHead, AtPosition, AtTime, Moment
from projections.queries import Queries
from projections.rows import RowDamaged
from server.answers import Answers, Kept
from server.blames import Blames, Search
from server.call import Call
from server.chapters import Chapter, Chapters, Page
from server.encode import NANOS
from server.encode_history import blame_bytes, diff_bytes, family_frame
from server.gen.google.protobuf import timestamp_pb2
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.handlers import Rpc
from server.logs import Logs
from server.moments import POLL_S, Moments
from server.proofs import PAGE_RECEIPTS, Proofs
from server.readers import Readers
from server.status import CallRefused
from server.watch import Batch, Watches, framed, read_batch

SERVICE = "imageledger.v1.HistoryService"
PAGE_EVENTS = 512
PAGE_POSITIONS = 50_000
PAGE_ANSWERS = 256
PAGE_IMAGES = 128
SETTLE_S_MAX = 1.0
BLAME_STEPS = 4
# What a google.protobuf.Timestamp may hold: the years 1 to 9999.
TIMESTAMP_SECONDS = range(-62_135_596_800, 253_402_300_800)
Done = TypeVar("Done")
P = ParamSpec("P")


class Range(NamedTuple):
    """Two positions, both included, the first one not after the last."""

    first: int
    last: int


class HistoryService:
    def __init__(
        self,
        *,
        log: LogSearch,
        queries: Queries,
        readers: Readers,
        logs: Logs,
        moments: Moments,
        watches: Watches,
        answers: Answers,
        proofs: Proofs,
    ) -> None:
        """`log` and `queries` are the event loop's own; the threads of `readers` read what is of any size."""
        self._log = log
        self._queries = queries
        self._readers = readers
        self._logs = logs
        self._moments = moments
        self._watches = watches
        self._answers = answers
        self._proofs = proofs
        self._chapters = Chapters()
        self._blames = Blames()

    def rpcs(self) -> dict[str, Rpc]:
        return {
            f"{SERVICE}/ReadEvents": Rpc(pb.ReadEventsRequest, download=self.read_events),
            f"{SERVICE}/Watch": Rpc(pb.WatchRequest, download=self.watch, stays=True),
            f"{SERVICE}/ReadPositions": Rpc(pb.ReadPositionsRequest, download=self.read_positions),
            f"{SERVICE}/ImageHistory": Rpc(pb.ImageHistoryRequest, download=self.image_history),
            f"{SERVICE}/FamilyHistory": Rpc(pb.FamilyHistoryRequest, download=self.family_history),
            f"{SERVICE}/Diff": Rpc(pb.DiffRequest, download=self.diff),
            f"{SERVICE}/Blame": Rpc(pb.BlameRequest, self.blame),
            f"{SERVICE}/ProveImage": Rpc(pb.ProveImageRequest, download=self.prove_image),
        }

    async def read_events(self, call: Call, request: pb.ReadEventsRequest) -> AsyncIterator[bytes]:
        asked = await self._range(call, request, newest=self._log.newest)
        await self._settled(asked.last)
        wanted = Wanted(
            stream=folder_stream(request.folder_id) if request.folder_id else None,
            resource_id=request.resource_id or None,
            operation_id=request.operation_id or None,
            actor=request.actor or None,
            type=request.type or None,
        )
        after = max(asked.first, 1) - 1
        while after < asked.last:
            wire, after = await self._run(call, _events, wanted, after, asked.last)
            if wire:
                yield wire

    async def watch(self, call: Call, request: pb.WatchRequest) -> AsyncIterator[bytes]:
        if "x-as-of" in call.metadata:
            message = "x-as-of asks about the past, and a watch waits for what comes: leave it out"
            raise _refused(StatusCode.INVALID_ARGUMENT, message, "x-as-of", "AS_OF_ON_WATCH")
        await self._moments.position(call)
        position = await self._watched_from(call, request)
        call.position = position - 1
        yield pb.WatchResponse(next_position=position).SerializeToString()

        async def read(first: int, last: int) -> Batch:
            return await self._run(call, lambda _, log: read_batch(log, first, last))

        async with aclosing(self._watches.watch(position, read=read)) as batches:
            async for batch in batches:
                yield batch.wire
                call.position = batch.next - 1

    async def read_positions(self, call: Call, request: pb.ReadPositionsRequest) -> AsyncIterator[bytes]:
        asked = await self._range(call, request, newest=self._applied)
        after = asked.first
        answer = pb.ReadPositionsResponse(from_position=asked.first, to_position=asked.last)
        while True:
            found = await self._run(call, _folder_positions, request.folder_id, after, asked.last)
            answer.positions.extend(found)
            yield answer.SerializeToString()
            if len(found) < PAGE_POSITIONS:
                return
            after = found[-1]
            answer = pb.ReadPositionsResponse()

    async def image_history(self, call: Call, request: pb.ImageHistoryRequest) -> AsyncIterator[bytes]:
        at, image_id = await self._head(call), request.image_id
        previous: Chapter | None = None
        page = self._chapters.first_page(self._log, image_id, until=at)
        if page is not None:
            _check_end(self._queries, page, image_id, at)
        while True:
            if page is None:
                page = await self._run(call, self._page, image_id, previous, at)
            if page.wire:
                yield page.wire
            if page.is_last:
                return
            previous, page = page.chapter, None

    def _page(
        self, queries: Queries, log: LogSearch, image_id: str, previous: Chapter | None, at: int
    ) -> Page:
        page = self._chapters.page(log, image_id, previous=previous, until=at)
        _check_end(queries, page, image_id, at)
        return page

    async def family_history(self, call: Call, request: pb.FamilyHistoryRequest) -> AsyncIterator[bytes]:
        at = await self._head(call)
        after: int | None = 0
        while after is not None:
            wire, after = await self._run(call, _answers, request, after, at)
            if wire:
                yield wire

    async def diff(self, call: Call, request: pb.DiffRequest) -> AsyncIterator[bytes]:
        if request.from_moment.WhichOneof("moment") is None:
            raise _refused(StatusCode.INVALID_ARGUMENT, "from_moment is required", "from_moment", "MOMENT")
        before, after = await self._range(call, request, newest=self._applied)
        ids: set[str] = set()
        reached = before
        while reached < after:
            found, reached = await self._run(call, _touched, request.folder_id, reached, after)
            ids |= found
        chosen = sorted(ids)
        for start in range(0, max(len(chosen), 1), PAGE_IMAGES):
            yield await self._run(call, _diff, chosen[start : start + PAGE_IMAGES], before, after)

    async def blame(self, call: Call, request: pb.BlameRequest) -> bytes:
        as_of = await self._moments.position(call) if call.asks_moment else None
        key = (request.image_id, "Blame", as_of)
        kept = None if call.names_position else self._answers.find(key)
        if kept is None:
            begun = self._answers.begin()
            at = self._applied() if as_of is None else as_of
            kept = await self._blame(call, request.image_id, at), at
            self._answers.keep(key, Kept(*kept, as_of is not None), begun=begun)
        wire, call.position = kept
        answer = wire + pb.BlameResponse(position=call.position).SerializeToString()
        return answer + await self._blame_proof(call, answer) if request.prove else answer

    async def _blame(self, call: Call, image_id: str, at: int) -> bytes:
        """All of a BlameResponse but its position."""
        image, search = await self._run(call, self._begun, image_id, at)
        while not search.is_done:
            await self._run(call, self._searched, search)
        return blame_bytes(image, self._blames.result(search))

    def _begun(self, queries: Queries, log: LogSearch, image_id: str, at: int) -> tuple[Image, Search]:
        image = queries.image_state(image_id, at=at)
        return image, self._searched(queries, log, self._blames.begin(log, image_id, at=at))

    def _searched(self, _: Queries, log: LogSearch, search: Search) -> Search:
        for _step in range(BLAME_STEPS):
            if search.is_done:
                break
            self._blames.go_on(log, search)
        return search

    async def _blame_proof(self, call: Call, answer: bytes) -> bytes:
        """The rest of a BlameResponse: the receipts of the events that it names."""
        positions = sorted({field.position for field in pb.BlameResponse.FromString(answer).fields})
        note = (await self._proofs.newest(positions[-1])).note
        receipts = await self._proofs.receipts(positions, note, deadline=call.deadline())
        return pb.BlameResponse(receipts=receipts, checkpoint=note).SerializeToString()

    async def prove_image(self, call: Call, request: pb.ProveImageRequest) -> AsyncIterator[bytes]:
        at, image_id = await self._head(call), request.image_id
        newest = await self._run(
            call, lambda _, log: log.newest_of_resource(image_id, after=0, until=at, limit=1)
        )
        if not newest or not is_of_image(newest[0]):
            raise NotFound("Image", image_id)
        note, after = (await self._proofs.newest(newest[0].position)).note, 0
        while after < newest[0].position:
            page = await self._run(call, lambda _, log: _positions(log, image_id, after=after, until=at))  # noqa: B023
            receipts = await self._proofs.receipts(page, note, deadline=call.deadline())
            yield pb.ProveImageResponse(receipts=receipts, checkpoint=note).SerializeToString()
            after = page[-1]

    async def _run(
        self,
        call: Call,
        step: Callable[Concatenate[Queries, LogSearch, P], Done],
        *arguments: P.args,
        **named: P.kwargs,
    ) -> Done:
        """A step of an answer, in a reading thread. None takes long, so a caller who hangs up ends them."""
        return await self._readers.run(
            lambda queries: step(queries, self._logs.get(), *arguments, **named), deadline=call.deadline()
        )

    def _applied(self) -> int:
        return self._queries.applied()[1]

    async def _head(self, call: Call) -> int:
        """The position that the call is answered as of."""
        at = await self._moments.position(call)
        call.position = self._applied() if at is None else at
        return call.position

    async def _settled(self, position: int) -> None:
        """What is only just durable is readable everywhere in a moment, which is waited for.

        Where it is not, the projection cannot follow the log: all the more reason to read its events.
        """
        give_up = time.monotonic() + SETTLE_S_MAX
        while self._applied() < position and time.monotonic() < give_up:
            await asyncio.sleep(POLL_S)

    async def _range(self, call: Call, request: Any, *, newest: Callable[[], int]) -> Range:
        """What from_moment and to_moment are. Without the first the range begins at 0. Raises CallRefused.

        `newest` gives the last position there is; as of a position, there is none behind that.
        """
        at = await self._moments.position(call)
        head = newest if at is None else lambda: at
        first = await self._resolved(call, request, "from_moment", head=head, default=AtPosition(0))
        last = await self._resolved(call, request, "to_moment", head=head, default=AtHead())
        if first > last:
            raise _refused(
                StatusCode.INVALID_ARGUMENT,
                f"from_moment is position {first}, which is after to_moment, position {last}",
                "from_moment",
                "RANGE_INVERTED",
            )
        # Whatever was written since, the answer is as of that.
        call.position = last
        return Range(first, last)

    async def _resolved(
        self, call: Call, request: Any, field: str, *, head: Callable[[], int], default: Moment
    ) -> int:
        moment = _moment(getattr(request, field), field) or default
        return await self._moments.resolve(moment, call, head=head, field=field)

    async def _watched_from(self, call: Call, request: pb.WatchRequest) -> int:
        following = self._applied() + 1
        moment = _moment(request.from_moment, "from_moment")
        if moment is None or moment == AtPosition(following):
            return following
        return max(1, await self._moments.resolve(moment, call, head=self._applied, field="from_moment"))


# The steps: what is asked of a projection and of the log in one go.


def _events(_: Queries, log: LogSearch, wanted: Wanted, after: int, until: int) -> tuple[bytes, int]:
    """Wanted events as a message, and the position up to which there are no others."""
    records, reached = log.stretch(wanted, after=after, until=until, limit=PAGE_EVENTS)
    wire, count = framed(records)
    return wire, reached if count == len(records) else records[count - 1].position


def _positions(log: LogSearch, image_id: str, *, after: int, until: int) -> list[int]:
    """Those of the image's next events, a page of them at most; needs one to be there."""
    events = log.events_of_resource(image_id, after=after, until=until, limit=PAGE_RECEIPTS)
    if not events:
        raise LogCorrupt(None, f"the index of resources lacks events of {image_id} after position {after}")
    return [event.position for event in events]


def _folder_positions(_: Queries, log: LogSearch, folder_id: str, after: int, until: int) -> list[int]:
    return log.positions_of_stream(folder_stream(folder_id), after=after, until=until, limit=PAGE_POSITIONS)


def _answers(
    queries: Queries, log: LogSearch, request: pb.FamilyHistoryRequest, after: int, at: int
) -> tuple[bytes, int | None]:
    """A page of a family's answers, and the position behind which others follow, if they do."""
    answers = queries.family_answers(
        request.folder_id, request.family, at=at, after=after, limit=PAGE_ANSWERS
    )
    frames = [family_frame(answer, log.event(Position(answer.since))) for answer in answers]
    return b"".join(frames), answers[-1].since if len(answers) == PAGE_ANSWERS else None


def _touched(_: Queries, log: LogSearch, folder_id: str, after: int, until: int) -> tuple[set[str], int]:
    return touched(log, folder_id=folder_id, after=after, until=until)


def _diff(queries: Queries, _: LogSearch, image_ids: list[str], before: int, after: int) -> bytes:
    found = (difference(queries, image_id, before=before, after=after) for image_id in image_ids)
    return diff_bytes([one for one in found if one is not None], before=before, after=after)


def _check_end(queries: Queries, page: Page, image_id: str, at: int) -> None:
    """Raises RowDamaged where the events lead to another image than the projection has.

    Nobody else would miss an event that a damaged index does not name.
    """
    if page.is_last and page.left_at is not None and page.left != _image(queries, image_id, at):
        raise RowDamaged(table="image", position=page.left_at)


def _image(queries: Queries, image_id: str, at: int) -> Any:
    try:
        return queries.image_state(image_id, at=at)
    except NotFound:
        return None


def _moment(message: pb.Moment, field: str) -> Moment | None:
    """None where nothing is asked for. Raises CallRefused."""
    match message.WhichOneof("moment"):
        case "position":
            return AtPosition(message.position)
        case "time":
            return AtTime(_ns(message.time, field))
        case "head":
            return AtHead()
        case _:
            return None


def _ns(time: timestamp_pb2.Timestamp, field: str) -> int:
    if time.seconds not in TIMESTAMP_SECONDS or not 0 <= time.nanos < NANOS:
        message = f"{field}.time is no Timestamp: seconds {time.seconds}, nanos {time.nanos}"
        raise _refused(StatusCode.INVALID_ARGUMENT, message, f"{field}.time", "MOMENT")
    return time.seconds * NANOS + time.nanos


def _refused(code: StatusCode, message: str, field: str, reason: str) -> CallRefused:
    return CallRefused(code, message, reason=reason, field=field)
