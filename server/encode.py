"""Domain state to the API's messages: the one place where an Image or an Operation becomes protobuf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.message import Message

from projections.domain.command import Image, Operation, Source
from projections.domain.operation import DESCRIPTIONS
from projections.domain.operation import IMAGE_SERVICE as IMAGE_SERVICE
from projections.domain.operation import SOURCE_SERVICE as SOURCE_SERVICE
from projections.rows import OperationView
from server.gen.google.protobuf import empty_pb2
from server.gen.google.rpc import error_details_pb2
from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import (
    hardware_generation_pb2,
    image_pb2,
    image_service_pb2,
)
from server.gen.yandex.cloud.operation import operation_pb2

NANOS = 1_000_000_000

# An operation's metadata, by the rpc that began it, and the field of its resource's id.
METADATA: dict[str, tuple[type[Message], str]] = {
    f"{IMAGE_SERVICE}/Create": (image_service_pb2.CreateImageMetadata, "image_id"),
    f"{IMAGE_SERVICE}/Update": (image_service_pb2.UpdateImageMetadata, "image_id"),
    f"{IMAGE_SERVICE}/Delete": (image_service_pb2.DeleteImageMetadata, "image_id"),
    f"{SOURCE_SERVICE}/Upload": (source_service_pb2.RegisterSourceMetadata, "source_id"),
    f"{SOURCE_SERVICE}/Remove": (source_service_pb2.RemoveSourceMetadata, "source_id"),
}
TYPE_PREFIX = "type.googleapis.com/"
EMPTY_URL = TYPE_PREFIX + empty_pb2.Empty.DESCRIPTOR.full_name
IMAGE_URL = TYPE_PREFIX + image_pb2.Image.DESCRIPTOR.full_name
SOURCE_URL = TYPE_PREFIX + source_service_pb2.Source.DESCRIPTOR.full_name
_STATUS: dict[str, Any] = dict(image_pb2.Image.Status.items())
_OS: dict[str, Any] = dict(image_pb2.Os.Type.items())
_PCI: dict[str, Any] = dict(hardware_generation_pb2.PCITopology.items())
_KIND: dict[str, Any] = dict(source_service_pb2.SourceKind.items())


def image_message(image: Image) -> image_pb2.Image:
    message = image_pb2.Image(
        id=image["id"],
        folder_id=image["folder_id"],
        name=image["name"],
        description=image["description"],
        labels=image["labels"],
        family=image["family"],
        storage_size=image["storage_size"],
        min_disk_size=image["min_disk_size"],
        product_ids=image["product_ids"],
        status=_STATUS[image["status"]],
        pooled=image["pooled"],
        size=image["size"],
    )
    message.created_at.seconds = image["created_at"]
    _fill_os(message.os, image["os"])
    _fill_hardware(message.hardware_generation, image["hardware_generation"])
    return message


def image_part(image: Image, fields: Iterable[str]) -> image_pb2.Image:
    """The Image message with these fields of it alone."""
    message = image_pb2.Image()
    for field in fields:
        match field:
            case "created_at":
                message.created_at.seconds = image["created_at"]
            case "labels":
                message.labels.update(image["labels"])
            case "product_ids":
                message.product_ids.extend(image["product_ids"])
            case "status":
                message.status = _STATUS[image["status"]]
            case "os":
                _fill_os(message.os, image["os"])
            case "hardware_generation":
                _fill_hardware(message.hardware_generation, image["hardware_generation"])
            case _:
                setattr(message, field, image[field])  # type: ignore[literal-required]
    return message


def image_bytes(image: Image) -> bytes:
    """The Image message; the same bytes for the same state, whatever the order of its labels."""
    return image_message(image).SerializeToString(deterministic=True)


def image_frame(image: Image) -> bytes:
    """The image as one element of ListImagesResponse.images: the form in which it is stored."""
    return frame(image_bytes(image))


def frame(message: bytes, field_number: int = 1) -> bytes:
    """The bytes as an element of a repeated message field: a list of them is their concatenation."""
    return bytes((field_number << 3 | 2,)) + _varint(len(message)) + message


def unframe(framed: bytes) -> bytes:
    """The message inside a frame of a one-byte tag."""
    start = 1
    while framed[start] & 0x80:
        start += 1
    return framed[start + 1 :]


def source_message(source: Source) -> source_service_pb2.Source:
    message = source_service_pb2.Source(
        id=source["id"],
        folder_id=source["folder_id"],
        kind=_KIND[source["kind"]],
        name=source["name"],
        size=source["size"],
        storage_size=source["storage_size"],
        sha256=source["blob"]["sha256"],
        format=source["blob"]["format"],
    )
    message.created_at.seconds = source["created_at"]
    _fill_hardware(message.hardware_generation, source["hardware_generation"])
    return message


def operation_message(view: OperationView) -> operation_pb2.Operation:
    """The Operation as the API answers it: done exactly with one of error and response."""
    operation = view.operation
    metadata, id_field = METADATA[operation["method"]]
    message = operation_pb2.Operation(
        id=operation["id"],
        description=DESCRIPTIONS[operation["method"]],
        created_by=operation["created_by"],
        done=operation["done"],
    )
    _fill_time(message.created_at, operation["created_at"])
    _fill_time(message.modified_at, operation["modified_at"])
    message.metadata.type_url = TYPE_PREFIX + metadata.DESCRIPTOR.full_name
    message.metadata.value = metadata(**{id_field: operation["resource_id"]}).SerializeToString()
    if operation["error"]:
        _fill_error(message, operation)
    elif operation["done"]:
        _fill_response(message, view)
    return message


def operation_bytes(view: OperationView) -> bytes:
    return operation_message(view).SerializeToString()


def _fill_response(message: operation_pb2.Operation, view: OperationView) -> None:
    result = view.result
    if result is None:
        message.response.type_url = EMPTY_URL
        message.response.value = b""
    elif "kind" in result:
        message.response.type_url = SOURCE_URL
        message.response.value = source_message(cast("Source", result)).SerializeToString()
    else:
        message.response.type_url = IMAGE_URL
        message.response.value = image_bytes(result) if view.wire is None else unframe(view.wire)


def _fill_error(message: operation_pb2.Operation, operation: Operation) -> None:
    error: Mapping[str, Any] = operation["error"]
    message.error.code = error["code"]
    message.error.message = error["message"]
    info = error_details_pb2.ErrorInfo(
        reason=error.get("reason", ""), domain="imageledger", metadata=error.get("metadata", {})
    )
    for detail in (info, error_details_pb2.RequestInfo(request_id=operation["request_id"])):
        added = message.error.details.add()
        added.type_url = TYPE_PREFIX + detail.DESCRIPTOR.full_name
        added.value = detail.SerializeToString(deterministic=True)


def _fill_time(timestamp: Any, ns: int) -> None:
    timestamp.seconds, timestamp.nanos = divmod(ns, NANOS)


def _fill_os(message: image_pb2.Os, os: Mapping[str, Any]) -> None:
    message.type = _OS[os["type"]]
    if "nvidia" in os:
        message.nvidia.SetInParent()
        message.nvidia.driver = os["nvidia"].get("driver", "")


def _fill_hardware(message: hardware_generation_pb2.HardwareGeneration, hardware: Mapping[str, Any]) -> None:
    if "legacy_features" in hardware:
        topology = hardware["legacy_features"].get("pci_topology", "PCI_TOPOLOGY_UNSPECIFIED")
        message.legacy_features.pci_topology = _PCI[topology]
    if "generation2_features" in hardware:
        features = hardware["generation2_features"]
        message.generation2_features.SetInParent()
        message.generation2_features.secure_boot_template_id = features.get("secure_boot_template_id", "")
        message.generation2_features.vtpm_enabled = features.get("vtpm_enabled", False)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
