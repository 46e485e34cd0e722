"""Request and trace ids: which are taken, and where they are answered."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from eventstore.event import Position
from eventstore.reader import LogReader
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2, operation_service_pb2
from tests.conformance.api import IMAGES, OPERATIONS, Api, Metadata, refused
from tests.harness import Server

pytestmark = pytest.mark.usefixtures("quiet")

IDS = ("x-request-id", "x-server-trace-id")


def heads(call: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ids in the initial and in the trailing metadata."""
    both = dict(call.initial_metadata()), dict(call.trailing_metadata())
    return tuple({name: head[name] for name in IDS if name in head} for head in both)  # type: ignore[return-value]


def listed(api: Api, metadata: Metadata) -> Any:
    request = image_service_pb2.ListImagesRequest(folder_id="f")
    return api.full_call(IMAGES, "List", request, image_service_pb2.ListImagesResponse, metadata)[1]


def test_our_own_id_is_a_uuid_and_comes_last(api: Api) -> None:
    initial, trailing = heads(listed(api, ()))

    assert initial == {}
    assert trailing["x-server-trace-id"] == trailing["x-request-id"]
    assert str(uuid.UUID(trailing["x-request-id"])) == trailing["x-request-id"]


@pytest.mark.parametrize(
    ("sent", "request_id", "trace_id"),
    [
        pytest.param([("x-client-request-id", "r")], "r", "r", id="client-request-id"),
        pytest.param([("x-request-id", "r")], "r", "r", id="request-id"),
        pytest.param([("x-request-id", "s"), ("x-client-request-id", "r")], "r", "r", id="client's-first"),
        pytest.param(
            [("x-client-request-id", "x" * 65), ("x-request-id", "s")], "s", "s", id="first-invalid"
        ),
        pytest.param([("x-client-request-id", "r"), ("x-client-trace-id", "t")], "r", "t", id="both"),
        pytest.param([("x-client-request-id", "x" * 64)], "x" * 64, "x" * 64, id="longest"),
        pytest.param([("x-client-request-id", "a b~!")], "a b~!", "a b~!", id="printable"),
    ],
)
def test_an_id_of_the_callers(api: Api, sent: Metadata, request_id: str, trace_id: str) -> None:
    wanted = dict(zip(IDS, (request_id, trace_id), strict=True))

    assert heads(listed(api, sent)) == (wanted, wanted)


def test_a_trace_id_alone(api: Api) -> None:
    initial, trailing = heads(listed(api, [("x-client-trace-id", "t")]))

    assert trailing["x-server-trace-id"] == "t"
    assert uuid.UUID(trailing["x-request-id"])
    assert initial == trailing


@pytest.mark.parametrize("text", ["", "x" * 65])
@pytest.mark.parametrize("name", ["x-client-request-id", "x-request-id", "x-client-trace-id"])
def test_an_id_that_is_none_is_replaced(api: Api, name: str, text: str) -> None:
    initial, trailing = heads(listed(api, [(name, text)]))

    assert initial == {}
    assert uuid.UUID(trailing["x-request-id"])


def test_a_refusal_has_the_same_ids(api: Api) -> None:
    refusal = refused(lambda: api.get("i", [("x-client-request-id", "r"), ("x-client-trace-id", "t")]))

    assert refusal.request_id == "r"
    assert {name: refusal.trailing[name] for name in IDS} == {"x-request-id": "r", "x-server-trace-id": "t"}


def test_a_refusal_by_validation_names_the_id_early(api: Api) -> None:
    stub = api.channel.unary_unary(f"/{IMAGES}/Get", bytes, bytes)
    call = stub.future(b"", metadata=api.metadata([("x-client-request-id", "r")]), timeout=10)

    assert dict(call.initial_metadata())["x-request-id"] == "r"
    assert call.exception() is not None


@pytest.mark.parametrize("sent", [(), (("x-client-request-id", "r"),)], ids=["without", "with"])
def test_a_finished_operation_needs_no_poll_interval(
    api: Api, disk: Any, folder: str, sent: Metadata
) -> None:
    operation = api.create(folder, disk_id=disk.id)
    request = operation_service_pb2.GetOperationRequest(operation_id=operation.id)

    _, call = api.full_call(OPERATIONS, "Get", request, operation_pb2.Operation, sent)

    assert "x-operation-poll-interval" not in dict(call.initial_metadata())
    assert ("x-request-id" in dict(call.initial_metadata())) == bool(sent)


def test_a_streams_answer_has_them_too(api: Api, disk: Any, folder: str) -> None:
    image = api.image(folder, disk_id=disk.id)
    stub = api.channel.unary_stream("/imageledger.v1.BlobService/Read", bytes, bytes)
    request = image_service_pb2.GetImageRequest(image_id=image.id).SerializeToString()

    call = stub(request, metadata=api.metadata([("x-client-request-id", "r")]), timeout=10)

    assert dict(call.initial_metadata())["x-request-id"] == "r"
    assert len(list(call)) >= 2
    trailing = dict(call.trailing_metadata())
    assert trailing["x-request-id"] == "r"
    assert int(trailing["x-log-position"]) > 0


def test_what_the_log_keeps_of_a_call(server: Server, api: Api, disk: Any, folder: str) -> None:
    key = str(uuid.uuid4())
    sent = [
        ("idempotency-key", key.upper()),
        ("x-client-request-id", "r"),
        ("x-change-reason-bin", "зачем".encode()),
    ]
    operation, call = api.created(folder, sent, disk_id=disk.id)
    last = int(dict(call.trailing_metadata())["x-log-position"])

    log = LogReader.open(server.data / "log.db")
    try:
        started, created = (log.event(Position(position)) for position in (last - 1, last))
    finally:
        log.close()

    for event in (started, created):
        assert (event.actor, event.auth, event.request_id) == (operation.created_by, "dev", "r")
        assert (event.operation_id, event.stream, event.reason) == (operation.id, f"folder/{folder}", "зачем")
    assert (started.method, started.key) == (f"{IMAGES}/Create", key)
    assert len(started.request or b"") == 32
    assert (created.method, created.key, created.request) == (None, None, None)
    assert started.at == created.at == operation.created_at.ToNanoseconds()
