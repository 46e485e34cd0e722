"""What the Terraform provider, the packer plugin and the Go SDK below them send, call by call.

The Go SDK puts an Idempotency-Key and two ids on every call, reads too; asks for an operation until it is
done, as often as `x-operation-poll-interval` says; finds an image by a name through List; and walks pages
until one is empty or has no token.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message

from server.gen.google.protobuf import empty_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_service_pb2
from tests.conformance import wire
from tests.conformance.api import MIB, Api, Code, Image, Operation, code_of, key, refused
from tests.harness import CALL_TIMEOUT_S, OPERATIONS, Answer, Metadata, Server, image_of, serving
from tests.unit.server import misbehaving
from tests.unit.server.disk_images import tiny_qcow2

DISK_SIZE = 12 * MIB
STANDARD_IMAGES = "standard-images"
RESOLVER_PAGE_SIZE = 100
FAILED_PRECONDITION = 9
RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}
Unpacked = TypeVar("Unpacked", bound=Message)


class GoClient(Api):
    """Calls with the headers that the Go SDK's interceptors add, over a channel with gRPC's own defaults."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.channel.close()
        self.channel = grpc.insecure_channel(address, [("grpc.service_config", json.dumps(RETRIES))])

    def full_call(
        self,
        service: str,
        method: str,
        request: Message | bytes,
        answer: type[Answer],
        metadata: Metadata = (),
        timeout: float = CALL_TIMEOUT_S,
    ) -> tuple[Answer, Any]:
        ids = {name: str(uuid.uuid4()) for name in ("x-client-request-id", "x-client-trace-id")}
        headers = {"idempotency-key": str(uuid.uuid4()), **ids, **dict(metadata)}
        got, call = super().full_call(service, method, request, answer, [*headers.items()], timeout)
        for sent in (dict(call.initial_metadata()), dict(call.trailing_metadata())):
            assert sent["x-request-id"] == ids["x-client-request-id"]
            assert sent["x-server-trace-id"] == ids["x-client-trace-id"]
        return got, call

    def polled(self, operation_id: str) -> tuple[Operation, dict[str, Any]]:
        """The operation, and the initial metadata that it came with."""
        request = operation_service_pb2.GetOperationRequest(operation_id=operation_id)
        operation, call = self.full_call(OPERATIONS, "Get", request, Operation)
        return operation, dict(call.initial_metadata())

    def wait(self, operation: Operation) -> Operation:
        """The finished operation: asked for at once, then as often as the server says."""
        while not operation.done:
            operation, initial = self.polled(operation.id)
            if not operation.done:
                time.sleep(int(initial["x-operation-poll-interval"]))
        return operation

    def applied(self, operation: Operation) -> Image:
        """The image that an operation ends with, which Get gives, too."""
        image = image_of(self.wait(operation))
        assert self.get(image.id) == image
        return image

    def destroy(self, image_id: str) -> None:
        operation = self.wait(self.delete(image_id))
        assert unpacked(operation.metadata, image_service_pb2.DeleteImageMetadata).image_id == image_id
        unpacked(operation.response, empty_pb2.Empty)
        assert code_of(lambda: self.get(image_id)) is Code.NOT_FOUND

    def resolve(self, folder_id: str, name: str) -> list[Image]:
        """How sdkresolvers finds an image by its name: one page, which must be the last."""
        answer = self.list(folder_id, filter=f'name = "{name}"', page_size=RESOLVER_PAGE_SIZE)
        assert answer.next_page_token == ""
        return list(answer.images)


def unpacked(packed: Any, kind: type[Unpacked]) -> Unpacked:
    """What an Any holds, which has to be of this type."""
    message = kind()
    assert packed.Unpack(message), packed.type_url
    return message


def created_id(operation: Operation) -> str:
    """The id that Terraform keeps before it waits."""
    return unpacked(operation.metadata, image_service_pb2.CreateImageMetadata).image_id


def iterated(next_page: Callable[[str], tuple[list[Any], str]]) -> Iterator[Any]:
    """What the Go SDK's iterators yield. As they do, this stops at an empty page, token or not."""
    token = ""
    while True:
        items, token = next_page(token)
        yield from items
        if not items or not token:
            return


def iterated_images(client: Api, folder_id: str, **fields: Any) -> Iterator[Image]:
    def page(token: str) -> tuple[list[Image], str]:
        answer = client.list(folder_id, page_token=token, **fields)
        return list(answer.images), answer.next_page_token

    return iterated(page)


def iterated_operations(client: Api, image_id: str, **fields: Any) -> Iterator[Operation]:
    def page(token: str) -> tuple[list[Operation], str]:
        answer = client.operations(image_id, page_token=token, **fields)
        return list(answer.operations), answer.next_page_token

    return iterated(page)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the server may import from."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "disk.qcow2").write_bytes(tiny_qcow2(DISK_SIZE))
    (folder / "letter.txt").write_text("no image\n")
    return folder


class Gate:
    """An HTTP source that sends the second half of a disk once it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        body = tiny_qcow2(DISK_SIZE, salt=b"gate")
        half = len(body) // 2

        def answer(_: misbehaving.Request, connection: Any) -> None:
            connection.sendall(misbehaving.head(200, {"Content-Length": len(body)}) + body[:half])
            self.opened.wait(CALL_TIMEOUT_S)
            connection.sendall(body[half:])

        self.server = misbehaving.Server(answer)


@pytest.fixture
def gate(gates: Gate) -> Iterator[Gate]:
    gates.opened.clear()
    yield gates
    gates.opened.set()


@pytest.fixture(scope="module")
def gates() -> Iterator[Gate]:
    gate = Gate()
    with gate.server:
        yield gate


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sources: Path, gates: Gate) -> Iterator[Server]:
    allowed = (f"{sources.as_uri()}/", gates.server.uri("/images/"))
    options = [option for prefix in allowed for option in ("--allow-source", prefix)]
    with serving(tmp_path_factory.mktemp("sequences") / "data", *options) as running:
        yield running


@pytest.fixture(scope="module")
def go(server: Server) -> Iterator[GoClient]:
    client = GoClient(server.address)
    with client:
        yield client


@pytest.fixture(scope="module")
def disk_id(go: GoClient) -> str:
    return go.source(tiny_qcow2(DISK_SIZE)).id


@pytest.fixture(params=["disk_id", "snapshot_id", "image_id", "uri"])
def source(request: pytest.FixtureRequest, go: GoClient, disk_id: str, sources: Path) -> dict[str, Any]:
    """One of the four sources of an image, as the field of its request."""
    match request.param:
        case "disk_id":
            return {"disk_id": disk_id}
        case "snapshot_id":
            return {"snapshot_id": go.source(tiny_qcow2(DISK_SIZE), kind="SNAPSHOT").id}
        case "image_id":
            return {"image_id": go.image(STANDARD_IMAGES, disk_id=disk_id).id}
        case _:
            return {"uri": (sources / "disk.qcow2").as_uri()}


# Terraform: the resource and the data source yandex_compute_image.


def test_terraform_applies_refreshes_and_destroys(go: GoClient, folder: str, source: dict[str, Any]) -> None:
    """An attribute that nobody set is sent as its zero value: min_disk_size 0, an os without a type."""
    operation = go.create(
        folder,
        name="web",
        description="by terraform",
        labels={"managed-by": "terraform"},
        family="web",
        min_disk_size=0,
        os={"type": "TYPE_UNSPECIFIED"},
        **source,
    )
    image_id = created_id(operation)

    image = go.applied(operation)

    assert image.id == image_id
    assert (image.folder_id, image.name, image.family) == (folder, "web", "web")
    assert (image.description, dict(image.labels)) == ("by terraform", {"managed-by": "terraform"})
    assert (image.status, image.os.type) == (Image.READY, 1)
    assert (image.size, image.min_disk_size) == (DISK_SIZE, DISK_SIZE)
    assert image.hardware_generation.WhichOneof("features") == "legacy_features"
    assert go.get(image_id) == image
    go.destroy(image_id)
    assert code_of(lambda: go.delete(image_id)) is Code.NOT_FOUND


def test_terraform_updates_one_field_at_a_time(go: GoClient, folder: str, disk_id: str) -> None:
    """Each changed attribute is an Update of its own, with nothing but its field and its mask."""
    expected = go.applied(go.create(folder, name="before", labels={"a": "1"}, family="web", disk_id=disk_id))
    image_id = expected.id
    changes: list[tuple[str, Any]] = [
        ("labels", {"b": "2", "c": "3"}),
        ("name", "after"),
        ("description", "changed"),
        ("min_disk_size", 64 * MIB),
    ]
    for field, value in changes:
        operation = go.update(image_id, [field], **{field: value})
        assert unpacked(operation.metadata, image_service_pb2.UpdateImageMetadata).image_id == image_id
        expected.ClearField(field)
        expected.MergeFrom(Image(**{field: value}))
        assert go.applied(operation) == expected

    go.applied(go.update(image_id, ["labels"], labels={}))
    go.applied(go.update(image_id, ["description"]))
    go.applied(go.update(image_id, ["name"]))
    cleared = go.applied(go.update(image_id, ["min_disk_size"], min_disk_size=0))

    assert (dict(cleared.labels), cleared.description, cleared.name) == ({}, "", "")
    assert (cleared.min_disk_size, cleared.family) == (DISK_SIZE, "web")


def test_terraform_reads_an_image_by_family_by_name_and_by_id(go: GoClient, disk_id: str) -> None:
    """The data source; a family is looked for in the public folder where no other is given."""
    go.applied(go.create(STANDARD_IMAGES, name="ubuntu-1", family="ubuntu-lts", disk_id=disk_id))
    newest = go.applied(go.create(STANDARD_IMAGES, name="ubuntu-2", family="ubuntu-lts", disk_id=disk_id))

    assert go.latest(STANDARD_IMAGES, "ubuntu-lts") == newest
    assert go.resolve(STANDARD_IMAGES, "ubuntu-2") == [newest]
    assert go.resolve(STANDARD_IMAGES, "ubuntu-3") == []
    assert go.get(newest.id) == newest
    missing = refused(lambda: go.latest(STANDARD_IMAGES, "no-such-family"))
    assert (missing.code, '"no-such-family"' in missing.message) == (Code.NOT_FOUND, True)
    assert missing.request_id == missing.trailing["x-request-id"]


def test_a_running_operation_is_polled(go: GoClient, folder: str, gate: Gate) -> None:
    operation = go.create(folder, name="slow", family="slow", uri=gate.server.uri("/images/disk.qcow2"))
    image_id = created_id(operation)
    polled, initial = go.polled(operation.id)

    assert not operation.done
    assert not polled.done
    assert polled.WhichOneof("result") is None
    assert created_id(polled) == image_id
    assert int(initial["x-operation-poll-interval"]) >= 1
    assert go.get(image_id).status == Image.CREATING
    assert code_of(lambda: go.latest(folder, "slow")) is Code.NOT_FOUND
    busy = refused(lambda: go.update(image_id, ["name"], name="other"))
    assert (busy.code, operation.id in busy.message) == (Code.FAILED_PRECONDITION, True)
    assert refused(lambda: go.delete(image_id)).code is Code.FAILED_PRECONDITION

    gate.opened.set()
    image = go.applied(polled)

    assert (image.id, image.size) == (image_id, DISK_SIZE)
    assert go.latest(folder, "slow") == image
    assert "x-operation-poll-interval" not in go.polled(operation.id)[1]


def test_a_failed_apply_leaves_its_error_and_no_image(go: GoClient, folder: str, sources: Path) -> None:
    operation = go.create(folder, name="broken", uri=(sources / "letter.txt").as_uri())
    image_id = created_id(operation)

    failed = go.wait(operation)

    assert (failed.WhichOneof("result"), failed.error.code) == ("error", FAILED_PRECONDITION)
    assert failed.error.message
    assert created_id(failed) == image_id
    assert code_of(lambda: go.get(image_id)) is Code.NOT_FOUND
    assert go.resolve(folder, "broken") == []
    assert list(iterated_operations(go, image_id)) == [failed]


def test_a_repeated_apply_makes_one_image(go: GoClient, folder: str, disk_id: str) -> None:
    """The retries of one call, and a hedge's attempts at once, carry the same Idempotency-Key."""
    same = key(str(uuid.uuid4()))
    with ThreadPoolExecutor(8) as threads:
        operations = list(
            threads.map(lambda _: go.create(folder, same, name="once", disk_id=disk_id), range(8))
        )

    image = go.applied(operations[0])

    assert {operation.id for operation in operations} == {operations[0].id}
    assert list(iterated_images(go, folder)) == [image]
    # A read's key names nothing: the same one may come with another question.
    assert go.get(image.id, same) == go.resolve(folder, "once")[0] == image


# packer: the builder, and its post-processors.


def test_packer_builds_an_image_and_drops_the_one_before(go: GoClient, folder: str, disk_id: str) -> None:
    base = go.applied(go.create(STANDARD_IMAGES, family="packer-base", disk_id=disk_id))
    assert go.latest(STANDARD_IMAGES, "packer-base") == base

    def build(name: str) -> Image:
        operation = go.create(
            folder,
            name=name,
            description="by packer",
            labels={"build": name},
            family="app",
            min_disk_size=16 * MIB,
            product_ids=["product-1"],
            pooled=False,
            disk_id=disk_id,
        )
        assert created_id(operation)
        return go.applied(operation)

    older = build("app-1")
    newer = build("app-2")
    assert (newer.min_disk_size, list(newer.product_ids)) == (16 * MIB, ["product-1"])
    newer = go.applied(go.update(newer.id, ["labels"], labels={"build": "app-2", "tag": "stable"}))
    assert go.latest(folder, "app") == newer
    assert go.resolve(folder, "app-1") == [older]

    go.destroy(older.id)

    assert go.latest(folder, "app") == newer
    assert list(iterated_images(go, folder, filter='family = "app"')) == [newer]
    assert [each.description for each in iterated_operations(go, newer.id)] == [
        "Update image",
        "Create image",
    ]


def test_packer_replaces_an_image_of_the_same_name_if_forced(go: GoClient, folder: str, disk_id: str) -> None:
    first = go.applied(go.create(folder, name="app", disk_id=disk_id))
    taken = refused(lambda: go.create(folder, name="app", disk_id=disk_id))
    assert (taken.code, taken.message) == (Code.ALREADY_EXISTS, 'Image with name "app" already exists')

    for image in go.resolve(folder, "app"):
        go.destroy(image.id)
    second = go.applied(go.create(folder, name="app", disk_id=disk_id))

    assert second.id != first.id
    assert go.resolve(folder, "app") == [second]


# The Go SDK's iterators.


@pytest.fixture(scope="module")
def six(go: GoClient, disk_id: str) -> list[Image]:
    """Six images in the folder `six`, in the order of their ids; every third is of the family `rare`."""
    made = [
        go.image("six", name=f"image-{number}", family="common" if number % 3 else "rare", disk_id=disk_id)
        for number in range(6)
    ]
    return sorted(made, key=lambda image: image.id)


@pytest.mark.parametrize("page_size", [1, 2, 3, 5, 6, 7, 1000])
def test_an_iterator_sees_every_image_once(go: GoClient, six: list[Image], page_size: int) -> None:
    assert list(iterated_images(go, "six", page_size=page_size)) == six
    rare = [image for image in six if image.family == "rare"]
    found = iterated_images(go, "six", page_size=page_size, filter='status = "READY" AND family = "rare"')
    assert list(found) == rare
    ordered = iterated_images(go, "six", page_size=page_size, order_by="name desc")
    assert [image.name for image in ordered] == [f"image-{number}" for number in (5, 4, 3, 2, 1, 0)]


def test_a_sweeper_deletes_what_it_walks_over(go: GoClient, folder: str, disk_id: str) -> None:
    made = {go.image(folder, disk_id=disk_id).id for _ in range(5)}
    swept = []
    for image in iterated_images(go, folder, page_size=2):
        go.destroy(image.id)
        swept.append(image.id)

    assert set(swept) == made
    assert list(iterated_images(go, folder)) == []


@pytest.mark.parametrize("page_size", [1, 2, 3, 4])
def test_an_iterator_sees_every_operation_once(
    go: GoClient, folder: str, disk_id: str, page_size: int
) -> None:
    image_id = go.image(folder, disk_id=disk_id).id
    for number in range(3):
        go.update(image_id, ["name"], name=f"name-{number}")

    found = list(iterated_operations(go, image_id, page_size=page_size))

    assert [each.description for each in found] == ["Update image"] * 3 + ["Create image"]
    assert len({each.id for each in found}) == 4


# What gRPC itself does on a client's side.


@pytest.fixture(scope="module")
def big(go: GoClient, disk_id: str) -> tuple[str, str]:
    """A folder whose images, and the id of one whose operations, are more than one answer's 4 MiB."""
    letters = str.maketrans("0123456789", "abcdefghij")
    fields: dict[str, Any] = {
        "description": "\U0001f600" * 256,
        "labels": {f"{number:02}".translate(letters) + "k" * 61: "v" * 63 for number in range(64)},
    }
    operations = [go.create("big", disk_id=disk_id, **fields)]
    with ThreadPoolExecutor(16) as threads:
        operations += threads.map(lambda _: go.create("big", disk_id=disk_id, **fields), range(520))
        image_id = image_of(operations[0]).id
        list(threads.map(lambda n: go.update(image_id, ["name"], name=f"name-{n}"), range(520)))
    return "big", image_id


def test_a_client_with_grpcs_defaults_reads_big_lists(go: GoClient, big: tuple[str, str]) -> None:
    """Its limit is 4 MiB for an answer, and its retries would ask again for what they take for a fault."""
    folder_id, image_id = big
    images = list(iterated_images(go, folder_id, page_size=1000))
    operations = list(iterated_operations(go, image_id, page_size=1000))

    assert len({image.id for image in images}) == len(images) == 521
    assert sum(image.ByteSize() for image in images) > 4 * MIB
    assert len({operation.id for operation in operations}) == len(operations) == 521
    assert sum(operation.ByteSize() for operation in operations) > 4 * MIB


def test_a_ping_every_10_seconds_without_streams_is_welcome(server: Server) -> None:
    """The least interval that Go's and C's clients can ask for; the Go SDK's is 30 s.

    By hand, since the server forgives two pings that come too soon, of anyone: two use that up, the next one
    shows whether 10 s are too soon, and the last that the first two were counted.
    """
    with wire.connect(server.address) as connection:
        connection.sendall(wire.PREFACE + wire.frame(wire.SETTINGS))
        frames = wire.frames(connection)

        def until(wanted: int, *, flags: int = 0) -> bytes:
            for kind, got, _, payload in frames:
                assert kind != wire.GOAWAY or wanted == wire.GOAWAY, payload
                if kind == wanted and got & flags == flags:
                    return payload
            raise AssertionError("the server closed the connection")

        def ping() -> None:
            connection.sendall(wire.frame(wire.PING, bytes(8)))
            until(wire.PING, flags=wire.ACK)

        # The server's own settings reset its count.
        until(wire.SETTINGS, flags=wire.ACK)
        for _ in range(3):
            ping()
        time.sleep(10.1)
        ping()
        ping()
        assert until(wire.GOAWAY).endswith(b"too_many_pings")
