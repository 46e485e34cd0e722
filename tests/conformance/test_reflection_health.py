"""The grpc_reflection and grpc_health clients against a real server over TLS."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.conformance.tls import TlsServer, serving_over_tls
from tests.harness import IMAGES, OPERATIONS, image_of

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    with serving_over_tls(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture(scope="module")
def channel(tls_server: TlsServer) -> Iterator[grpc.Channel]:
    """A channel whose every call carries a token, as a person's tool sets it up."""
    token = grpc.access_token_call_credentials("local")
    credentials = grpc.composite_channel_credentials(tls_server.credentials(), token)
    with grpc.secure_channel(tls_server.endpoint, credentials) as made:
        yield made


@pytest.fixture(scope="module")
def anonymous(tls_server: TlsServer) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(tls_server.endpoint, tls_server.credentials()) as made:
        yield made


@pytest.fixture(scope="module")
def reflected(channel: grpc.Channel) -> ProtoReflectionDescriptorDatabase:
    return ProtoReflectionDescriptorDatabase(channel)


def test_reflection_lists_every_service(reflected: ProtoReflectionDescriptorDatabase) -> None:
    assert set(reflected.get_services()) >= {
        IMAGES,
        OPERATIONS,
        "yandex.cloud.endpoint.ApiEndpointService",
        "yandex.cloud.iam.v1.IamTokenService",
        "imageledger.v1.SourceService",
        "imageledger.v1.BlobService",
        "imageledger.v1.StatusService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_every_listed_service_is_described(reflected: ProtoReflectionDescriptorDatabase) -> None:
    pool = DescriptorPool(reflected)
    described = {name: pool.FindServiceByName(name) for name in reflected.get_services() if _is_ours(name)}

    assert described
    assert all(service.methods for service in described.values())


def _is_ours(name: str) -> bool:
    return name.startswith(("yandex.", "imageledger."))


def test_a_client_without_our_protos_calls_get(
    reflected: ProtoReflectionDescriptorDatabase, channel: grpc.Channel, tls_server: TlsServer
) -> None:
    with tls_server.client() as client:
        request = image_service_pb2.CreateImageRequest(
            folder_id="reflected", name="web", labels={"a": "b"}, disk_id=client.disk("reflected")
        )
        created = image_of(client.call(IMAGES, "Create", request, operation_pb2.Operation))
    get = DescriptorPool(reflected).FindServiceByName(IMAGES).FindMethodByName("Get")
    asked, answered = GetMessageClass(get.input_type), GetMessageClass(get.output_type)

    call = channel.unary_unary(f"/{IMAGES}/Get", asked.SerializeToString, answered.FromString)
    answer: Any = call(asked(image_id=created.id), timeout=TIMEOUT_S)

    assert (answer.id, answer.name, dict(answer.labels)) == (created.id, "web", {"a": "b"})
    assert answer.SerializeToString(deterministic=True) == created.SerializeToString(deterministic=True)


def test_reflection_needs_a_token(anonymous: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ProtoReflectionDescriptorDatabase(anonymous).get_services()

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("service", ["", IMAGES, OPERATIONS])
def test_health_is_serving_without_a_token(anonymous: grpc.Channel, service: str) -> None:
    assert check(anonymous, service).status == SERVING


def test_health_of_an_unknown_service_is_not_found(anonymous: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        check(anonymous, "yandex.cloud.compute.v1.DiskService")

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def check(channel: grpc.Channel, service: str) -> health_pb2.HealthCheckResponse:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)


def test_watchers_are_told_that_the_server_stops(tmp_path: Path) -> None:
    services = ("", IMAGES)
    with (
        serving_over_tls(tmp_path) as tls_server,
        grpc.secure_channel(tls_server.endpoint, tls_server.credentials()) as channel,
    ):
        watched = [_watch(channel, service) for service in services]
        assert [told.get(timeout=TIMEOUT_S) for told in watched] == [SERVING, SERVING]

        # Watches have no end of their own; they must not hold the stop up.
        assert tls_server.server.stop() == 0

        assert [told.get(timeout=TIMEOUT_S) for told in watched] == [NOT_SERVING, NOT_SERVING]


def _watch(channel: grpc.Channel, service: str) -> queue.Queue[int]:
    """What a watcher is told, as it comes."""
    told: queue.Queue[int] = queue.Queue()
    answers = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))

    def listen() -> None:
        try:
            for answer in answers:
                told.put(answer.status)
        except grpc.RpcError:
            return

    threading.Thread(target=listen, daemon=True).start()
    return told
