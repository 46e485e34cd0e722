"""Many calls at once, and SIGTERM under load: every call gets an answer, and an OK outlives a restart."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2, operation_service_pb2
from tests.harness import IMAGES, OPERATIONS, Client, Server, serving

WRITERS = 8
WRITER = "drain-writer"
IN_FLIGHT_PER_WRITER = 40
ROUNDS = 4
CALL_TIMEOUT_S = 60
WARM_UP_CALLS = 400
STREAMS_AT_ONCE = 90
STREAM_CALLS = 2000
FOLDER = "drained"
TOKEN = (("authorization", "Bearer local"),)

# What gRPC says of a connection that was cut under a call; "failed to connect" means it was never sent.
CUT = ("Socket closed", "reset by peer", "Broken pipe", "GOAWAY", "Endpoint closing", "Stream removed")


@dataclass
class Told:
    """What the callers of one round were told."""

    created: dict[str, operation_pb2.Operation] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    wrong: Counter[str] = field(default_factory=Counter)

    def note(self, name: str, call: grpc.Future) -> bool:
        """Whether the call was answered OK."""
        try:
            self.created[name] = call.result()
        except grpc.RpcError as error:
            self._note_refusal(name, error)
            return False
        return True

    def _note_refusal(self, name: str, error: grpc.RpcError) -> None:
        code, text = error.code(), error.details()
        if code is not grpc.StatusCode.UNAVAILABLE or any(cut in text for cut in CUT):
            self.wrong[f"{code.name}: {text}"] += 1
        else:
            self.refused[name] = text


def write_until_refused(address: str, prefix: str, disk_id: str, told: Told) -> None:
    """Keep many Create calls in flight over a connection of its own until one is not answered OK."""
    with connection(address) as channel:
        create = channel.unary_unary(
            f"/{IMAGES}/Create",
            image_service_pb2.CreateImageRequest.SerializeToString,
            operation_pb2.Operation.FromString,
        )
        in_flight: deque[tuple[str, grpc.Future]] = deque()
        number, going = 0, True
        while going or in_flight:
            while going and len(in_flight) < IN_FLIGHT_PER_WRITER:
                name = f"{prefix}-{number}"
                number += 1
                request = image_service_pb2.CreateImageRequest(folder_id=FOLDER, name=name, disk_id=disk_id)
                in_flight.append((name, create.future(request, metadata=TOKEN, timeout=CALL_TIMEOUT_S)))
            going = told.note(*in_flight.popleft()) and going


def connection(address: str) -> grpc.Channel:
    """A channel that shares no connection with others, and whose calls are not sent twice."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    return grpc.insecure_channel(address, options)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_stop_answers_every_call(tmp_path: Path, number: int) -> None:
    with serving(tmp_path / "data") as server:
        told = write_from_all_sides(server)

        code = server.stop()
        join_writers()

        assert sum((each.wrong for each in told), Counter()) == Counter()
        assert code == 0
        # Each writer was stopped by a refusal, with many of its calls under way.
        assert all(each.refused for each in told)
        assert "Traceback" not in server.stderr()
        server.start()
        assert_durable(server, told)


def write_from_all_sides(server: Server) -> list[Told]:
    """What the writers are told, who keep on writing when this returns."""
    with Client(server.address) as client:
        disk_id = client.disk(FOLDER)
    told = [Told() for _ in range(WRITERS)]
    for number, each in enumerate(told):
        arguments = (server.address, f"w{number}", disk_id, each)
        threading.Thread(target=write_until_refused, args=arguments, name=WRITER, daemon=True).start()
    give_up = time.monotonic() + CALL_TIMEOUT_S
    while sum(len(each.created) for each in told) < WARM_UP_CALLS:
        if time.monotonic() > give_up:
            raise AssertionError(f"the server does not answer the load: {told}")
        time.sleep(0.005)
    return told


def join_writers() -> None:
    for thread in threading.enumerate():
        if thread.name == WRITER:
            thread.join(CALL_TIMEOUT_S)
            assert not thread.is_alive(), "a call got no answer"


def test_a_connection_carries_the_streams_it_promises(tmp_path: Path) -> None:
    """At most 100 streams a connection: whoever keeps to that is never refused one."""
    told: Counter[str] = Counter()
    with serving(tmp_path / "data") as server, connection(server.address) as channel:
        get = channel.unary_unary(f"/{IMAGES}/List", _identity, _identity)
        request = image_service_pb2.ListImagesRequest(folder_id=FOLDER).SerializeToString()
        in_flight: deque[grpc.Future] = deque()
        for _ in range(STREAM_CALLS):
            in_flight.append(get.future(request, metadata=TOKEN, timeout=CALL_TIMEOUT_S))
            if len(in_flight) == STREAMS_AT_ONCE:
                told[_status(in_flight.popleft())] += 1
        told.update(_status(call) for call in in_flight)

    assert told == {"OK": STREAM_CALLS}


def _identity(message: bytes) -> bytes:
    return message


def _status(call: grpc.Future) -> str:
    error = call.exception()
    return "OK" if error is None else f"{error.code().name}: {error.details()}"


def assert_durable(server: Server, told: list[Told]) -> None:
    """What was answered OK is there, and what the server itself refused is not."""
    with Client(server.address) as client:
        names = image_names(client)
        for each in told:
            assert each.created.keys() <= names
            assert not {name for name, text in each.refused.items() if "stopping" in text} & names
            for operation in each.created.values():
                assert operation.done
                assert get_operation(client, operation.id) == operation


def get_operation(client: Client, operation_id: str) -> operation_pb2.Operation:
    request = operation_service_pb2.GetOperationRequest(operation_id=operation_id)
    return client.call(OPERATIONS, "Get", request, operation_pb2.Operation)


def image_names(client: Client) -> set[str]:
    names: set[str] = set()
    token = ""
    while True:
        request = image_service_pb2.ListImagesRequest(folder_id=FOLDER, page_size=1000, page_token=token)
        answer = client.call(IMAGES, "List", request, image_service_pb2.ListImagesResponse)
        names.update(image.name for image in answer.images)
        token = answer.next_page_token
        if not token:
            return names
