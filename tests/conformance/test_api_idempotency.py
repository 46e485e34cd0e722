"""Idempotency-Key: a repeat answers with the first operation, as it is now."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server.gen.imageledger.v1 import source_service_pb2
from tests.conformance.api import Api, Code, key, position_of, refused
from tests.harness import Server, serving
from tests.unit.server.disk_images import tiny_qcow2

pytestmark = pytest.mark.usefixtures("quiet")

Source = source_service_pb2.Source
FIELDS: dict[str, Any] = {"name": "web", "labels": {"b": "1", "a": "2"}, "product_ids": ["p", "q"]}


@pytest.fixture
def one() -> str:
    return str(uuid.uuid4())


def test_a_repeated_create_is_the_first_one(api: Api, disk: Source, folder: str, one: str) -> None:
    first, call = api.created(folder, key(one), disk_id=disk.id, **FIELDS)
    again, repeated = api.created(folder, key(one), disk_id=disk.id, **FIELDS)

    assert again == first
    assert position_of(repeated) == position_of(call)
    assert api.names(folder) == ["web"]


def test_the_order_of_labels_makes_no_other_request(api: Api, disk: Source, folder: str, one: str) -> None:
    first = api.create(folder, key(one), disk_id=disk.id, labels={"a": "1", "b": "2"})

    assert api.create(folder, key(one), disk_id=disk.id, labels={"b": "2", "a": "1"}) == first


def test_an_upper_case_key_is_the_same_key(api: Api, disk: Source, folder: str, one: str) -> None:
    first = api.create(folder, key(one), disk_id=disk.id)

    assert api.create(folder, key(one.upper()), disk_id=disk.id) == first


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "db"},
        {"labels": {"a": "2"}},
        {"product_ids": ["q", "p"]},
        {"pooled": True},
        {"description": "d"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_request_under_the_key(
    api: Api, disk: Source, folder: str, one: str, changed: dict[str, Any]
) -> None:
    first = api.create(folder, key(one), disk_id=disk.id, **FIELDS)

    refusal = refused(lambda: api.create(folder, key(one), disk_id=disk.id, **{**FIELDS, **changed}))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["idempotency-key"])
    assert first.id in refusal.message


def test_reason_and_request_id_make_no_other_request(api: Api, disk: Source, folder: str, one: str) -> None:
    first = api.create(folder, [*key(one), ("x-change-reason", "a")], disk_id=disk.id)

    again = api.create(
        folder, [*key(one), ("x-change-reason", "b"), ("x-client-request-id", "r")], disk_id=disk.id
    )

    assert again == first


def test_a_key_belongs_to_its_subject(server: Server, disk: Source, folder: str, one: str) -> None:
    with Api(server.address, token="a") as a, Api(server.address, token="b") as b:
        first = a.create(folder, key(one), disk_id=disk.id)
        second = b.create(folder, key(one), disk_id=disk.id)

    assert first.id != second.id


def test_a_key_belongs_to_its_subject_whatever_the_token(
    server: Server, disk: Source, folder: str, one: str
) -> None:
    with Api(server.address, token="same") as direct:
        exchanged = direct.exchanged(yandex_passport_oauth_token="same")
        with Api(server.address, token=exchanged) as other:
            first = direct.create(folder, key(one), disk_id=disk.id)
            assert other.create(folder, key(one), disk_id=disk.id) == first


def test_a_key_belongs_to_its_method(api: Api, disk: Source, folder: str, one: str) -> None:
    created = api.create(folder, key(one), disk_id=disk.id)
    image_id = api.list(folder).images[0].id
    updated = api.update(image_id, ["name"], key(one), name="web")
    deleted = api.delete(image_id, key(one))

    assert len({created.id, updated.id, deleted.id}) == 3


def test_a_repeated_update(api: Api, disk: Source, folder: str, one: str) -> None:
    image = api.image(folder, disk_id=disk.id)
    first = api.update(image.id, ["name", "labels"], key(one), name="web", labels={"a": "b"})
    api.update(image.id, ["name"], name="db")

    assert api.update(image.id, ["labels", "name", "name"], key(one), name="web", labels={"a": "b"}) == first
    assert api.get(image.id).name == "db"


def test_another_mask_is_another_request(api: Api, disk: Source, folder: str, one: str) -> None:
    image = api.image(folder, disk_id=disk.id)
    api.update(image.id, ["description"], key(one))

    refusal = refused(lambda: api.update(image.id, [], key(one)))

    assert refusal.code == Code.INVALID_ARGUMENT


def test_a_repeated_delete_is_no_not_found(api: Api, disk: Source, folder: str, one: str) -> None:
    image = api.image(folder, disk_id=disk.id)

    assert api.delete(image.id, key(one)) == api.delete(image.id, key(one))


def test_a_repeated_create_of_a_deleted_image(api: Api, disk: Source, folder: str, one: str) -> None:
    first = api.create(folder, key(one), disk_id=disk.id, name="web")
    api.delete(api.list(folder).images[0].id)

    assert api.create(folder, key(one), disk_id=disk.id, name="web") == first
    assert api.names(folder) == []


def test_a_refused_request_does_not_use_its_key_up(api: Api, disk: Source, folder: str, one: str) -> None:
    taken = api.image(folder, disk_id=disk.id, name="web")
    refused(lambda: api.create(folder, key(one), disk_id=disk.id, name="web"))
    api.delete(taken.id)

    assert api.create(folder, key(one), disk_id=disk.id, name="web").done


def test_twenty_at_once_make_one_image(api: Api, disk: Source, folder: str, one: str) -> None:
    with ThreadPoolExecutor(20) as threads:
        made = list(threads.map(lambda _: api.create(folder, key(one), disk_id=disk.id), range(20)))

    assert len({operation.id for operation in made}) == 1
    assert len(api.list(folder).images) == 1


def test_twenty_at_once_for_one_name(api: Api, disk: Source, folder: str) -> None:
    def create(_: int) -> str:
        try:
            return str(api.create(folder, disk_id=disk.id, name="web").done)
        except Exception as error:
            return str(getattr(error, "code", str)())

    with ThreadPoolExecutor(20) as threads:
        ended = sorted(threads.map(create, range(20)))

    assert ended == [*[str(Code.ALREADY_EXISTS)] * 19, "True"]


def test_a_repeated_upload_is_the_first_source(api: Api, folder: str, one: str) -> None:
    header = source_service_pb2.SourceHeader(folder_id=folder, kind="DISK", name="root")
    data = tiny_qcow2(2**20, salt=b"repeated")

    first = api.upload(header, [data], key(one))
    again = api.upload(header, [data[:1000], data[1000:]], key(one))

    assert again == first
    assert list(api.sources(folder).sources) == [first]


def test_another_upload_under_the_key(api: Api, folder: str, one: str) -> None:
    header = source_service_pb2.SourceHeader(folder_id=folder, kind="DISK")
    api.upload(header, [tiny_qcow2(2**20, salt=b"one")], key(one))

    refusal = refused(lambda: api.upload(header, [tiny_qcow2(2**20, salt=b"two")], key(one)))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["idempotency-key"])


def test_a_key_lives_through_a_restart(tmp_path: Any, one: str) -> None:
    data = tmp_path / "data"
    with serving(data) as before, Api(before.address) as api:
        disk = api.disk("f")
        first = api.create("f", key(one), disk_id=disk)
    with serving(data) as after, Api(after.address) as api:
        assert api.create("f", key(one), disk_id=disk) == first
