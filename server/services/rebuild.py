"""imageledger.v1.RebuildService: the projection anew, while the server goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc import StatusCode

from server.call import Call
from server.gen.imageledger.v1 import rebuild_service_pb2 as pb
from server.handlers import Rpc
from server.rebuilder import Rebuilder, Replaced
from server.status import CallRefused

SERVICE = "imageledger.v1.RebuildService"


class RebuildService:
    def __init__(self, rebuilder: Rebuilder) -> None:
        self._rebuilder = rebuilder

    def rpcs(self) -> dict[str, Rpc]:
        # It stays: a rebuild does not hold up a stop, which ends it.
        return {f"{SERVICE}/Rebuild": Rpc(pb.RebuildRequest, download=self.rebuild, reads=False, stays=True)}

    async def rebuild(self, call: Call, request: pb.RebuildRequest) -> AsyncIterator[bytes]:
        said: asyncio.Queue[pb.RebuildProgress | None] = asyncio.Queue()

        def tell(stage: str, done: int, events: int) -> None:
            said.put_nowait(pb.RebuildProgress(stage=stage, done=done, events=events))

        task = self._rebuilder.begin(tell)
        task.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (progress := await said.get()) is not None:
                yield progress.SerializeToString()
            yield pb.RebuildProgress(rebuilt=_rebuilt(await _ended(task))).SerializeToString()
        finally:
            self._rebuilder.give_up(task)


async def _ended(task: asyncio.Task[Replaced]) -> Replaced:
    if task.cancelled():
        raise CallRefused(StatusCode.UNAVAILABLE, "The server is stopping", reason="STOPPING")
    return await task


def _rebuilt(replaced: Replaced) -> pb.Rebuilt:
    rebuilt = replaced.rebuilt
    return pb.Rebuilt(
        events=rebuilt.events,
        seconds=rebuilt.seconds,
        digest_before=rebuilt.digest_before or "",
        digest_after=rebuilt.digest_after,
        damage=rebuilt.damage or "",
        kept=rebuilt.kept or "",
        position=replaced.position,
        pause_seconds=replaced.pause_s,
    )
