"""From the wire to a service's method and back: identity, limits, parsing and statuses, once for all rpcs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import StatusCode

from projections.domain.refusals import NAME_SHOWN_MAX
from server.call import Call, ServicerContext
from server.identity import Tokens
from server.status import DETAILS_KEY, INTERNAL, CallRefused, Refusal, details, refusal_of
from server.validate import parse

RETRY_AFTER_MS = 200
STAYING_MAX = 512

_log = logging.getLogger(__name__)
# What gRPC logs with a stack trace though it is the caller's doing: header bytes that are no UTF-8, which may
# be a token, and an answer to a caller who has just hung up.
CALLERS_DOING = ("Invalid encoding on", "ExecuteBatchError raised in core")
logging.getLogger("grpc._cython.cygrpc").addFilter(
    lambda record: not str(record.msg).startswith(CALLERS_DOING)
)
Unary = Callable[[Call, Any], Awaitable[bytes]]
Download = Callable[[Call, Any], AsyncIterator[bytes]]
Upload = Callable[[Call, AsyncIterator[Any]], Awaitable[bytes]]
Duplex = Callable[[Call, AsyncIterator[Any]], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Rpc:
    """How one rpc is served. Exactly one of unary, upload, download and duplex is set.

    `reads` rpcs accept as-of headers; `is_open` ones need no token; `late_initial` ones know their initial
    metadata only with the answer; `stays`: a stream without an end of its own; `always`: answered by a full
    or stopping server, too.
    """

    request: type[Message]
    unary: Unary | None = None
    download: Download | None = None
    upload: Upload | None = None
    duplex: Duplex | None = None
    reads: bool = True
    is_open: bool = False
    late_initial: bool = False
    stays: bool = False
    always: bool = False


class Gate:
    """Who may come in: how many calls are under way, and whether the server is going away."""

    def __init__(self, *, in_flight_max: int, staying_max: int = STAYING_MAX) -> None:
        self.in_flight_max = in_flight_max
        # Counted apart: a health watch needs no token, and must not keep those out who have one.
        self.staying_max = staying_max
        self.in_flight = 0
        self.staying = 0
        self.closed = False
        # When it was closed, or the last call was refused because of that; monotonic, in seconds.
        self.refused_at = 0.0

    def close(self) -> None:
        """Refuse every call from now on."""
        self.closed = True
        self.refused_at = time.monotonic()

    def enter(self, *, stays: bool = False) -> None:
        """Count a call in; one that `stays` (a watch) does not hold up a stop. Raises CallRefused."""
        if self.closed:
            self.refused_at = time.monotonic()
            raise CallRefused(StatusCode.UNAVAILABLE, "The server is stopping", reason="STOPPING")
        if stays:
            if self.staying >= self.staying_max:
                raise CallRefused(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"The limit on open watches has exceeded: {self.staying_max}",
                    reason="TOO_MANY_WATCHES",
                )
            self.staying += 1
            return
        if self.in_flight >= self.in_flight_max:
            raise CallRefused(
                StatusCode.RESOURCE_EXHAUSTED,
                f"The limit on calls in flight has exceeded: {self.in_flight_max}",
                reason="TOO_MANY_CALLS",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self.in_flight += 1

    def leave(self, *, stays: bool = False) -> None:
        if stays:
            self.staying -= 1
        else:
            self.in_flight -= 1


class Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # Generic in the stubs alone.
    """All rpcs of ours, looked up by their path."""

    def __init__(self, gate: Gate, tokens: Tokens, *, read_only: bool = False) -> None:
        """`read_only`: whatever does not read is refused."""
        self._gate = gate
        self._tokens = tokens
        self._read_only = read_only
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.services: set[str] = set()

    def add(self, rpcs: Mapping[str, Rpc]) -> None:
        """Serve rpcs, each by its name `package.Service/Method`."""
        for name, rpc in rpcs.items():
            self._handlers["/" + name] = self._handler(name, rpc)
            self.services.add(name.partition("/")[0])

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return self._handlers.get(handler_call_details.method) or _unknown(handler_call_details.method)

    def _handler(self, name: str, rpc: Rpc) -> grpc.RpcMethodHandler[Any, Any]:
        if rpc.upload is not None:
            return grpc.stream_unary_rpc_method_handler(self._upload(name, rpc, rpc.upload))
        if rpc.download is not None:
            return grpc.unary_stream_rpc_method_handler(self._download(name, rpc, rpc.download))
        if rpc.duplex is not None:
            return grpc.stream_stream_rpc_method_handler(self._duplex(name, rpc, rpc.duplex))
        if rpc.unary is None:
            raise AssertionError(f"{name} is served by nothing")
        return grpc.unary_unary_rpc_method_handler(self._unary(name, rpc, rpc.unary))

    def _unary(self, name: str, rpc: Rpc, run: Unary) -> Any:
        gate, parse_request, late_initial = self._gate, rpc.request, rpc.late_initial

        # The hot path, written out: a context manager would cost a Get several per cent.
        async def unary(raw: bytes, context: ServicerContext) -> bytes:
            call = Call(name, context)
            entered = False
            try:
                if not rpc.always:
                    gate.enter()
                    entered = True
                self._admit(call, rpc)
                if call.has_ids and not late_initial:
                    await call.send_initial()
                answer = await run(call, parse(parse_request, raw))
                if late_initial:
                    await call.send_initial()
                context.set_trailing_metadata(call.closing())
                return answer
            except Exception as error:
                return await _refuse(call, error)
            finally:
                if entered:
                    gate.leave()

        return unary

    def _upload(self, name: str, rpc: Rpc, run: Upload) -> Any:
        async def upload(raws: AsyncIterator[bytes], context: ServicerContext) -> bytes:
            call = Call(name, context)
            async with self._serving(call, rpc):
                return await run(call, _parsed(rpc, raws))
            raise AssertionError("a refused call goes on")

        return upload

    def _download(self, name: str, rpc: Rpc, run: Download) -> Any:
        async def download(raw: bytes, context: ServicerContext) -> AsyncIterator[bytes]:
            call = Call(name, context)
            async with self._serving(call, rpc):
                async for answer in run(call, parse(rpc.request, raw)):
                    yield answer

        return download

    def _duplex(self, name: str, rpc: Rpc, run: Duplex) -> Any:
        async def duplex(raws: AsyncIterator[bytes], context: ServicerContext) -> AsyncIterator[bytes]:
            call = Call(name, context)
            async with self._serving(call, rpc):
                async for answer in run(call, _parsed(rpc, raws)):
                    yield answer

        return duplex

    @asynccontextmanager
    async def _serving(self, call: Call, rpc: Rpc) -> AsyncIterator[None]:
        """Around a streaming call: the same steps as a unary one takes."""
        entered = False
        try:
            self._gate.enter(stays=rpc.stays)
            entered = True
            self._admit(call, rpc)
            await call.send_initial()
            yield
            call.context.set_trailing_metadata(call.closing())
        except Exception as error:
            await _refuse(call, error)
        finally:
            if entered:
                self._gate.leave(stays=rpc.stays)

    def _admit(self, call: Call, rpc: Rpc) -> None:
        if not rpc.is_open:
            call.actor = self._tokens.bearer(call.text("authorization") or "")
        if not rpc.reads:
            self._admit_write(call)

    def _admit_write(self, call: Call) -> None:
        if self._read_only:
            raise CallRefused(
                StatusCode.FAILED_PRECONDITION,
                "This server serves a copy of a log, which nothing is written to: ask the server of the log",
                reason="READ_ONLY",
            )
        if "x-as-of" in call.metadata:
            raise CallRefused(
                StatusCode.INVALID_ARGUMENT,
                "x-as-of asks about the past, and this method changes the present: leave it out",
                reason="AS_OF_ON_WRITE",
                field="x-as-of",
            )


def _unknown(method: str) -> grpc.RpcMethodHandler[Any, Any]:
    """Refuses a method that is not there with our details, which gRPC's own refusal lacks."""

    async def refuse(_: AsyncIterator[bytes], context: ServicerContext) -> None:
        message = f'Method "{method[:NAME_SHOWN_MAX]}" not found'
        await _refuse(
            Call(method, context), CallRefused(StatusCode.UNIMPLEMENTED, message, reason="UNIMPLEMENTED")
        )

    return grpc.stream_stream_rpc_method_handler(refuse)


async def _parsed(rpc: Rpc, raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for raw in raws:
        yield parse(rpc.request, raw)


async def _refuse(call: Call, error: Exception) -> bytes:
    """End the call with the status of the error; what is our fault is logged once and not shown."""
    # gRPC's own: an abort under way, or an answer that nobody takes any more.
    if isinstance(error, grpc.aio.BaseError):
        raise error
    refusal = refusal_of(error)
    if refusal is None:
        _log.error(
            "a call failed for a reason of ours",
            extra={"method": call.method, "request_id": call.request_id},
            exc_info=error,
        )
        refusal = INTERNAL
    await call.send_initial()
    return await _abort(call, refusal)


async def _abort(call: Call, refusal: Refusal) -> bytes:
    trailing: list[tuple[str, str | bytes]] = [*call.closing()]
    if refusal.retry_after_ms is not None:
        trailing.append(("grpc-retry-pushback-ms", str(refusal.retry_after_ms)))
    trailing.append((DETAILS_KEY, details(refusal, request_id=call.request_id)))
    await call.context.abort(refusal.code, refusal.message, tuple(trailing))
    raise asyncio.CancelledError  # Not reached: abort raises.
