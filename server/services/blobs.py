"""imageledger.v1.BlobService: the bytes of an image, from any offset, and whether they are still right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing
from itertools import islice
from typing import TypeVar

from grpc import StatusCode

from projections.domain.command import Image
from projections.queries import Queries
from server.blobs import BlobDamaged, BlobMissing, BlobStore
from server.call import Call
from server.gen.imageledger.v1 import blob_service_pb2 as pb
from server.handlers import RETRY_AFTER_MS, Rpc
from server.moments import Moments
from server.status import CallRefused

SERVICE = "imageledger.v1.BlobService"
VERIFY_CHUNKS = 64  # 16 MiB.
# Each has a file open, and a chunk of it in memory.
DOWNLOADS_MAX = 256
Done = TypeVar("Done")


class BlobService:
    def __init__(self, *, queries: Queries, moments: Moments, blobs: BlobStore, threads: Executor) -> None:
        self._queries = queries
        self._moments = moments
        self._blobs = blobs
        self._threads = threads
        self._downloads = 0

    def rpcs(self) -> dict[str, Rpc]:
        return {
            f"{SERVICE}/Read": Rpc(pb.ReadBlobRequest, download=self.read),
            f"{SERVICE}/Verify": Rpc(pb.VerifyBlobRequest, self.verify),
        }

    async def read(self, call: Call, request: pb.ReadBlobRequest) -> AsyncIterator[bytes]:
        if self._downloads >= DOWNLOADS_MAX:
            raise CallRefused(
                StatusCode.RESOURCE_EXHAUSTED,
                f"The limit on downloads at once has exceeded: {DOWNLOADS_MAX}",
                reason="TOO_MANY_DOWNLOADS",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self._downloads += 1
        try:
            async with aclosing(self._read(call, request)) as parts:
                async for part in parts:
                    yield part
        finally:
            self._downloads -= 1

    async def _read(self, call: Call, request: pb.ReadBlobRequest) -> AsyncGenerator[bytes, None]:
        image = await self._image(call, request.image_id)
        if request.offset > image["storage_size"]:
            raise CallRefused(
                StatusCode.OUT_OF_RANGE,
                f"offset {request.offset} is beyond the image's {image['storage_size']} bytes",
                reason="OUT_OF_RANGE",
                field="offset",
            )
        chunks = self._chunks(image, request.offset)
        # The first chunk is read before anything is sent, so that a missing blob is a plain status.
        chunk = await self._in_thread(image, lambda: next(chunks, b""))
        yield pb.ReadBlobResponse(info=_info(image)).SerializeToString()
        while chunk:
            yield pb.ReadBlobResponse(chunk=chunk).SerializeToString()
            chunk = await self._in_thread(image, lambda: next(chunks, b""))

    async def verify(self, call: Call, request: pb.VerifyBlobRequest) -> bytes:
        image = await self._image(call, request.image_id)
        chunks = self._chunks(image, 0)
        # A step at a time, so that a caller who hangs up ends it.
        while await self._in_thread(image, lambda: sum(map(len, islice(chunks, VERIFY_CHUNKS)))):
            pass
        return pb.VerifyBlobResponse(info=_info(image)).SerializeToString()

    async def _image(self, call: Call, image_id: str) -> Image:
        """The image, which has bytes. Raises NotFound, CallRefused."""
        at = await self._moments.position(call)
        call.position = self._queries.applied()[1] if at is None else at
        image = self._queries.image_state(image_id, at=call.position)
        if not image["blob"]:
            raise CallRefused(
                StatusCode.FAILED_PRECONDITION,
                f'Image "{image_id}" has no bytes yet: operation "{image["operation_id"]}" is running',
                reason="IMAGE_BUSY",
            )
        return image

    def _chunks(self, image: Image, offset: int) -> Iterator[bytes]:
        return self._blobs.read(image["blob"]["sha256"], offset=offset, storage_size=image["storage_size"])

    async def _in_thread(self, image: Image, step: Callable[[], Done]) -> Done:
        """Run a step off the event loop. Raises CallRefused, naming the image, if its blob is not right."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, step)
        except (BlobMissing, BlobDamaged) as error:
            raise CallRefused(
                StatusCode.DATA_LOSS, f'Image "{image["id"]}": {error}', reason="BLOB_LOST"
            ) from error


def _info(image: Image) -> pb.BlobInfo:
    return pb.BlobInfo(
        sha256=image["blob"]["sha256"],
        format=image["blob"]["format"],
        storage_size=image["storage_size"],
    )
