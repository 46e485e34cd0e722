"""grpc.health and grpc.reflection: the standard services, behind the same gate as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from projections.domain.refusals import NotFound
from server.call import Call
from server.gen.pool import POOL
from server.handlers import RETRY_AFTER_MS, Rpc
from server.status import CallRefused

HEALTH = "grpc.health.v1.Health"
# The messages of v1 are those of v1alpha under another package name; clients ask for either.
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

# Each may hold a MiB of a request that does not come to its end.
REFLECTIONS_MAX = 16

# Reflection describes these, too, from the pool that describes our own services.
for _file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
    POOL.AddSerializedFile(_file.serialized_pb)


class Health:
    """Whether calls are answered, for all services alike; watchers are told of every change."""

    def __init__(self, services: Callable[[], Collection[str]]) -> None:
        self._services = services
        self._status = health_pb2.HealthCheckResponse.NOT_SERVING
        self._is_serving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    def rpcs(self) -> dict[str, Rpc]:
        request = health_pb2.HealthCheckRequest
        return {
            f"{HEALTH}/Check": Rpc(request, self.check, is_open=True, always=True),
            f"{HEALTH}/Watch": Rpc(request, download=self.watch, is_open=True, stays=True),
        }

    def writing(self, is_writing: bool) -> None:
        """Whether commands are taken: a server that only reads is no place to send a caller to."""
        if self._is_serving:
            task = asyncio.create_task(self._say(is_writing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def serving(self, is_serving: bool) -> None:
        self._is_serving = is_serving
        await self._say(is_serving)

    async def _say(self, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        async with self._changed:
            self._status = status.SERVING if is_serving else status.NOT_SERVING
            self._changed.notify_all()

    async def check(self, call: Call, request: health_pb2.HealthCheckRequest) -> bytes:
        if not self._is_known(request.service):
            raise NotFound("Service", request.service)
        return self._answer(self._status)

    async def watch(self, call: Call, request: health_pb2.HealthCheckRequest) -> AsyncIterator[bytes]:
        if not self._is_known(request.service):
            # The health protocol wants the stream kept open, in case the service appears; ours never do.
            yield self._answer(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            await asyncio.Event().wait()
        told: Any = None
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._status != told)  # noqa: B023
                told = self._status
            yield self._answer(told)

    def _is_known(self, service: str) -> bool:
        return not service or service in self._services()

    def _answer(self, status: Any) -> bytes:
        answer: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return answer


class Reflection:
    """What is served here, for tools that know no .proto file."""

    def __init__(self, services: Callable[[], Collection[str]]) -> None:
        self._services = services
        self._open = 0

    def rpcs(self) -> dict[str, Rpc]:
        request = reflection_pb2.ServerReflectionRequest
        return {
            f"{service}/ServerReflectionInfo": Rpc(request, duplex=self.info, stays=True)
            for service in REFLECTION
        }

    async def info(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        if self._open >= REFLECTIONS_MAX:
            raise CallRefused(
                StatusCode.RESOURCE_EXHAUSTED,
                f"The limit on reflections at once has exceeded: {REFLECTIONS_MAX}",
                reason="TOO_MANY_REFLECTIONS",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self._open += 1
        try:
            servicer = ReflectionServicer(self._services(), POOL)
            async for answer in servicer.ServerReflectionInfo(requests, None):
                yield answer.SerializeToString()
        finally:
            self._open -= 1
