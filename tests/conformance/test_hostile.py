"""Callers who mean harm: the server's memory stays bounded, and others are served meanwhile.

Each attack meets a server of its own, since memory that one attack has freed would hide what the next one
takes. Where a bound on memory is what a test is about, the same attack takes hundreds of MiB without it.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from server.gen.imageledger.v1 import blob_service_pb2, source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.handlers import STAYING_MAX
from server.health import REFLECTIONS_MAX
from server.services.blobs import DOWNLOADS_MAX
from tests.conformance import bounded, wire
from tests.conformance.api import HEALTH, MIB, Api, Code, code_of, refused
from tests.conformance.hostile import (
    CONTINUATION,
    PATIENCE_S,
    WINDOW_UPDATE,
    Connection,
    framed,
    head,
    watched,
)
from tests.conformance.tls import serving_over_tls
from tests.harness import BLOBS, IMAGES, SOURCES, Server

GREETING = wire.PREFACE + wire.frame(wire.SETTINGS)
WINDOW = 65_535
GET = f"/{IMAGES}/Get"
LIST = f"/{IMAGES}/List"
WATCH = f"/{HEALTH}/Watch"
HALF_A_HEAD = wire.frame(wire.HEADERS, head(GET), stream=1)

# What hundreds of connections and their gRPC objects may take, and what malloc keeps of memory that is freed.
SLACK_MIB = 48


@contextlib.contextmanager
def serving(folder: Path, *options: str, **given: Any) -> Iterator[Server]:
    """A server with these bounds, which no caller's doing makes log an error."""
    server = Server(folder / "data", *options)
    server.program = bounded.program(**given)
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert "Traceback" not in server.stderr()
    assert " ERROR " not in server.stderr()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for a second only, for tests that measure no memory."""
    given = {"handshake_s": 1, "arrival_s": 1, "upload_window_s": 1, "make_way_s": 600}
    with serving(tmp_path_factory.mktemp("hasty"), **given) as server:
        yield server


@contextlib.contextmanager
def sockets(address: str, sent: bytes, *, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent these bytes and say nothing more."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(wire.connect(address)) for _ in range(count)]
        for connection in opened:
            with contextlib.suppress(OSError):  # One too many is closed at once.
                connection.sendall(sent)
        yield opened


def ends(connection: socket.socket) -> bool:
    """Whether the server ends the connection within the socket's time."""
    try:
        while connection.recv(MIB):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def heads(connection: Connection, streams: list[int]) -> list[bytes]:
    """The head that ended each stream: a refusal has no other."""
    return [connection.heads[stream] for stream in streams]


def in_parallel(*calls: Any) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


# --- Connections that say too little ---


TOO_LITTLE = {
    "nothing": b"",
    "half a preface": wire.PREFACE[:10],
    "no settings": wire.PREFACE,
    "no call": GREETING,
    "half a head": GREETING + HALF_A_HEAD,
    "a frame's header": GREETING + b"\0\x10\0\1\0\0\0\0\1",
}


def test_a_connection_that_says_too_little_is_ended(tmp_path: Path) -> None:
    with serving(tmp_path, handshake_s=1, idle_s=1) as server, watched(server) as seen:
        with contextlib.ExitStack() as stack:
            opened = {
                kind: stack.enter_context(sockets(server.address, sent, count=100))
                for kind, sent in TOO_LITTLE.items()
            }
            seen.others_are_served()

            assert [kind for kind, each in opened.items() if not all(map(ends, each))] == []
        assert seen.refused == []
        # 35 KiB each at most.
        assert seen.grown_mib < SLACK_MIB


def test_a_preface_that_comes_byte_by_byte_is_not_waited_for(hasty: Server) -> None:
    def trickle(connection: socket.socket) -> int:
        connection.settimeout(0.1)
        for number, byte in enumerate(wire.PREFACE):
            try:
                connection.sendall(bytes([byte]))
                if not connection.recv(MIB):
                    return number
            except TimeoutError:
                continue
            except OSError:
                return number
        return len(wire.PREFACE)

    with sockets(hasty.address, b"", count=8) as opened:
        sent = in_parallel(*(lambda each=each: trickle(each) for each in opened))

    assert max(sent) < len(wire.PREFACE)


def test_a_tls_handshake_that_is_never_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    monkeypatch.setattr(Server, "program", bounded.program(handshake_s=1))
    with (
        serving_over_tls(tmp_path) as tls,
        sockets(tls.server.address, hello, count=100) as opened,
        tls.client() as client,
    ):
        assert client.disk("f")

        assert all(map(ends, opened))


# --- Too many connections ---


def test_a_flood_of_connections_leaves_those_that_were_there(tmp_path: Path) -> None:
    """One too many is closed at once, so that files are left for what the others ask."""
    with serving(tmp_path, files_max=256) as server, Api(server.address) as api:
        kept = api.image("f", disk_id=api.disk("f"))
        with watched(server) as seen, sockets(server.address, GREETING, count=400) as opened:
            refused_ones = [connection for connection in opened[200:] if ends(connection)]
            data = bytes(MIB // 2)
            image = api.image("f", disk_id=api.source(data).id)

            assert len(refused_ones) == 200
            assert api.read(image.id)[1] == data
            seen.others_are_served()
        assert newcomer_gets(server, kept.id)
    assert seen.refused == []


def test_connections_that_come_and_go_leave_room(tmp_path: Path) -> None:
    """However they end: none may be counted for ever."""
    with serving(tmp_path, connections_max=64) as server:
        for sent in (b"", b"GET / HTTP/1.1\r\n\r\n", wire.PREFACE, GREETING, GREETING + HALF_A_HEAD):
            for _ in range(10):
                with sockets(server.address, sent, count=40):
                    pass
        assert newcomer_gets(server, "no-such-image")


def newcomer_gets(server: Server, image_id: str) -> bool:
    """Whether a client that was not there before is answered, once the server has seen that there is room."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        with Api(server.address) as newcomer:
            if code_of(lambda: newcomer.get(image_id)) in (Code.OK, Code.NOT_FOUND):
                return True
    return False


# --- Heads ---


def continued(block: bytes, times: int) -> bytes:
    return wire.frame(CONTINUATION, block, stream=1) * times


TOO_LARGE = {
    "9 KB": wire.frame(wire.HEADERS, head(GET, [(b"x-big", b"y" * 9000)]), flags=5, stream=1),
    "64 MB of headers": HALF_A_HEAD + continued(wire.headers([(b"x", b"y" * 99)] * 150), 4096),
    "a value of 128 MB": wire.frame(wire.HEADERS, head(GET) + b"\0\1x\x7f\xff\xff\xff\x3f", stream=1)
    + continued(b"y" * 16_384, 4096),
    # A header of 4 KB goes into the table, and each further byte means it once more. Source: RFC 7541 §6.1.
    "48 MB in 12 KB": wire.frame(
        wire.HEADERS,
        head(GET) + b"\x40\4abcd\x7f\xbd\x1e" + b"z" * 4028 + b"\xbe" * 12_000,
        flags=5,
        stream=1,
    ),
    "nothing without end": HALF_A_HEAD + continued(b"", 100_000),
}


def test_a_head_too_large_is_refused_and_not_kept(tmp_path: Path) -> None:
    with serving(tmp_path) as server, watched(server) as seen, contextlib.ExitStack() as stack:
        for kind, sent in TOO_LARGE.items():
            for _ in range(4):
                connection = stack.enter_context(Connection(server.address))
                connection.send(sent)

                assert connection.wait_ended(1), kind
            seen.others_are_served()
    assert seen.refused == []
    # What is read ahead of eight connections; kept, it would be twice as much for the first four alone.
    assert seen.grown_mib < 3 * SLACK_MIB


# --- Frames without calls ---


def test_a_flood_of_frames_that_ask_for_nothing(tmp_path: Path) -> None:
    """Of what must be answered, as SETTINGS, the server stops reading; it may take in the rest."""
    kinds = (
        wire.frame(wire.SETTINGS, struct.pack(">HI", 4, WINDOW)),
        wire.frame(WINDOW_UPDATE, struct.pack(">I", 1)),
        wire.frame(2, b"\0\0\0\1\x10", stream=1),  # PRIORITY. Source: RFC 9113 §6.3.
    )
    with serving(tmp_path) as server, watched(server) as seen, contextlib.ExitStack() as stack:
        for sent in kinds:
            connection = stack.enter_context(Connection(server.address))
            connection.socket.settimeout(0.5)
            for _ in range(16):
                connection.send(sent * (MIB // len(sent)))
            seen.others_are_served()
        connection = stack.enter_context(Connection(server.address))
        connection.send(wire.frame(wire.PING, b"12345678") * 1000)

        assert connection.wait_closed()
    assert b"too_many_pings" in connection.goaway
    assert seen.refused == []
    assert seen.grown_mib < SLACK_MIB


def test_calls_that_are_reset_at_once_cost_the_connection(tmp_path: Path) -> None:
    block, reset = head(GET), struct.pack(">I", 8)
    with serving(tmp_path) as server, watched(server) as seen, Connection(server.address) as connection:
        connection.socket.settimeout(1)
        for first in range(1, 400_001, 400):
            frames = [
                wire.frame(wire.HEADERS, block, flags=5, stream=stream)
                + wire.frame(wire.RST_STREAM, reset, stream=stream)
                for stream in range(first, first + 400, 2)
            ]
            if not connection.send(b"".join(frames)):
                break

        assert connection.wait_closed()
        seen.others_are_served()
    # Until the server has seen through it, gRPC may have cancelled others' calls, too.
    assert all(told.startswith("CANCELLED") for told in seen.refused)
    assert seen.grown_mib < 2 * SLACK_MIB


# --- Requests that do not come in full ---


def test_requests_that_are_never_whole_make_way(tmp_path: Path) -> None:
    """400 of a MiB less one byte: without a bound 400 MiB."""
    almost = framed(bytes(MIB - 1), size=MIB)
    with serving(tmp_path, arriving_max=16, arrival_s=600) as server, watched(server) as seen:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(Connection(server.address)) for _ in range(4)]
            begun = [(each, each.begin(GET)) for each in opened for _ in range(100)]
            for connection, stream in begun:
                connection.push(stream, almost)
            seen.others_are_served()

            for connection in opened:
                connection.pump(0.1)
            refused_ones = [stream for each, stream in begun if stream in each.ended]
            assert len(refused_ones) >= 400 - 16
        assert seen.refused == []
    assert seen.grown_mib < 16 + SLACK_MIB


def test_what_nobody_asked_for_is_not_taken_in(tmp_path: Path) -> None:
    """A watch has one request. What comes after it waits with its sender: else it would be 400 MiB."""
    asked = framed(health_pb2.HealthCheckRequest().SerializeToString())
    with serving(tmp_path) as server, watched(server) as seen, contextlib.ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(Connection(server.address))
            assert not connection.push(connection.begin(WATCH), asked + bytes(4 * MIB), wait_s=0)
        seen.others_are_served()
    assert seen.refused == []
    assert seen.grown_mib < SLACK_MIB


def test_a_request_has_its_time_to_come(hasty: Server) -> None:
    with Connection(hasty.address) as connection:
        begun = [connection.begin(path) for path in (GET, LIST, f"/{BLOBS}/Read", WATCH) for _ in range(20)]
        for stream in begun[::2]:
            connection.push(stream, framed(b"", size=9))

        assert connection.wait_ended(*begun)
        assert not connection.closed
        assert all(
            b"The request did not come in full within 1 s" in told for told in heads(connection, begun)
        )
        # The connection is good for whole requests.
        whole = connection.call(LIST, pb.ListImagesRequest(folder_id="f").SerializeToString())
        assert connection.wait_ended(whole)


def test_a_call_without_a_request_is_told_so(hasty: Server) -> None:
    with Connection(hasty.address) as connection:
        streams = [connection.begin(path, ends=True) for path in (GET, WATCH)]

        assert connection.wait_ended(*streams)
        assert all(b"has one request, and none came" in told for told in heads(connection, streams))


def test_a_request_is_never_larger_than_it_may_be(tmp_path: Path) -> None:
    """Neither where it claims to be a GiB, nor where it becomes a GiB when it is inflated."""
    zeros = gzip.compress(bytes(100 * MIB), 1)
    with serving(tmp_path) as server, watched(server) as seen, Connection(server.address) as connection:
        huge = [connection.begin(GET) for _ in range(40)]
        for stream in huge:
            connection.push(stream, framed(bytes(MIB), size=1024 * MIB))
        compressed = [connection.begin(GET, [(b"grpc-encoding", b"gzip")]) for _ in range(40)]
        for stream in compressed:
            connection.push(stream, framed(zeros, compressed=True))
            connection.send(wire.frame(wire.DATA, flags=wire.END_STREAM, stream=stream))

        assert connection.wait_ended(*huge, *compressed)
        assert not connection.closed
        seen.others_are_served()
    assert seen.refused == []
    assert seen.grown_mib < SLACK_MIB


# --- Answers that are not taken ---


def a_long_list(api: Api, folder: str) -> bytes:
    """The request of a list whose answer has more than a MiB."""
    disk_id = api.disk(folder)
    labels = {f"label-{number}": "v" * 63 for number in range(64)}
    create = api.channel.unary_unary(f"/{IMAGES}/Create", pb.CreateImageRequest.SerializeToString, bytes)
    request = pb.CreateImageRequest(folder_id=folder, disk_id=disk_id, labels=labels)
    for made in [create.future(request, metadata=api.metadata(), timeout=30) for _ in range(256)]:
        made.result()
    return pb.ListImagesRequest(folder_id=folder, page_size=1000).SerializeToString()


def test_lists_that_nobody_reads(tmp_path: Path) -> None:
    """400 of more than a MiB: their callers make way for others, who read theirs."""
    given = {"untaken_bytes_max": 32 * MIB, "making_way_bytes_per_s_min": 64 * MIB}
    with serving(tmp_path, **given) as server, Api(server.address) as api:
        asked = a_long_list(api, "long")
        with watched(server) as seen, contextlib.ExitStack() as stack:
            opened = [stack.enter_context(Connection(server.address, window=0)) for _ in range(4)]
            for connection in opened:
                streams = [connection.call(LIST, asked) for _ in range(100)]
                seen.others_are_served()

                connection.wait_answered(*streams)

            assert one_is_closed(opened)
            assert eventually_ok(lambda: api.list("long", page_size=1000))
            told = b"".join(head for connection in opened for head in connection.heads.values())
            assert b"The limit on bytes that answers hold until they are taken has exceeded" in told
        assert seen.refused == []
    assert seen.grown_mib < 32 + SLACK_MIB


def test_downloads_that_nobody_reads(tmp_path: Path) -> None:
    """300, each with 256 KiB under way, and most of the places that calls have."""
    given = {"untaken_bytes_max": 48 * MIB, "making_way_bytes_per_s_min": 64 * MIB, "in_flight_max": 250}
    with serving(tmp_path, **given) as server, Api(server.address) as api:
        image = api.image("f", disk_id=api.source(bytes(MIB - 512)).id)
        asked = blob_service_pb2.ReadBlobRequest(image_id=image.id).SerializeToString()
        with watched(server) as seen, contextlib.ExitStack() as stack:
            opened = [stack.enter_context(Connection(server.address)) for _ in range(3)]
            for connection in opened:
                for _ in range(100):
                    connection.call(f"/{BLOBS}/Read", asked)

            assert one_is_closed(opened)
            assert eventually_ok(lambda: api.get(image.id))
        assert len(api.read(image.id)[1]) == MIB - 512
    assert seen.grown_mib < 48 + SLACK_MIB


def test_downloads_have_a_limit_of_their_own(hasty: Server) -> None:
    """So that there are files and places left for what others ask."""
    with Api(hasty.address) as api, contextlib.ExitStack() as stack:
        image = api.image("f", disk_id=api.source(bytes(MIB - 512)).id)
        asked = blob_service_pb2.ReadBlobRequest(image_id=image.id).SerializeToString()
        for _ in range(DOWNLOADS_MAX // 64):
            connection = stack.enter_context(Connection(hasty.address))
            held = [connection.call(f"/{BLOBS}/Read", asked) for _ in range(64)]
            assert connection.wait_answered(*held)

        refusal = refused(lambda: api.read(image.id))
        assert refusal.message == f"The limit on downloads at once has exceeded: {DOWNLOADS_MAX}"
        assert api.get(image.id) == image
        stack.close()
        assert eventually_ok(lambda: api.read(image.id))


def one_is_closed(opened: list[Connection]) -> bool:
    """Whether the server ends one of the connections: those whose calls were all refused may stay."""
    give_up = time.monotonic() + PATIENCE_S
    while not any(each.closed for each in opened) and time.monotonic() < give_up:
        for connection in opened:
            connection.pump(0.01)
    return any(each.closed for each in opened)


def eventually_ok(call: Callable[[], object]) -> bool:
    """Whether the call is answered well, after it may have been told to come again."""
    give_up = time.monotonic() + PATIENCE_S
    while (code := code_of(call)) != Code.OK and time.monotonic() < give_up:
        assert code == Code.RESOURCE_EXHAUSTED
    return code == Code.OK


# --- Calls that are given up ---


def test_calls_that_are_given_up_leave_no_place_taken_and_nothing_half_done(tmp_path: Path) -> None:
    places = 16
    with serving(tmp_path, in_flight_max=places, untaken_s=600) as server, Api(server.address) as api:
        image = api.image("f", disk_id=api.source(bytes(MIB - 512)).id)
        with watched(server) as seen:
            in_parallel(*(partial(give_up_calls, server, image.id, number) for number in range(4)))
        asked = blob_service_pb2.ReadBlobRequest(image_id=image.id).SerializeToString()
        with Connection(server.address) as connection:
            # A download that nobody reads holds its place, so this counts those that are left.
            held = [connection.call(f"/{BLOBS}/Read", asked) for _ in range(places - 1)]
            assert connection.wait_answered(*held)
            assert api.get(image.id) == image
            last = connection.call(f"/{BLOBS}/Read", asked)
            assert connection.wait_answered(last)
            refusal = refused(lambda: api.get(image.id))
            assert refusal.message == f"The limit on calls in flight has exceeded: {places}"
            assert not connection.ended
        assert eventually_ok(lambda: api.get(image.id))
        assert_whole(api, "f")
    # None of the others was in the way, but for the places.
    assert all("calls in flight" in told for told in seen.refused)
    assert rebuilt_is_the_same(server)


def give_up_calls(server: Server, image_id: str, seed: int) -> None:
    """Many calls of all kinds, each given up after a moment: by its deadline, or by its caller."""
    chance = random.Random(f"given up {seed}")
    with Api(server.address) as client:
        requests: list[tuple[str, Message]] = [
            (GET, pb.GetImageRequest(image_id=image_id)),
            (LIST, pb.ListImagesRequest(folder_id="f", order_by="name")),
            (f"/{IMAGES}/Create", pb.CreateImageRequest(folder_id="f", image_id=image_id)),
            (f"/{IMAGES}/Update", pb.UpdateImageRequest(image_id=image_id)),
            (f"/{BLOBS}/Read", blob_service_pb2.ReadBlobRequest(image_id=image_id)),
            (f"/{BLOBS}/Verify", blob_service_pb2.VerifyBlobRequest(image_id=image_id)),
        ]
        for number in range(150):
            path, request = requests[number % len(requests)]
            # Both kinds of answer are streams to a client that wants them so.
            call = client.channel.unary_stream(path, type(request).SerializeToString, bytes)(
                request, metadata=client.metadata(), timeout=chance.choice([0.001, 0.005, 10])
            )
            threading.Timer(chance.random() * 0.01, call.cancel).start()
            with contextlib.suppress(grpc.RpcError):
                list(call)


def assert_whole(api: Api, folder: str) -> None:
    """Every image is there with a Create that was done, whether its caller heard of it or not."""
    images = api.list(folder, page_size=1000).images
    assert len({image.id for image in images}) == len(images) > 1
    for image in images:
        assert image.status == image_pb2.Image.READY
        assert all(operation.done for operation in api.operations(image.id).operations)


def rebuilt_is_the_same(server: Server) -> bool:
    """Whether the tables made anew from the log are those that were served."""
    command = [sys.executable, "-m", "tools.cli", "rebuild", "--data", str(server.data), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return told["digest_before"] == told["digest_after"]


# --- Streams that stay ---


def test_ten_thousand_watches(tmp_path: Path) -> None:
    """512 may stay; the others are told so, and cost nothing."""
    asked = health_pb2.HealthCheckRequest().SerializeToString()
    with serving(tmp_path) as server, watched(server) as seen:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(Connection(server.address)) for _ in range(100)]
            for connection in opened:
                streams = [connection.call(WATCH, asked) for _ in range(100)]
                assert connection.wait_answered(*streams)
            seen.others_are_served()

            ended = sum(len(connection.ended) for connection in opened)
            assert ended == 10_000 - STAYING_MAX
            assert b"The limit on open watches has exceeded: 512" in b"".join(opened[-1].heads.values())
        assert eventually_ok(lambda: next(watch(seen.client)))
    assert seen.refused == []
    assert seen.grown_mib < 2 * SLACK_MIB


def watch(api: Api) -> Iterator[bytes]:
    stub = api.channel.unary_stream(WATCH, bytes, bytes)
    return stub(b"", timeout=PATIENCE_S)  # type: ignore[no-any-return]


def test_reflections_have_a_limit_of_their_own(hasty: Server) -> None:
    """Each may hold a MiB of a request that does not come to its end."""
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    asked = framed(reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString())
    with Connection(hasty.address) as connection:
        streams = [connection.begin(path) for _ in range(REFLECTIONS_MAX + 1)]
        for stream in streams:
            connection.push(stream, asked)

        assert connection.wait_answered(*streams)
        assert len(connection.ended) == 1
        assert b"The limit on reflections at once has exceeded: 16" in b"".join(connection.heads.values())


# --- Uploads that trickle ---


def test_uploads_that_trickle_lose_their_places(hasty: Server) -> None:
    over = threading.Event()

    def parts(sends: bytes) -> Iterator[source_service_pb2.UploadSourceRequest]:
        yield source_service_pb2.UploadSourceRequest(header={"folder_id": "f", "kind": "DISK"})
        while not over.wait(0.05):
            yield source_service_pb2.UploadSourceRequest(chunk=sends)

    with Api(hasty.address) as api:
        request = source_service_pb2.UploadSourceRequest.SerializeToString
        stub = api.channel.stream_unary(f"/{SOURCES}/Upload", request, bytes)
        with watched(hasty) as seen:
            # 20 bytes a second, and 2 MB a second.
            slow = [stub.future(parts(b"x"), metadata=api.metadata(), timeout=PATIENCE_S) for _ in range(3)]
            quick = stub.future(parts(bytes(100_000)), metadata=api.metadata())
            told = [refused(each.result) for each in slow]

            assert {each.code for each in told} == {Code.DEADLINE_EXCEEDED}
            assert {each.reason for each in told} == {"UPLOAD_SLOW"}
            assert api.source(bytes(512)).id
            assert not quick.done()
            over.set()
        assert seen.refused == []
        quick.cancel()
