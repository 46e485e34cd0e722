"""imageledger.v1.BlobService: the bytes of an image, from any offset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from grpc import StatusCode

from projections.queries import Queries
from server.blobs import BlobStore
from server.call import Call
from server.gen.imageledger.v1 import blob_service_pb2 as pb
from server.handlers import Rpc
from server.moments import Moments
from server.status import CallRefused

SERVICE = "imageledger.v1.BlobService"


class BlobService:
    def __init__(self, *, queries: Queries, moments: Moments, blobs: BlobStore, threads: Executor) -> None:
        self._queries = queries
        self._moments = moments
        self._blobs = blobs
        self._threads = threads

    def rpcs(self) -> dict[str, Rpc]:
        return {f"{SERVICE}/Read": Rpc(pb.ReadBlobRequest, download=self.read)}

    async def read(self, call: Call, request: pb.ReadBlobRequest) -> AsyncIterator[bytes]:
        at = await self._moments.position(call)
        call.position = self._queries.applied()[1] if at is None else at
        image = self._queries.image_state(request.image_id, at=call.position)
        if not image["blob"]:
            raise CallRefused(
                StatusCode.FAILED_PRECONDITION,
                f'Image "{request.image_id}" has no bytes yet:'
                f' operation "{image["operation_id"]}" is running',
                reason="IMAGE_BUSY",
            )
        if request.offset > image["storage_size"]:
            raise CallRefused(
                StatusCode.OUT_OF_RANGE,
                f"offset {request.offset} is beyond the image's {image['storage_size']} bytes",
                reason="OUT_OF_RANGE",
                field="offset",
            )
        info = pb.BlobInfo(
            sha256=image["blob"]["sha256"],
            format=image["blob"]["format"],
            storage_size=image["storage_size"],
        )
        chunks = self._blobs.read(info.sha256, offset=request.offset, storage_size=info.storage_size)
        run = asyncio.get_running_loop().run_in_executor
        # The first chunk is read before anything is sent, so that a missing blob is a plain status.
        chunk = await run(self._threads, next, chunks, b"")
        yield pb.ReadBlobResponse(info=info).SerializeToString()
        while chunk:
            yield pb.ReadBlobResponse(chunk=chunk).SerializeToString()
            chunk = await run(self._threads, next, chunks, b"")
