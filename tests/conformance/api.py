"""The API as a stranger calls it: a method an rpc, and what a refusal says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message

from server.gen.google.rpc import error_details_pb2, status_pb2
from server.gen.imageledger.v1 import blob_service_pb2, source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from server.gen.yandex.cloud.iam.v1 import iam_token_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2, operation_service_pb2
from tests.harness import BLOBS, IMAGES, OPERATIONS, SOURCES, Client, Metadata, image_of

IAM = "yandex.cloud.iam.v1.IamTokenService"
ENDPOINTS = "yandex.cloud.endpoint.ApiEndpointService"
HEALTH = "grpc.health.v1.Health"
MIB = 1024 * 1024
GIB = 1024 * MIB

Code = grpc.StatusCode
Image = image_pb2.Image
Operation = operation_pb2.Operation


class Refusal(NamedTuple):
    """What a failed call told its caller; `fields` are BadRequest's, in its order."""

    code: grpc.StatusCode
    message: str
    fields: list[str]
    descriptions: list[str]
    reason: str
    domain: str
    request_id: str
    trailing: dict[str, Any]


def refused(run: Callable[[], object]) -> Refusal:
    """The refusal that the call ends with; a test fails if it ends well."""
    with pytest.raises(grpc.RpcError) as raised:
        run()
    return refusal_of(raised.value)


def refusal_of(error: Any) -> Refusal:
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    request = error_details_pb2.RequestInfo()
    for detail in status.details:
        for message in (bad, info, request):
            detail.Unpack(message)
    violations = bad.field_violations
    return Refusal(
        code=error.code(),
        message=error.details(),
        fields=[violation.field for violation in violations],
        descriptions=[violation.description for violation in violations],
        reason=info.reason,
        domain=info.domain,
        request_id=request.request_id,
        trailing=trailing,
    )


def code_of(run: Callable[[], object]) -> grpc.StatusCode:
    """The status that the call ends with, well or not."""
    try:
        run()
    except grpc.RpcError as error:
        return refusal_of(error).code
    return Code.OK


def position_of(call: Any) -> int:
    """The position that an answer's trailing metadata names."""
    return int(dict(call.trailing_metadata())["x-log-position"])


def as_of(moment: object) -> Metadata:
    return [("x-as-of", str(moment))]


def key(text: str) -> Metadata:
    return [("idempotency-key", text)]


class Api(Client):
    """The rpcs by name, with fields of the request as keywords. Each takes metadata, too."""

    def ask(self, service: str, method: str, request: Message, answer: Any, metadata: Metadata = ()) -> Any:
        return self.full_call(service, method, request, answer, metadata)

    def get(self, image_id: str, metadata: Metadata = ()) -> image_pb2.Image:
        request = image_service_pb2.GetImageRequest(image_id=image_id)
        return self.call(IMAGES, "Get", request, image_pb2.Image, metadata)

    def latest(self, folder_id: str, family: str, metadata: Metadata = ()) -> image_pb2.Image:
        request = image_service_pb2.GetImageLatestByFamilyRequest(folder_id=folder_id, family=family)
        return self.call(IMAGES, "GetLatestByFamily", request, image_pb2.Image, metadata)

    def list(
        self, folder_id: str, metadata: Metadata = (), **fields: Any
    ) -> image_service_pb2.ListImagesResponse:
        request = image_service_pb2.ListImagesRequest(folder_id=folder_id, **fields)
        return self.call(IMAGES, "List", request, image_service_pb2.ListImagesResponse, metadata)

    def names(self, folder_id: str, metadata: Metadata = (), **fields: Any) -> list[str]:
        return [image.name for image in self.list(folder_id, metadata, **fields).images]

    def create(self, folder_id: str, metadata: Metadata = (), **fields: Any) -> operation_pb2.Operation:
        return self.created(folder_id, metadata, **fields)[0]

    def created(
        self, folder_id: str, metadata: Metadata = (), **fields: Any
    ) -> tuple[operation_pb2.Operation, Any]:
        """Create's operation, and the call with its metadata."""
        request = image_service_pb2.CreateImageRequest(folder_id=folder_id, **fields)
        return self.full_call(IMAGES, "Create", request, operation_pb2.Operation, metadata)

    def image(self, folder_id: str, **fields: Any) -> image_pb2.Image:
        """A new image."""
        return image_of(self.create(folder_id, **fields))

    def update(self, image_id: str, mask: Iterable[str], metadata: Metadata = (), **fields: Any) -> Any:
        return self.updated(image_id, mask, metadata, **fields)[0]

    def updated(
        self, image_id: str, mask: Iterable[str], metadata: Metadata = (), **fields: Any
    ) -> tuple[operation_pb2.Operation, Any]:
        request = image_service_pb2.UpdateImageRequest(
            image_id=image_id, update_mask={"paths": list(mask)}, **fields
        )
        return self.full_call(IMAGES, "Update", request, operation_pb2.Operation, metadata)

    def delete(self, image_id: str, metadata: Metadata = ()) -> operation_pb2.Operation:
        return self.deleted(image_id, metadata)[0]

    def deleted(self, image_id: str, metadata: Metadata = ()) -> tuple[operation_pb2.Operation, Any]:
        request = image_service_pb2.DeleteImageRequest(image_id=image_id)
        return self.full_call(IMAGES, "Delete", request, operation_pb2.Operation, metadata)

    def operations(
        self, image_id: str, metadata: Metadata = (), **fields: Any
    ) -> image_service_pb2.ListImageOperationsResponse:
        request = image_service_pb2.ListImageOperationsRequest(image_id=image_id, **fields)
        answer = image_service_pb2.ListImageOperationsResponse
        return self.call(IMAGES, "ListOperations", request, answer, metadata)

    def operation(self, operation_id: str, metadata: Metadata = ()) -> operation_pb2.Operation:
        request = operation_service_pb2.GetOperationRequest(operation_id=operation_id)
        return self.call(OPERATIONS, "Get", request, operation_pb2.Operation, metadata)

    def cancel(self, operation_id: str, metadata: Metadata = ()) -> operation_pb2.Operation:
        request = operation_service_pb2.CancelOperationRequest(operation_id=operation_id)
        return self.call(OPERATIONS, "Cancel", request, operation_pb2.Operation, metadata)

    def sources(
        self, folder_id: str, metadata: Metadata = (), **fields: Any
    ) -> source_service_pb2.ListSourcesResponse:
        request = source_service_pb2.ListSourcesRequest(folder_id=folder_id, **fields)
        return self.call(SOURCES, "List", request, source_service_pb2.ListSourcesResponse, metadata)

    def remove_source(self, source_id: str, metadata: Metadata = ()) -> operation_pb2.Operation:
        request = source_service_pb2.RemoveSourceRequest(source_id=source_id)
        return self.call(SOURCES, "Remove", request, operation_pb2.Operation, metadata)

    def source(
        self, data: bytes, *, folder_id: str = "sources", kind: str = "DISK", **fields: Any
    ) -> source_service_pb2.Source:
        header = source_service_pb2.SourceHeader(folder_id=folder_id, kind=kind, **fields)
        return self.upload(header, [data])

    def read(
        self, image_id: str, *, offset: int = 0, metadata: Metadata = ()
    ) -> tuple[blob_service_pb2.BlobInfo, bytes]:
        """A blob's info, and its bytes from the offset on."""
        request = blob_service_pb2.ReadBlobRequest(image_id=image_id, offset=offset)
        stub = self.channel.unary_stream(
            f"/{BLOBS}/Read",
            blob_service_pb2.ReadBlobRequest.SerializeToString,
            blob_service_pb2.ReadBlobResponse.FromString,
        )
        first, *rest = stub(request, metadata=self.metadata(metadata), timeout=30)
        return first.info, b"".join(part.chunk for part in rest)

    def exchanged(self, **identity: str) -> str:
        """The token that IamTokenService gives for an OAuth token or a JWT."""
        answer = iam_token_service_pb2.CreateIamTokenResponse
        request = iam_token_service_pb2.CreateIamTokenRequest(**identity)
        return self.call(IAM, "Create", request, answer).iam_token

    def revoke(self, token: str) -> str:
        """The subject of the revoked token."""
        answer = iam_token_service_pb2.RevokeIamTokenResponse
        request = iam_token_service_pb2.RevokeIamTokenRequest(iam_token=token)
        return self.call(IAM, "Revoke", request, answer).subject_id
