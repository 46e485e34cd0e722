"""What a server bears: deadlines, callers who hang up, connections that say nothing or nonsense."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2

from server.gen.imageledger.v1 import source_service_pb2, status_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2, operation_service_pb2
from server.handlers import Gate
from server.status import CallRefused
from tests.conformance import wire
from tests.conformance.api import Api, Code, refused
from tests.harness import IMAGES, OPERATIONS, STATUS, Server
from tests.unit.server.disk_images import tiny_qcow2

pytestmark = pytest.mark.usefixtures("quiet")

Source = source_service_pb2.Source
TOKEN = (b"authorization", b"Bearer local")


def head(api: Api) -> int:
    return api.call(STATUS, "Get", status_service_pb2.GetStatusRequest(), status_service_pb2.Status).head


# --- HTTP/2 ---


def test_a_connection_has_a_hundred_streams_and_eight_kibibytes_of_headers(server: Server) -> None:
    settings = wire.settings_of(server.address)

    assert settings[3] == 100
    assert settings[6] == 8192


@contextlib.contextmanager
def held_open(address: str, sent: bytes, *, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(wire.connect(address)) for _ in range(count)]
        for connection in connections:
            connection.sendall(sent)
        yield connections


GET = wire.headers([(b":method", b"POST"), (b":path", f"/{IMAGES}/Get".encode())])


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(wire.PREFACE[:10], id="half-a-preface"),
        pytest.param(wire.PREFACE, id="a-preface"),
        pytest.param(wire.PREFACE + wire.frame(wire.SETTINGS), id="settings"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", id="http-1"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
        pytest.param(bytes(range(256)) * 16, id="garbage"),
        pytest.param(
            wire.PREFACE
            + wire.frame(wire.SETTINGS)
            + wire.frame(wire.HEADERS, b"\xff" * 50, flags=4, stream=1),
            id="bad-header-block",
        ),
        pytest.param(
            wire.PREFACE + wire.frame(wire.SETTINGS) + wire.frame(wire.HEADERS, GET, flags=4, stream=1),
            id="headers-without-a-body",
        ),
        pytest.param(
            wire.PREFACE + wire.frame(wire.SETTINGS) + wire.frame(wire.DATA, b"x" * 99, stream=7),
            id="no-such-stream",
        ),
        pytest.param(wire.PREFACE + b"\xff\xff\xff" + bytes(6) + bytes(4096), id="huge-frame"),
    ],
)
def test_others_are_served_beside_broken_connections(
    server: Server, disk: Source, folder: str, sent: bytes
) -> None:
    with held_open(server.address, sent, count=20), Api(server.address) as client:
        made = client.image(folder, disk_id=disk.id)

        assert client.get(made.id) == made


def test_others_are_served_beside_a_tls_client(server: Server, api: Api) -> None:
    context = ssl.create_default_context()
    with wire.connect(server.address) as connection, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(connection, server_hostname="localhost")

    assert api.list("f") is not None


@pytest.mark.parametrize(
    "name",
    [b"x-as-of", b"x-min-position", b"x-change-reason", b"idempotency-key", b"x-client-request-id", b"x"],
)
@pytest.mark.parametrize("value", [b"\xff\xfe", "вчера".encode(), b"a\tb", b"\x7f", b""], ids=ascii)
@pytest.mark.parametrize("method", ["Get", "Delete"])
def test_header_bytes_of_any_kind(server: Server, api: Api, method: str, name: bytes, value: bytes) -> None:
    message = image_service_pb2.GetImageRequest(image_id="i").SerializeToString()

    answer = wire.call(server.address, f"/{IMAGES}/{method}", message, [TOKEN, (name, value)])

    assert answer
    assert b"Internal error" not in answer
    assert not api.list("nothing-here").images


def test_a_token_of_any_bytes_is_not_logged(server: Server) -> None:
    message = image_service_pb2.ListImagesRequest(folder_id="f").SerializeToString()

    wire.call(server.address, f"/{IMAGES}/List", message, [(b"authorization", b"Bearer hush-\xff\xfe")])

    assert "hush" not in server.stderr()


def test_our_key_sent_twice(server: Server, api: Api) -> None:
    message = image_service_pb2.GetImageRequest(image_id="i").SerializeToString()
    twice = [(b"idempotency-key", b"a"), (b"idempotency-key", b"b"), TOKEN, TOKEN]

    assert wire.call(server.address, f"/{IMAGES}/Delete", message, twice)
    assert not api.list("nothing-here").images


# --- Deadlines ---


@pytest.mark.parametrize("timeout", [b"0n", b"0S", b"0H"])
def test_a_deadline_that_is_over_writes_nothing(
    server: Server, api: Api, disk: Source, folder: str, timeout: bytes
) -> None:
    message = image_service_pb2.CreateImageRequest(folder_id=folder, disk_id=disk.id).SerializeToString()

    for _ in range(10):
        wire.call(server.address, f"/{IMAGES}/Create", message, [TOKEN, (b"grpc-timeout", timeout)])

    assert not api.list(folder).images


def test_a_deadline_that_is_over_is_told(api: Api) -> None:
    request = image_service_pb2.GetImageRequest(image_id="i")

    refusal = refused(lambda: api.call(IMAGES, "Get", request, operation_pb2.Operation, timeout=-1))

    assert refusal.code == Code.DEADLINE_EXCEEDED


def test_a_deadline_in_the_far_future(server: Server, api: Api, disk: Source, folder: str) -> None:
    message = image_service_pb2.CreateImageRequest(folder_id=folder, disk_id=disk.id).SerializeToString()

    wire.call(server.address, f"/{IMAGES}/Create", message, [TOKEN, (b"grpc-timeout", b"99999999H")])

    assert len(api.list(folder).images) == 1


def elsewhere(server: Server) -> str:
    """The server under another name, which gives a client a connection of its own.

    gRPC refuses streams of a connection that has just given up a hundred of them.
    """
    return server.address.replace("127.0.0.1", "localhost")


def unary_calls(disk: Source, folder: str, image_id: str) -> list[tuple[str, Message]]:
    return [
        (f"/{IMAGES}/Get", image_service_pb2.GetImageRequest(image_id=image_id)),
        (f"/{IMAGES}/List", image_service_pb2.ListImagesRequest(folder_id=folder, order_by="name")),
        (f"/{IMAGES}/Create", image_service_pb2.CreateImageRequest(folder_id=folder, disk_id=disk.id)),
        (f"/{IMAGES}/Update", image_service_pb2.UpdateImageRequest(image_id=image_id)),
        (f"/{IMAGES}/ListOperations", image_service_pb2.ListImageOperationsRequest(image_id=image_id)),
        (f"/{IMAGES}/Nothing", image_service_pb2.GetImageRequest(image_id=image_id)),
        (f"/{OPERATIONS}/Get", operation_service_pb2.GetOperationRequest(operation_id="o")),
    ]


@pytest.mark.parametrize("ids", [(), (("x-client-request-id", "r"),)], ids=["without-ids", "with-ids"])
@pytest.mark.parametrize("way", ["deadline", "cancel"])
def test_callers_who_hang_up_at_any_moment(
    server: Server, api: Api, disk: Source, folder: str, way: str, ids: tuple[tuple[str, str], ...]
) -> None:
    chance = random.Random(f"{way} {ids}")
    with Api(elsewhere(server)) as client:
        image = client.image(folder, disk_id=disk.id)
        calls = unary_calls(disk, folder, image.id)

        def hang_up(number: int) -> None:
            path, request = calls[number % len(calls)]
            stub = client.channel.unary_unary(path, type(request).SerializeToString, bytes)
            wait_s = chance.random() * 0.004
            timeout = wait_s if way == "deadline" else 10
            call = stub.future(request, metadata=client.metadata(ids), timeout=timeout)
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.RpcError, grpc.FutureCancelledError):
                call.result(timeout=wait_s)
            call.cancel()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(hang_up, range(300)))

    assert api.get(image.id).id == image.id


@pytest.mark.parametrize("ids", [(), (("x-client-request-id", "r"),)], ids=["without-ids", "with-ids"])
def test_readers_who_hang_up_at_any_moment(
    server: Server, folder: str, ids: tuple[tuple[str, str], ...]
) -> None:
    chance = random.Random(f"readers {ids}")
    with Api(elsewhere(server)) as client:
        data = tiny_qcow2(2**20, salt=b"x" * 2_000_000)
        header = source_service_pb2.SourceHeader(folder_id=folder, kind="DISK")
        source = client.upload(header, [data[at : at + 500_000] for at in range(0, len(data), 500_000)])
        image = client.image(folder, disk_id=source.id)
        stub = client.channel.unary_stream("/imageledger.v1.BlobService/Read", bytes, bytes)
        message = image_service_pb2.GetImageRequest(image_id=image.id).SerializeToString()

        def hang_up(_: int) -> None:
            call = stub(message, metadata=client.metadata(ids), timeout=10)
            with contextlib.suppress(grpc.RpcError):
                for _ in range(chance.randrange(9)):
                    next(call, None)
            call.cancel()

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(hang_up, range(40)))

        assert client.read(image.id)[1] == data


# --- Uploads at once ---


def test_a_fifth_upload_is_asked_to_come_back(server: Server) -> None:
    with Api(server.address) as client:
        stuck = [_Stuck(client) for _ in range(4)]
        refusal = refused(lambda: client.source(bytes(512)))
        for upload in stuck:
            upload.end()

        assert refusal.code == Code.RESOURCE_EXHAUSTED
        assert refusal.message == "The limit on uploads at once has exceeded: 4"
        assert int(refusal.trailing["grpc-retry-pushback-ms"]) > 0
        assert client.source(bytes(512)).id


class _Stuck:
    """An upload that has sent its header and nothing more; the server has begun to serve it."""

    def __init__(self, client: Api) -> None:
        self._parts = _Parts(source_service_pb2.SourceHeader(folder_id="f", kind="DISK"))
        stub = client.channel.stream_unary(
            "/imageledger.v1.SourceService/Upload",
            source_service_pb2.UploadSourceRequest.SerializeToString,
            source_service_pb2.Source.FromString,
        )
        metadata = client.metadata([("x-client-request-id", "stuck")])
        self._call = stub.future(self._parts, metadata=metadata, timeout=30)
        # Initial metadata is sent when the server has begun.
        self._call.initial_metadata()

    def end(self) -> None:
        self._parts.ended.release()
        with contextlib.suppress(grpc.RpcError):
            self._call.result(timeout=10)


class _Parts:
    """An upload's messages: the header at once, the end when it is told."""

    def __init__(self, header: source_service_pb2.SourceHeader) -> None:
        self._header: source_service_pb2.SourceHeader | None = header
        self.ended = threading.Semaphore(0)

    def __iter__(self) -> _Parts:
        return self

    def __next__(self) -> source_service_pb2.UploadSourceRequest:
        header, self._header = self._header, None
        if header is not None:
            return source_service_pb2.UploadSourceRequest(header=header)
        self.ended.acquire()
        raise StopIteration


# --- The gate ---


def test_the_gate_counts_calls_in_and_out() -> None:
    gate = Gate(in_flight_max=1)
    gate.enter()

    with pytest.raises(CallRefused) as refusal:
        gate.enter()
    gate.leave()
    gate.enter()

    assert refusal.value.code == Code.RESOURCE_EXHAUSTED
    assert str(refusal.value) == "The limit on calls in flight has exceeded: 1"
    assert gate.in_flight == 1


def test_watches_have_a_limit_of_their_own() -> None:
    """They need no token, so however many there are, nobody with a token is kept out."""
    gate = Gate(in_flight_max=1, staying_max=1)
    gate.enter(stays=True)

    with pytest.raises(CallRefused) as refusal:
        gate.enter(stays=True)
    gate.enter()

    assert str(refusal.value) == "The limit on open watches has exceeded: 1"
    assert (gate.in_flight, gate.staying) == (1, 1)


def test_a_closed_gate_lets_nobody_in() -> None:
    gate = Gate(in_flight_max=2)
    gate.closed = True

    with pytest.raises(CallRefused) as refusal:
        gate.enter()

    assert refusal.value.code == Code.UNAVAILABLE
    assert gate.in_flight == 0


# --- Reflection, whose v1 client no package has yet ---


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ({"list_services": ""}, "list_services_response"),
        ({"file_containing_symbol": "yandex.cloud.compute.v1.Image"}, "file_descriptor_response"),
        ({"file_by_filename": "yandex/cloud/compute/v1/image.proto"}, "file_descriptor_response"),
        ({"file_containing_symbol": "no.such.Thing"}, "error_response"),
        ({"all_extension_numbers_of_type": "no.such.Thing"}, "error_response"),
        ({}, "error_response"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_reflection(api: Api, version: str, question: dict[str, Any], answer: str) -> None:
    stub = api.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

    requests = iter([reflection_pb2.ServerReflectionRequest(**question)] * 2)
    answers = list(stub(requests, metadata=api.metadata(), timeout=10))

    assert [found.WhichOneof("message_response") for found in answers] == [answer] * 2


def test_reflection_of_garbage(api: Api) -> None:
    stub = api.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", lambda raw: raw, lambda raw: raw
    )

    refusal = refused(lambda: list(stub(iter([b"\xff"]), metadata=api.metadata(), timeout=10)))

    assert refusal.code == Code.INVALID_ARGUMENT
