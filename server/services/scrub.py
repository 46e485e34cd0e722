"""imageledger.v1.ScrubService: whether all that is stored is as it was written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict

from grpc import StatusCode

from eventstore.finding import Finding
from server.call import Call
from server.gen.imageledger.v1 import scrub_service_pb2 as pb
from server.handlers import Rpc
from server.scrub import Checked, Part
from server.scrubber import BYTES_PER_SECOND, Scrubber, Stopped
from server.status import CallRefused

SERVICE = "imageledger.v1.ScrubService"


class ScrubService:
    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber

    def rpcs(self) -> dict[str, Rpc]:
        # It stays: a scrub does not hold up a stop, which ends it.
        return {f"{SERVICE}/Scrub": Rpc(pb.ScrubRequest, download=self.scrub, reads=False, stays=True)}

    async def scrub(self, call: Call, request: pb.ScrubRequest) -> AsyncIterator[bytes]:
        said = _Said()
        rate = request.bytes_per_second or BYTES_PER_SECOND
        task = self._scrubber.begin(said, bytes_per_second=rate)
        task.add_done_callback(said.end)
        try:
            while (message := await said.next()) is not None:
                yield message.SerializeToString()
            yield pb.ScrubResponse(checked=pb.ScrubChecked(**asdict(await _ended(task)))).SerializeToString()
        finally:
            self._scrubber.give_up(task)


class _Said:
    """What there is to send. A caller who is slow hears of less progress, and of every finding."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[pb.ScrubResponse | None] = asyncio.Queue()
        self._part: Part | None = None

    def progress(self, part: Part, done: int, total: int) -> None:
        if part != self._part or self._said.empty():
            self._part = part
            progress = pb.ScrubProgress(part=part, done=done, total=total)
            self._said.put_nowait(pb.ScrubResponse(progress=progress))

    def finding(self, part: Part, found: Finding) -> None:
        finding = pb.ScrubFinding(
            kind=found.kind,
            part=part,
            position=found.position or 0,
            message=found.message,
            remedy=found.remedy,
        )
        self._said.put_nowait(pb.ScrubResponse(finding=finding))

    def end(self, task: asyncio.Task[Checked]) -> None:
        self._said.put_nowait(None)

    async def next(self) -> pb.ScrubResponse | None:
        return await self._said.get()


async def _ended(task: asyncio.Task[Checked]) -> Checked:
    try:
        return await task
    except Stopped:
        raise CallRefused(StatusCode.UNAVAILABLE, "The server is stopping", reason="STOPPING") from None
