"""How long a call may wait for its caller. What this is good for is shown in conformance/test_hostile.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from server.bounds import KIB, MIB, Bounds
from server.call import Call
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.handlers import Gate, Handlers, Rpc
from server.identity import KEY_BYTES, Tokens
from server.waiting import Waiting

Code = grpc.StatusCode
BOUNDS = Bounds(
    arriving_max=3,
    arrival_s=20,
    # An answer counts twice: it is ours and gRPC's.
    untaken_bytes_max=2 * 8 * MIB,
    untaken_s=100,
    taken_bytes_per_s_min=2 * 16 * KIB,
    make_way_s=1,
    making_way_bytes_per_s_min=2 * 256 * KIB,
    faults_max=10,
)


REQUEST = pb.GetImageRequest(image_id="i").SerializeToString()


class Named(NamedTuple):
    method: str


class Context:
    """One call as gRPC shows it: its request comes, and its answer is taken, when a test says so."""

    def __init__(self, peer: str = "ipv4:127.0.0.1:1") -> None:
        self.request: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.aborted: list[Any] = []
        self._peer = peer
        self._on_end: list[Callable[[Any], None]] = []

    async def read(self) -> bytes:
        return await self.request

    def peer(self) -> str:
        return self._peer

    def done(self) -> bool:
        return bool(self.aborted)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._on_end.append(callback)

    def end(self) -> None:
        """The answer is taken."""
        for callback in self._on_end:
            callback(self)

    async def abort(self, code: grpc.StatusCode, message: str, trailing: Any) -> None:
        self.aborted.append((code, message))
        raise grpc.aio.AbortError("Locally aborted.")

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: Any) -> None:
        pass


class Server:
    """What is tested: its clock, whom it cut, and an rpc that answers with as many bytes as are wanted."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.cut: list[str] = []
        self.size = 0
        tokens = Tokens(bytes(KEY_BYTES), revoked_path=folder / "revoked", clock=lambda: 0)
        self.waiting = Waiting(
            Handlers(Gate(in_flight_max=100), tokens), BOUNDS, clock=lambda: self.now, cut=self._cut
        )
        self.waiting.add({"p.S/M": Rpc(pb.GetImageRequest, self._answer, is_open=True)})
        self._serve: Any = self.waiting.service(Named("/p.S/M")).stream_unary  # type: ignore[arg-type]

    def begin(self, context: Context) -> asyncio.Task[bytes]:
        return asyncio.ensure_future(self._serve(None, context))

    async def given(self, size: int, *, peer: str = "ipv4:127.0.0.1:1") -> Context:
        """A call whose answer is given to gRPC and not taken yet."""
        context = Context(peer)
        context.request.set_result(REQUEST)
        self.size = size
        await self.begin(context)
        return context

    def after(self, seconds: float) -> list[str]:
        """Who is cut, if this is when the server looks next."""
        self.now += seconds
        self.cut.clear()
        self.waiting.end_overdue()
        return sorted(self.cut)

    async def _answer(self, call: Call, request: Any) -> bytes:
        return bytes(self.size)

    def _cut(self, peers: set[str]) -> int:
        self.cut.extend(peers)
        return len(peers)


def run(test: Callable[[Server], Awaitable[None]], folder: Path) -> None:
    async def in_loop() -> None:
        await test(Server(folder))

    asyncio.run(in_loop())


async def settled() -> None:
    """Everything that can go on has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


# Requests.


def test_a_request_has_its_time_to_come(tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        early, late = Context(), Context()
        waits = server.begin(early)
        await settled()
        server.after(19)
        server.begin(late)
        await settled()
        server.after(0.9)
        assert not early.aborted
        server.after(0.1)
        await settled()
        assert early.aborted == [(Code.DEADLINE_EXCEEDED, "The request did not come in full within 20 s")]
        assert not late.aborted
        late.request.set_result(REQUEST)
        early.request.set_result(REQUEST)
        with pytest.raises(asyncio.CancelledError):
            await waits

    run(test, tmp_path)


def test_the_request_that_came_first_makes_way(tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        contexts = [Context() for _ in range(5)]
        calls = [server.begin(context) for context in contexts]
        await settled()
        assert [len(context.aborted) for context in contexts] == [1, 1, 0, 0, 0]
        assert contexts[0].aborted[0][0] is Code.RESOURCE_EXHAUSTED
        # A request that comes after it was given up is not served.
        for context in contexts:
            context.request.set_result(REQUEST)
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in told[:2]] == [asyncio.CancelledError] * 2
        assert told[2:] == [b""] * 3

    run(test, tmp_path)


# Answers.


def test_an_answer_has_time_to_be_taken_by_its_size(tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        await server.given(160 * KIB, peer="a")
        await server.given(0, peer="b")
        assert server.after(0) == []
        assert server.after(100) == []
        assert server.after(1) == ["b"]
        assert server.after(9) == ["b"]
        assert server.after(1) == ["a", "b"]

    run(test, tmp_path)


def test_an_answer_that_is_taken_is_not_waited_for(tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        context = await server.given(1)
        server.after(0)
        context.end()
        assert server.after(1000) == []

    run(test, tmp_path)


def test_the_slow_make_way_when_half_of_the_room_is_taken(tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        await server.given(3 * MIB, peer="large")
        small = await server.given(1, peer="small")
        server.after(0)
        assert server.after(50) == []
        newest = await server.given(MIB, peer="newest")
        assert server.after(0) == ["large", "small"]
        newest.end()
        small.end()
        # There is room again, and its time by its size is not over.
        assert server.after(0) == []

    run(test, tmp_path)


def test_only_a_large_answer_is_refused_for_want_of_room(tmp_path: Path) -> None:
    """A small one may be that of a write, whose caller must hear of it."""

    async def test(server: Server) -> None:
        first = await server.given(6 * MIB)
        with pytest.raises(grpc.aio.AbortError):
            await server.given(3 * MIB)
        await server.given(64 * KIB)
        first.end()
        await server.given(3 * MIB)

    run(test, tmp_path)


# Connections whose calls end unanswered.


def hang_up(server: Server, peer: str) -> asyncio.Task[bytes]:
    call = server.begin(Context(peer))
    asyncio.get_running_loop().call_soon(call.cancel)
    return call


@pytest.mark.parametrize(
    ("each_look", "is_cut"),
    [
        pytest.param([9], False, id="nine-at-once"),
        pytest.param([10], True, id="ten-at-once"),
        pytest.param([5, 5, 5, 5, 5, 5], False, id="five-a-look"),
        pytest.param([6, 6, 6], True, id="six-a-look"),
    ],
)
def test_a_connection_whose_calls_hang_up(tmp_path: Path, each_look: list[int], is_cut: bool) -> None:
    async def test(server: Server) -> None:
        cut: list[str] = []
        for number in each_look:
            for _ in range(number):
                await asyncio.gather(hang_up(server, "hasty"), return_exceptions=True)
            await asyncio.gather(hang_up(server, "calm"), return_exceptions=True)
            cut += server.cut
            server.after(0.5)
        assert cut == ["hasty"] * is_cut

    run(test, tmp_path)
