"""What waits for its caller: requests that have not come in full, and answers that are not taken.

gRPC bounds neither. A caller may send the head of a request and no more, or ask for a page and never read it:
each such call holds up to a MiB of its request, or its whole answer, while its connection answers pings. And
gRPC cannot end a call whose answer is being sent, so whoever does not take it loses the connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc
from grpc import StatusCode

from server.bounds import KIB, Bounds
from server.call import Call, ServicerContext
from server.connections import cut
from server.handlers import RETRY_AFTER_MS, Handlers, Rpc
from server.handlers import _refuse as refuse
from server.status import CallRefused

LOOK_S = 0.5
# What gRPC and we keep for a call whose answer is not taken, beside the answer.
CALL_BYTES = 25 * KIB
# How often an answer is in memory until it is taken: as our bytes and as gRPC's. A stream keeps what it made
# its message of, too.
COPIES, STREAMED_COPIES = 2, 3
# Only a larger answer is refused for want of room: a write's never is, for its caller must hear of it.
SMALL_BYTES = 64 * KIB

_log = logging.getLogger(__name__)


class _Named(NamedTuple):
    """All that a lookup needs of grpc.HandlerCallDetails."""

    method: str


class Waiting(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # Generic in the stubs alone.
    """The handlers, and of each of their calls whether it waits for its caller. Used from the event loop."""

    def __init__(
        self,
        handlers: Handlers,
        bounds: Bounds,
        *,
        clock: Callable[[], float] = time.monotonic,
        cut: Callable[[set[str]], int] = cut,
    ) -> None:
        """`clock` is monotonic, in seconds; `cut` ends the connections from these peers, and counts them."""
        self._handlers = handlers
        self._bounds = bounds
        self._clock = clock
        self._cut = cut
        self._served: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        # Requests that are not whole, and since when; the oldest comes first.
        self._arriving: dict[ServicerContext, float] = {}
        # The calls whose requests are; with the bytes that the answer of each holds, once gRPC has it.
        self._calls: dict[ServicerContext, int | None] = {}
        self._held_bytes = 0
        # Which of them waited when we last looked, and since which look.
        self._untaken: dict[ServicerContext, float] = {}
        # Calls of each peer that ended unanswered; each look halves them.
        self._faults: Counter[str] = Counter()
        self._connections_ended = 0
        self._refusals: set[asyncio.Task[bytes]] = set()

    def add(self, rpcs: Mapping[str, Rpc]) -> None:
        """Serve rpcs, each by its name `package.Service/Method`."""
        self._handlers.add(rpcs)
        for name in rpcs:
            handler = self._handlers.service(_Named("/" + name))  # type: ignore[arg-type]
            self._served["/" + name] = self._watched(name, handler)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        served = self._served.get(handler_call_details.method)
        return served or self._unknown(self._handlers.service(handler_call_details))

    async def look(self) -> None:
        """Look every half second who has waited too long; for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self.end_overdue()
            except Exception:
                # Nobody waits for this task, and without it nothing is bounded any more.
                _log.exception("calls that wait for their callers could not be looked at")

    def end_overdue(self) -> None:
        """Refuse the requests and cut the connections that have waited too long, or must make way."""
        now = self._clock()
        for context, since in list(self._arriving.items()):
            if now - since < self._bounds.arrival_s:
                break
            self._give_up(context, _incomplete(self._bounds.arrival_s))
        self._untaken = {
            context: self._untaken.get(context, now)
            for context, given in self._calls.items()
            if given is not None or context.done()
        }
        self._cut_off({context.peer() for context in self._overdue(now)})
        self._faults = Counter({peer: faults // 2 for peer, faults in self._faults.items() if faults > 1})
        if self._connections_ended:
            _log.warning(
                "connections were ended, whose calls hung up by the hundred or did not take their answers",
                extra={"connections": self._connections_ended},
            )
            self._connections_ended = 0

    def _overdue(self, now: float) -> list[ServicerContext]:
        """Those that have waited longer than what they hold allows, or that must make way."""
        bounds = self._bounds
        held = {context: self._calls[context] or 0 for context in self._untaken}
        is_full = sum(held.values()) + len(held) * CALL_BYTES > bounds.untaken_bytes_max // 2
        limit_s = bounds.make_way_s if is_full else bounds.untaken_s
        rate = bounds.making_way_bytes_per_s_min if is_full else bounds.taken_bytes_per_s_min
        return [
            context for context, size in held.items() if now - self._untaken[context] > limit_s + size / rate
        ]

    def _watched(
        self, name: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        if handler.request_streaming:
            # An upload has a rate to keep, and neither it nor reflection answers with much.
            return handler
        # Served as streams of one request: only those are ours before the request is whole.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._download(name, handler.unary_stream))
        return grpc.stream_unary_rpc_method_handler(self._unary(name, handler.unary_unary))

    def _unary(self, name: str, run: Any) -> Callable[[Any, ServicerContext], Awaitable[bytes]]:
        async def unary(_: Any, context: ServicerContext) -> bytes:
            try:
                raw = await self._whole(name, context)
                self._begin(context)
                answer: bytes = await run(raw, context)
            except asyncio.CancelledError:
                self._fault(context)
                raise
            if self._gives(context, len(answer), copies=COPIES):
                return answer
            del answer  # Refusing takes its time, and this is what there is no room for.
            return await self._refuse_for_room(name, context)

        return unary

    def _download(self, name: str, run: Any) -> Callable[[Any, ServicerContext], AsyncIterator[bytes]]:
        async def download(_: Any, context: ServicerContext) -> AsyncIterator[bytes]:
            raw = await self._whole(name, context)
            self._begin(context)
            async with aclosing(run(raw, context)) as answers:
                async for answer in answers:
                    if not self._gives(context, len(answer), copies=STREAMED_COPIES):
                        del answer
                        break
                    yield answer
                    self._taken(context)
                else:
                    return
            await self._refuse_for_room(name, context)

        return download

    def _unknown(self, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        refuse_it: Any = handler.stream_stream

        async def unknown(requests: Any, context: ServicerContext) -> None:
            self._begin(context)
            await refuse_it(requests, context)

        return grpc.stream_stream_rpc_method_handler(unknown)

    async def _whole(self, name: str, context: ServicerContext) -> bytes:
        """The request. Of too many that are not whole, the one that came first makes way."""
        if len(self._arriving) >= self._bounds.arriving_max:
            self._give_up(next(iter(self._arriving)), _too_many(self._bounds.arriving_max))
        self._arriving[context] = self._clock()
        try:
            raw = await context.read()
        finally:
            was_given_up = self._arriving.pop(context, None) is None
        if was_given_up:
            # It is being refused at this moment.
            raise asyncio.CancelledError
        if isinstance(raw, bytes):
            return raw
        self._fault(context)
        missing = f"{name} has one request, and none came"
        error = CallRefused(StatusCode.INVALID_ARGUMENT, missing, reason="REQUEST_MISSING")
        return await refuse(Call(name, context), error)

    def _give_up(self, context: ServicerContext, error: CallRefused) -> None:
        del self._arriving[context]
        self._fault(context)
        refusal = asyncio.create_task(refuse(Call("", context), error))
        self._refusals.add(refusal)
        refusal.add_done_callback(self._refused)

    def _refused(self, refusal: asyncio.Task[bytes]) -> None:
        self._refusals.discard(refusal)
        # Always an error: that of the abort, or of a caller who hung up. Nobody else asks for it.
        if not refusal.cancelled():
            refusal.exception()

    def _begin(self, context: ServicerContext) -> None:
        self._calls[context] = None
        context.add_done_callback(self._end)

    def _gives(self, context: ServicerContext, size_bytes: int, *, copies: int) -> bool:
        """Whether there is room for the answer, which is counted as not taken from now on."""
        held_bytes = size_bytes * copies
        if size_bytes > SMALL_BYTES and self._held_bytes + held_bytes > self._bounds.untaken_bytes_max:
            return False
        self._calls[context] = held_bytes
        self._held_bytes += held_bytes
        return True

    async def _refuse_for_room(self, name: str, context: ServicerContext) -> bytes:
        return await refuse(Call(name, context), _no_room(self._bounds.untaken_bytes_max))

    def _taken(self, context: ServicerContext) -> None:
        self._held_bytes -= self._calls[context] or 0
        self._calls[context] = None
        self._untaken.pop(context, None)

    def _end(self, context: ServicerContext) -> None:
        self._held_bytes -= self._calls.pop(context) or 0
        self._untaken.pop(context, None)

    def _fault(self, context: ServicerContext) -> None:
        """A call ended unanswered: hundreds at once, on one connection, keep others from being served."""
        peer = context.peer()
        self._faults[peer] += 1
        if self._faults[peer] >= self._bounds.faults_max:
            del self._faults[peer]
            self._cut_off({peer})

    def _cut_off(self, peers: set[str]) -> None:
        if peers:
            self._connections_ended += self._cut(peers)


def _incomplete(limit_s: float) -> CallRefused:
    return CallRefused(
        StatusCode.DEADLINE_EXCEEDED,
        f"The request did not come in full within {limit_s:g} s",
        reason="REQUEST_INCOMPLETE",
    )


def _too_many(limit: int) -> CallRefused:
    return CallRefused(
        StatusCode.RESOURCE_EXHAUSTED,
        f"The limit on requests that have not come in full has exceeded: {limit}",
        reason="TOO_MANY_INCOMPLETE",
        retry_after_ms=RETRY_AFTER_MS,
    )


def _no_room(limit_bytes: int) -> CallRefused:
    return CallRefused(
        StatusCode.RESOURCE_EXHAUSTED,
        f"The limit on bytes that answers hold until they are taken has exceeded: {limit_bytes}",
        reason="TOO_MANY_UNTAKEN",
        retry_after_ms=RETRY_AFTER_MS,
    )
