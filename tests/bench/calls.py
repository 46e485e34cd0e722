"""The rpcs that are measured: a server with data, the request, and echoes that answer the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.message import Message

from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.gen.yandex.cloud.operation import operation_pb2
from tests.bench.load import Target, echo, framed
from tests.harness import IMAGES, Client, image_of, serving

FOLDER_IMAGES = 1000
HEADERS = {"authorization": "Bearer local"}


@dataclass(frozen=True, slots=True)
class Data:
    """What every measure may ask about."""

    address: str
    folder_id: str
    image_id: str
    name: str
    family: str
    old_position: str


@dataclass(frozen=True, slots=True)
class Measure:
    """One rpc under load; `reach` is the ratio to an equal-work echo that it should have at least."""

    name: str
    method: str
    request: Callable[[Data], Message]
    requests: int
    reach: float | None = None
    headers: Callable[[Data], dict[str, str]] = lambda data: {}


def _list_of_1000(data: Data) -> Message:
    return pb.ListImagesRequest(folder_id=data.folder_id, page_size=FOLDER_IMAGES)


def _by_name(data: Data) -> Message:
    return pb.ListImagesRequest(folder_id=data.folder_id, filter=f'name = "{data.name}"')


def _update(data: Data) -> Message:
    return pb.UpdateImageRequest(
        image_id=data.image_id, update_mask={"paths": ["description"]}, description="rebuilt on Friday"
    )


def _create(data: Data) -> Message:
    return pb.CreateImageRequest(folder_id="created", image_id=data.image_id, description="a copy")


def _get(data: Data) -> Message:
    return pb.GetImageRequest(image_id=data.image_id)


def _latest(data: Data) -> Message:
    return pb.GetImageLatestByFamilyRequest(folder_id=data.folder_id, family=data.family)


def _unkept(data: Data) -> dict[str, str]:
    return {"x-min-position": "1"}


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("get", "Get", _get, 6000, reach=0.75),
        Measure("latest", "GetLatestByFamily", _latest, 6000),
        Measure("get-as-of", "Get", _get, 6000, headers=lambda data: {"x-as-of": data.old_position}),
        # A caller who names a position is never given a kept answer.
        Measure("list-1000-cold", "List", _list_of_1000, 640, reach=0.30, headers=_unkept),
        Measure("list-1000-repeated", "List", _list_of_1000, 640),
        Measure("list-by-name-cold", "List", _by_name, 6000, headers=_unkept),
        Measure("update", "Update", _update, 4000, reach=0.35),
        Measure("create", "Create", _create, 3000),
    )
}

_data: dict[Path, Data] = {}


def prepared(
    measure: Measure, directory: Path, stack: ExitStack
) -> tuple[Measure, tuple[Target, Target, Target]]:
    """The measure with its targets: ours, an echo of equal work, a bare echo. All share one server."""
    data = _data.get(directory) or _data.setdefault(directory, _serve(directory, stack))
    headers = HEADERS | measure.headers(data)
    request = measure.request(data)
    body = framed(request.SerializeToString(), directory / f"{measure.name}.request")
    answer = _answer(data.address, measure.method, request, headers)
    echoes = directory / measure.name
    echoes.mkdir()
    address = stack.enter_context(echo(answer, echoes))
    ours = Target(data.address, f"/{IMAGES}/{measure.method}", body, headers)
    return measure, (
        ours,
        Target(address, "/echo/equal", body, headers),
        Target(address, "/echo/bare", body, headers),
    )


def _answer(address: str, method: str, request: Message, headers: dict[str, str]) -> bytes:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{IMAGES}/{method}")
        answer: bytes = call(request.SerializeToString(), metadata=tuple(headers.items()))
    return answer


def _serve(directory: Path, stack: ExitStack) -> Data:
    server = stack.enter_context(serving(directory / "data"))
    with Client(server.address) as client:
        disk_id = client.disk("large")
        for number in range(FOLDER_IMAGES):
            request = pb.CreateImageRequest(
                folder_id="large",
                name=f"web-{number}",
                family=f"family-{number % 10}",
                description="Nightly build of the base system",
                labels={"build": str(number), "team": "core"},
                disk_id=disk_id,
            )
            image = image_of(client.call(IMAGES, "Create", request, operation_pb2.Operation))
        old = client.full_call(IMAGES, "Get", pb.GetImageRequest(image_id=image.id), type(image))[1]
        position = dict(old.trailing_metadata())["x-log-position"]
        update = pb.UpdateImageRequest(
            image_id=image.id, update_mask={"paths": ["description"]}, description="new"
        )
        client.call(IMAGES, "Update", update, operation_pb2.Operation)
    return Data(server.address, "large", image.id, image.name, image.family, str(position))
