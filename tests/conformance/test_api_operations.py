"""Operations: what each says of itself, and ListOperations, Get and Cancel."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from projections.pages import Page, encode_page, question
from server.gen.google.protobuf import empty_pb2
from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.conformance.api import Api, Code, position_of, refused
from tests.unit.server.disk_images import tiny_qcow2

pytestmark = pytest.mark.usefixtures("quiet")

Operation = operation_pb2.Operation
Source = source_service_pb2.Source
Made = tuple[Operation, str]
Make = Callable[[Api, Source, str], Made]


def _create(api: Api, disk: Source, folder: str) -> Made:
    operation = api.create(folder, disk_id=disk.id, name="web")
    return operation, api.list(folder).images[0].id


def _update(api: Api, disk: Source, folder: str) -> Made:
    image = api.image(folder, disk_id=disk.id)
    return api.update(image.id, ["name"], name="web"), image.id


def _delete(api: Api, disk: Source, folder: str) -> Made:
    image = api.image(folder, disk_id=disk.id)
    return api.delete(image.id), image.id


def _remove(api: Api, disk: Source, folder: str) -> Made:
    source = api.source(tiny_qcow2(512), folder_id=folder)
    return api.remove_source(source.id), source.id


KINDS = [
    pytest.param(
        _create, "Create image", image_service_pb2.CreateImageMetadata, image_pb2.Image, id="create"
    ),
    pytest.param(
        _update, "Update image", image_service_pb2.UpdateImageMetadata, image_pb2.Image, id="update"
    ),
    pytest.param(
        _delete, "Delete image", image_service_pb2.DeleteImageMetadata, empty_pb2.Empty, id="delete"
    ),
    pytest.param(
        _remove, "Remove source", source_service_pb2.RemoveSourceMetadata, empty_pb2.Empty, id="remove-source"
    ),
]


@pytest.mark.parametrize(("make", "description", "metadata", "response"), KINDS)
def test_an_operation(
    api: Api,
    disk: Source,
    folder: str,
    make: Make,
    description: str,
    metadata: type[Message],
    response: type[Message],
) -> None:
    operation, resource_id = make(api, disk, folder)

    assert operation.done
    assert operation.WhichOneof("result") == "response"
    assert operation.description == description
    assert operation.metadata.type_url == f"type.googleapis.com/{metadata.DESCRIPTOR.full_name}"
    assert operation.response.type_url == f"type.googleapis.com/{response.DESCRIPTOR.full_name}"
    named: Any = metadata()
    assert operation.metadata.Unpack(named)
    assert resource_id in (getattr(named, "image_id", ""), getattr(named, "source_id", ""))
    assert operation.modified_at.ToNanoseconds() >= operation.created_at.ToNanoseconds() > 0
    assert len(operation.id) == 20
    assert api.operation(operation.id) == operation


def test_an_operation_names_who_asked(api: Api, disk: Source, folder: str) -> None:
    operation = api.create(folder, disk_id=disk.id)

    assert operation.created_by.startswith("dev-")
    assert api.operation(operation.id).created_by == operation.created_by


def test_an_operations_response_is_what_its_last_event_left(api: Api, disk: Source, folder: str) -> None:
    created = api.create(folder, disk_id=disk.id, name="web")
    image_id = api.list(folder).images[0].id
    updated = api.update(image_id, ["name"], name="db")
    deleted = api.delete(image_id)

    for operation in (created, updated, deleted):
        assert api.operation(operation.id) == operation


def test_list_operations_newest_first(api: Api, disk: Source, folder: str) -> None:
    created = api.create(folder, disk_id=disk.id)
    image_id = api.list(folder).images[0].id
    updates = [api.update(image_id, ["name"], name=name) for name in ("a", "b", "c")]

    assert list(api.operations(image_id).operations) == [*reversed(updates), created]


def test_list_operations_of_a_deleted_image(api: Api, disk: Source, folder: str) -> None:
    created = api.create(folder, disk_id=disk.id)
    image_id = api.list(folder).images[0].id
    deleted = api.delete(image_id)

    assert list(api.operations(image_id).operations) == [deleted, created]


def test_list_operations_of_one_image_only(api: Api, disk: Source, folder: str) -> None:
    first, _ = (api.image(folder, disk_id=disk.id) for _ in range(2))

    assert len(api.operations(first.id).operations) == 1


@pytest.mark.parametrize("page_size", [1, 2, 3, 6, 7])
def test_pages_of_operations(api: Api, disk: Source, folder: str, page_size: int) -> None:
    image = api.image(folder, disk_id=disk.id)
    for number in range(5):
        api.update(image.id, ["description"], description=str(number))
    whole = list(api.operations(image.id).operations)

    found: list[Operation] = []
    token = ""
    while True:
        page = api.operations(image.id, page_size=page_size, page_token=token)
        assert 0 < len(page.operations) <= page_size
        found += page.operations
        token = page.next_page_token
        # A page is answered as of the first: what is written meanwhile is not in it.
        api.update(image.id, ["description"], description="meanwhile")
        if not token:
            break

    assert found == whole
    assert len(whole) == 6


def test_a_token_of_another_image(api: Api, disk: Source, folder: str) -> None:
    first, second = (api.image(folder, disk_id=disk.id) for _ in range(2))
    for image in (first, second):
        api.update(image.id, ["description"], description="x")
    token = api.operations(first.id, page_size=1).next_page_token

    refusal = refused(lambda: api.operations(second.id, page_size=1, page_token=token))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["page_token"])


@pytest.mark.parametrize("last_id", ["9" * 50, str(2**63), "x", "-1", "0" * 50])
def test_a_forged_token(api: Api, disk: Source, folder: str, last_id: str) -> None:
    image = api.image(folder, disk_id=disk.id)
    asked = question("ListOperations", image.id, "", "", "")
    position = position_of(api.deleted(api.image(folder, disk_id=disk.id).id)[1])
    token = encode_page(Page(position, last_id), asked)

    refusal = refused(lambda: api.operations(image.id, page_token=token))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["page_token"])


def test_the_get_after_a_write_always_finds_it(api: Api, disk: Source, folder: str) -> None:
    for _ in range(50):
        operation = api.create(folder, disk_id=disk.id)
        assert api.operation(operation.id).done


@pytest.mark.parametrize("make", [_create, _update, _delete, _remove])
def test_cancel_of_a_finished_operation_changes_nothing(
    api: Api, disk: Source, folder: str, make: Make
) -> None:
    operation, _ = make(api, disk, folder)

    assert api.cancel(operation.id) == operation
    assert api.operation(operation.id) == operation


def test_cancel_takes_an_idempotency_key_like_any_write(api: Api, disk: Source, folder: str) -> None:
    operation = api.create(folder, disk_id=disk.id)

    assert api.cancel(operation.id, [("idempotency-key", str(uuid.uuid4()))]) == operation


def test_a_writes_position_is_its_last_events(api: Api, disk: Source, folder: str) -> None:
    _, call = api.created(folder, disk_id=disk.id)
    position = position_of(call)
    image_id = api.list(folder).images[0].id
    _, call = api.updated(image_id, ["name"], name="web")

    # Create is two events, an update one.
    assert position_of(call) == position + 1
    assert not api.list(folder, [("x-as-of", str(position - 2))]).images
    assert api.names(folder, [("x-as-of", str(position))]) == [""]
