"""What a user of the official SDK does, step by step; runs in the SDK's interpreter.

python sdk_scenario.py SCENARIO CONFIG.json

The file names the server and what was uploaded to it; see `Config`. Exit 0 if every step went as expected.
"""

import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import yandexcloud
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import BadRequest, RequestInfo
from google.rpc.status_pb2 import Status
from yandex.cloud.compute.v1.image_pb2 import Image, Os
from yandex.cloud.compute.v1.image_service_pb2 import (
    CreateImageMetadata,
    CreateImageRequest,
    DeleteImageMetadata,
    DeleteImageRequest,
    GetImageLatestByFamilyRequest,
    GetImageRequest,
    ListImageOperationsRequest,
    ListImagesRequest,
    UpdateImageMetadata,
    UpdateImageRequest,
)
from yandex.cloud.compute.v1.image_service_pb2_grpc import ImageServiceStub
from yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub

GIB = 2**30


@dataclass(frozen=True)
class Config:
    """Where the server is, and a qcow2 disk that was uploaded to it."""

    endpoint: str
    root_certificates: str
    folder_id: str
    disk_id: str
    disk_virtual_bytes: int
    disk_stored_bytes: int


class User:
    """One SDK session of one subject, in one folder."""

    def __init__(self, config: Config, **identity: Any) -> None:
        self.config = config
        self.sdk = yandexcloud.SDK(
            endpoint=config.endpoint,
            root_certificates=Path(config.root_certificates).read_bytes(),
            **identity,
        )
        self.images = self.sdk.client(ImageServiceStub)
        self.operations = self.sdk.client(OperationServiceStub)

    def create(self, **fields: Any) -> Image:
        """The SDK's own helper: start the operation, wait for it, unpack what it answers."""
        fields = {"folder_id": self.config.folder_id, **fields}
        if not fields.keys() & {"image_id", "disk_id", "snapshot_id", "uri"}:
            fields["disk_id"] = self.config.disk_id
        result = self.sdk.create_operation_and_get_result(
            CreateImageRequest(**fields),
            ImageServiceStub,
            "Create",
            response_type=Image,
            meta_type=CreateImageMetadata,
            timeout=60,
        )
        assert result.meta.image_id == result.response.id
        return result.response

    def update(self, image_id: str, *mask: str, **fields: Any) -> Image:
        request = UpdateImageRequest(image_id=image_id, update_mask=FieldMask(paths=mask), **fields)
        operation = self.images.Update(request)
        assert operation.description == "Update image"
        result = self.sdk.wait_operation_and_get_result(
            operation, response_type=Image, meta_type=UpdateImageMetadata, timeout=60
        )
        assert result.meta.image_id == image_id
        assert result.response == self.get(image_id)
        return result.response

    def delete(self, image_id: str) -> None:
        operation = self.images.Delete(DeleteImageRequest(image_id=image_id))
        assert operation.description == "Delete image"
        result = self.sdk.wait_operation_and_get_result(
            operation, response_type=Empty, meta_type=DeleteImageMetadata, timeout=60
        )
        assert result.meta.image_id == image_id
        assert self.operations.Get(GetOperationRequest(operation_id=operation.id)).response.Is(
            Empty.DESCRIPTOR
        )

    def get(self, image_id: str) -> Image:
        return self.images.Get(GetImageRequest(image_id=image_id))

    def latest(self, family: str) -> Image:
        request = GetImageLatestByFamilyRequest(folder_id=self.config.folder_id, family=family)
        return self.images.GetLatestByFamily(request)

    def pages(self, **fields: Any) -> Iterator[list[Image]]:
        """List, page by page, as every client loops: until there is no next token."""
        token = ""
        while True:
            request = ListImagesRequest(folder_id=self.config.folder_id, page_token=token, **fields)
            answer = self.images.List(request)
            yield list(answer.images)
            token = answer.next_page_token
            if not token:
                return

    def all_images(self, **fields: Any) -> list[Image]:
        return [image for page in self.pages(**fields) for image in page]

    def operations_of(self, image_id: str, *, page_size: int = 0) -> list[Any]:
        found, token = [], ""
        while True:
            request = ListImageOperationsRequest(image_id=image_id, page_size=page_size, page_token=token)
            answer = self.images.ListOperations(request)
            found += answer.operations
            token = answer.next_page_token
            if not token:
                return found


def refused(code: grpc.StatusCode, call: Callable[[], Any]) -> grpc.RpcError:
    """The error of a call that has to fail with this code."""
    try:
        answer = call()
    except grpc.RpcError as error:
        if error.code() is not code:
            raise AssertionError(f"{error.code()} instead of {code}: {error.details()}") from error
        return error
    raise AssertionError(f"{code} was expected, and the answer was {answer}")


def details(error: grpc.RpcError, kind: type[Any]) -> Any:
    """One of the google.rpc messages in an error's details, read with the official classes."""
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = Status.FromString(packed)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    found = kind()
    assert any(each.Unpack(found) for each in status.details), f"no {kind.__name__} in {status}"
    return found


def lifecycle(config: Config) -> None:
    """Create from a real qcow2, read, follow the family, read the operations, delete."""
    user = User(config, iam_token="anything")
    before = int(time.time())
    first = user.create(
        name="web-1",
        description="the first",
        labels={"env": "test", "team": "a"},
        family="web",
        product_ids=["product-1"],
        os=Os(type=Os.LINUX),
        pooled=True,
    )
    assert first.folder_id == config.folder_id
    assert (first.name, first.description, first.family) == ("web-1", "the first", "web")
    assert dict(first.labels) == {"env": "test", "team": "a"}
    assert first.status == Image.READY
    assert first.size == config.disk_virtual_bytes
    assert first.storage_size == config.disk_stored_bytes
    assert first.min_disk_size == config.disk_virtual_bytes
    assert list(first.product_ids) == ["product-1"]
    assert first.os.type == Os.LINUX
    assert first.pooled
    assert first.hardware_generation.WhichOneof("features") == "legacy_features"
    assert before <= first.created_at.seconds <= time.time() + 1
    assert first.created_at.nanos == 0
    assert user.get(first.id) == first
    assert user.latest("web") == first

    second = user.create(name="web-2", family="web", image_id=first.id)
    assert user.latest("web") == second
    assert list(second.product_ids) == ["product-1"]
    assert not second.pooled
    user.delete(second.id)
    assert user.latest("web") == first

    user.update(first.id, "description", description="changed")
    operations = user.operations_of(first.id, page_size=1)
    assert [each.description for each in operations] == ["Update image", "Create image"]
    assert operations == user.operations_of(first.id)
    for each in operations:
        assert each.done
        assert each.created_by == operations[0].created_by != ""
        assert user.operations.Get(GetOperationRequest(operation_id=each.id)) == each
        assert list(user.sdk.waiter(each.id, timeout=10)) == []

    taken = refused(grpc.StatusCode.ALREADY_EXISTS, lambda: user.create(name="web-1"))
    assert taken.details() == 'Image with name "web-1" already exists'
    user.delete(first.id)
    gone = refused(grpc.StatusCode.NOT_FOUND, lambda: user.get(first.id))
    assert gone.details() == f'Image "{first.id}" not found'
    assert details(gone, RequestInfo).request_id == dict(gone.trailing_metadata())["x-request-id"]
    refused(grpc.StatusCode.NOT_FOUND, lambda: user.latest("web"))
    refused(grpc.StatusCode.NOT_FOUND, lambda: user.images.Delete(DeleteImageRequest(image_id=first.id)))
    assert user.all_images() == []
    assert user.operations_of(first.id)[0].description == "Delete image"
    assert user.create(name="web-1").id != first.id


def pages(config: Config) -> None:
    """List with filter, order and pages, while others write."""
    user = User(config, iam_token="anything")
    names = [f"image-{number}" for number in range(1, 6)]
    first = user.create(name=names[0], family="odd")
    made = [first] + [
        user.create(name=name, image_id=first.id, family=("odd", "even")[number % 2])
        for number, name in enumerate(names[1:], start=1)
    ]
    by_id = sorted(made, key=lambda image: image.id)

    answers = list(user.pages(page_size=2))
    assert [len(page) for page in answers] == [2, 2, 1]
    assert [*chain(*answers)] == by_id
    assert user.all_images() == by_id
    assert user.all_images(page_size=1000) == by_id

    assert user.all_images(filter='name = "image-3"') == [made[2]]
    assert user.all_images(filter='name="nobody"') == []
    assert user.all_images(filter=f'id = "{made[3].id}"') == [made[3]]
    assert user.all_images(filter='family != "odd"') == sorted(made[1::2], key=lambda image: image.id)
    picked = user.all_images(filter="name IN ('image-1', 'image-5') AND status = \"READY\"")
    assert picked == sorted([made[0], made[4]], key=lambda image: image.id)
    odd = list(user.pages(page_size=2, filter='family = "odd"', order_by="name desc"))
    assert [[image.name for image in page] for page in odd] == [["image-5", "image-3"], ["image-1"]]
    assert len(user.all_images(order_by="createdAt desc", page_size=2)) == 5

    under_way = user.pages(page_size=2)
    seen = next(under_way)
    user.delete(by_id[0].id)
    user.delete(by_id[3].id)
    user.create(name="late")
    assert [*seen, *chain(*under_way)] == by_id

    token = user.images.List(ListImagesRequest(folder_id=config.folder_id, page_size=2)).next_page_token
    foreign = ListImagesRequest(folder_id=config.folder_id, page_token=token, filter='name = "image-3"')
    refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: user.images.List(foreign))
    refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: user.all_images(filter='colour = "red"'))
    refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: user.all_images(page_size=1001))


def update(config: Config) -> None:
    """Each field by its mask leaves the others alone; an empty mask resets what is not given."""
    user = User(config, iam_token="anything")
    start = user.create(
        name="before", description="before", labels={"a": "1", "b": "2"}, min_disk_size=4 * GIB, family="fam"
    )
    new = {"name": "after", "description": "after", "labels": {"c": "3"}, "min_disk_size": 8 * GIB}
    expected = Image()
    expected.CopyFrom(start)
    for field, value in new.items():
        answer = user.update(start.id, field, **new)
        if field == "labels":
            expected.labels.clear()
            expected.labels.update(value)
        else:
            setattr(expected, field, value)
        assert answer == expected, f"{field}: {answer} instead of {expected}"

    answer = user.update(start.id, "labels", "description")
    assert (dict(answer.labels), answer.description) == ({}, "")
    assert (answer.name, answer.min_disk_size) == ("after", 8 * GIB)

    answer = user.update(start.id, description="the only one given")
    assert (answer.name, dict(answer.labels)) == ("", {})
    assert answer.description == "the only one given"
    assert answer.min_disk_size == config.disk_virtual_bytes
    assert (answer.family, answer.size, answer.created_at) == ("fam", start.size, start.created_at)

    wrong = refused(
        grpc.StatusCode.INVALID_ARGUMENT, lambda: user.update(start.id, "family", "name", name="Not-A-Name")
    )
    fields = {violation.field for violation in details(wrong, BadRequest).field_violations}
    assert "name" in fields, fields
    assert any("update_mask" in field for field in fields), fields
    refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        lambda: user.update(start.id, "min_disk_size", min_disk_size=4194304),
    )
    assert user.get(start.id) == answer


def repeats(config: Config) -> None:
    """An Idempotency-Key, and the interceptor and retry policy that the SDK brings along."""
    user = User(
        config,
        iam_token="anything",
        interceptor=yandexcloud.RetryInterceptor(
            max_retry_count=3, retriable_codes=[grpc.StatusCode.UNAVAILABLE], per_call_timeout=30
        ),
        retry_policy=yandexcloud.RetryPolicy(),
    )
    key = [("idempotency-key", str(uuid.uuid4())), ("x-client-request-id", "ours-1")]
    request = CreateImageRequest(folder_id=config.folder_id, name="once", disk_id=config.disk_id)
    first, call = user.images.Create.with_call(request, metadata=key)
    assert dict(call.initial_metadata())["x-request-id"] == "ours-1"
    assert dict(call.trailing_metadata())["x-request-id"] == "ours-1"
    assert user.images.Create(request, metadata=key) == first
    assert len(user.all_images()) == 1
    request.name = "twice"
    refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: user.images.Create(request, metadata=key))


def oauth_token(config: Config) -> None:
    """`token=`: the SDK exchanges it for an IAM token. The subject says nothing of the token's text."""
    token = "y0_an-oauth-token"
    subject = "dev-" + hashlib.sha256(token.encode()).hexdigest()[:16]
    for name in ("first-session", "second-session"):
        user = User(config, token=token)
        image = user.create(name=name)
        assert [each.created_by for each in user.operations_of(image.id)] == [subject]


def service_account_key(config: Config) -> None:
    """A service account's key: the SDK signs a JWT (PS256) and exchanges it. The subject is the account."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = {"id": "key-1", "service_account_id": "account-1", "private_key": private.decode()}
    user = User(config, service_account_key=key)
    image = user.create(name="by-an-account")
    assert [each.created_by for each in user.operations_of(image.id)] == ["account-1"]


SCENARIOS = {
    each.__name__: each for each in (lifecycle, pages, update, repeats, oauth_token, service_account_key)
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Config(**json.loads(Path(sys.argv[2]).read_text("utf-8"))))
