"""imageledger.v1.StatusService: what an operator asks first."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import Executor
from importlib.metadata import version

from eventstore.reader import LogReader
from projections.queries import Queries
from server.blobs import BlobStore
from server.call import Call
from server.gen.imageledger.v1 import status_service_pb2 as pb
from server.handlers import Rpc
from server.importer import Import, Importer

SERVICE = "imageledger.v1.StatusService"
SOFTWARE = f"imageledger {version('imageledger')}"


class StatusService:
    def __init__(
        self,
        *,
        log: LogReader,
        queries: Queries,
        blobs: BlobStore,
        importer: Importer,
        threads: Executor,
        started_at: int,
        read_only: bool,
    ) -> None:
        self._read_only = read_only
        self._importer = importer
        self._log = log
        self._queries = queries
        self._blobs = blobs
        self._threads = threads
        self._started_at = started_at

    def rpcs(self) -> dict[str, Rpc]:
        return {f"{SERVICE}/Get": Rpc(pb.GetStatusRequest, self.get)}

    async def get(self, call: Call, request: pb.GetStatusRequest) -> bytes:
        _, applied, _ = self._queries.applied()
        call.position = applied
        newest = self._log.event(self._log.head())
        run = asyncio.get_running_loop().run_in_executor
        count, stored_bytes = await run(self._threads, self._blobs.count_and_bytes)
        disk = shutil.disk_usage(self._blobs.root)
        status = pb.Status(
            log_id=self._log.log_id,
            head=newest.position,
            applied_position=applied,
            newest_event=pb.Status.NewestEvent(position=newest.position, type=newest.type),
            blobs=pb.Status.Blobs(count=count, bytes=stored_bytes),
            free_bytes=disk.free,
            total_bytes=disk.total,
            software=SOFTWARE,
            read_only=self._read_only,
            imports=[_import_message(entry) for entry in self._importer.under_way()],
        )
        status.newest_event.at.FromNanoseconds(newest.at)
        status.started_at.FromNanoseconds(self._started_at)
        return status.SerializeToString()


def _import_message(entry: Import) -> pb.Status.Import:
    return pb.Status.Import(
        operation_id=entry.operation["id"],
        image_id=entry.image_id,
        uri=entry.location.shown(),
        running=entry.running,
        bytes=entry.fetched_bytes,
        total_bytes=entry.total_bytes or 0,
    )
