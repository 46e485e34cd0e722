"""What is no request is refused with one status, in words for people and in details for programs."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest
from google.protobuf.message import Message

from server.gen.imageledger.v1 import blob_service_pb2, source_service_pb2
from server.gen.yandex.cloud.access import access_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.iam.v1 import iam_token_service_pb2
from server.gen.yandex.cloud.operation import operation_service_pb2
from tests.conformance.api import GIB, IAM, MIB, Api, Code, as_of, code_of, refused
from tests.harness import BLOBS, IMAGES, OPERATIONS, SOURCES, Metadata

pytestmark = pytest.mark.usefixtures("quiet")

Create = image_service_pb2.CreateImageRequest
Update = image_service_pb2.UpdateImageRequest
Sources = source_service_pb2
MISSING = "fd8" + "0" * 17

METHODS: dict[str, tuple[str, type[Message]]] = {
    "Get": (IMAGES, image_service_pb2.GetImageRequest),
    "GetLatestByFamily": (IMAGES, image_service_pb2.GetImageLatestByFamilyRequest),
    "List": (IMAGES, image_service_pb2.ListImagesRequest),
    "Create": (IMAGES, Create),
    "Update": (IMAGES, Update),
    "Delete": (IMAGES, image_service_pb2.DeleteImageRequest),
    "ListOperations": (IMAGES, image_service_pb2.ListImageOperationsRequest),
    "ListAccessBindings": (IMAGES, access_pb2.ListAccessBindingsRequest),
    "SetAccessBindings": (IMAGES, access_pb2.SetAccessBindingsRequest),
    "UpdateAccessBindings": (IMAGES, access_pb2.UpdateAccessBindingsRequest),
    "OperationGet": (OPERATIONS, operation_service_pb2.GetOperationRequest),
    "OperationCancel": (OPERATIONS, operation_service_pb2.CancelOperationRequest),
    "TokenCreate": (IAM, iam_token_service_pb2.CreateIamTokenRequest),
    "TokenCreateForServiceAccount": (IAM, iam_token_service_pb2.CreateIamTokenForServiceAccountRequest),
    "TokenRevoke": (IAM, iam_token_service_pb2.RevokeIamTokenRequest),
    "SourceList": (SOURCES, Sources.ListSourcesRequest),
    "SourceRemove": (SOURCES, Sources.RemoveSourceRequest),
}
FOLDER = {"folder_id": "f"}
IMAGE = {"image_id": "i"}
CREATE = {"folder_id": "f", "image_id": "i"}
BINDING = {"role_id": "r", "subject": {"id": "i", "type": "t"}}
ACTION = {"action": "ADD", "access_binding": BINDING}


def send(api: Api, method: str, request: Message | bytes, metadata: Metadata = ()) -> object:
    service, _ = METHODS[method]
    rpc = method.removeprefix("Operation").removeprefix("Token").removeprefix("Source")
    stub = api.channel.unary_unary(f"/{service}/{rpc}", bytes, bytes)
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return stub(raw, metadata=api.metadata(metadata), timeout=30)


OURS = (Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE, Code.DATA_LOSS)


def row(method: str, fields: dict[str, Any], broken: str | list[str], name: str) -> Any:
    fields_broken = [broken] if isinstance(broken, str) else broken
    return pytest.param(method, fields, fields_broken, id=f"{method}-{name}")


IDS = [
    row(method, fields | {field: value}, field, f"{field}-{name}")
    for method, field, most, fields in (
        ("Get", "image_id", 50, {}),
        ("GetLatestByFamily", "folder_id", 50, {}),
        ("List", "folder_id", 50, {}),
        ("Create", "folder_id", 50, {"image_id": "i"}),
        ("Create", "image_id", 50, FOLDER),
        ("Create", "disk_id", 50, FOLDER),
        ("Create", "snapshot_id", 50, FOLDER),
        ("Update", "image_id", 50, {}),
        ("Delete", "image_id", 50, {}),
        ("ListOperations", "image_id", 50, {}),
        ("ListAccessBindings", "resource_id", 64, {}),
        ("SetAccessBindings", "resource_id", 64, {}),
        ("UpdateAccessBindings", "resource_id", 64, {"access_binding_deltas": [ACTION]}),
        ("SourceList", "folder_id", 50, {}),
        ("SourceRemove", "source_id", 50, {}),
        ("TokenCreate", "yandex_passport_oauth_token", 4000, {}),
        ("TokenCreate", "jwt", 8000, {}),
        ("TokenRevoke", "iam_token", 4096, {}),
    )
    for name, value in (("empty", ""), ("long", "x" * (most + 1)))
]
PAGES = [
    row(method, fields | {field: value}, field, f"{field}-{name}")
    for method, fields in (
        ("List", FOLDER),
        ("ListOperations", IMAGE),
        ("ListAccessBindings", {"resource_id": "i"}),
        ("SourceList", FOLDER),
    )
    for field, name, value in (
        ("page_size", "negative", -1),
        ("page_size", "1001", 1001),
        ("page_token", "long", "x" * 101),
    )
]
VALUES = [
    row(method, fields | {field: value}, broken, f"{field}-{str(value)[:20]!a}")
    for method, fields in (("Create", CREATE), ("Update", IMAGE))
    for field, value, broken in (
        ("name", "Web", "name"),
        ("name", "we_b", "name"),
        ("name", "-web", "name"),
        ("name", "web-", "name"),
        ("name", "1web", "name"),
        ("name", "w" * 64, "name"),
        ("name", "web\n", "name"),
        ("name", "вэб", "name"),
        ("description", "ж" * 257, "description"),
        ("labels", {f"k{number}": "" for number in range(65)}, "labels"),
        ("labels", {"Key": "v"}, 'labels["Key"]'),
        ("labels", {"k" * 64: "v"}, f'labels["{"k" * 64}"]'),
        ("labels", {"k": "Value"}, 'labels["k"]'),
        ("labels", {"k": "v" * 64}, 'labels["k"]'),
        ("min_disk_size", 4 * MIB - 1, "min_disk_size"),
        ("min_disk_size", 4096 * GIB + 1, "min_disk_size"),
        ("min_disk_size", -1, "min_disk_size"),
    )
]
OTHERS = [
    *(
        row("Create", CREATE | {"family": family}, "family", f"family-{family[:5]!a}")
        for family in ("ab", "Web", "web-", "1web", "w" * 64, "we_b")
    ),
    row("GetLatestByFamily", FOLDER | {"family": "No"}, "family", "family"),
    row("Create", CREATE | {"product_ids": ["p" * 51]}, "product_ids[0]", "product-long"),
    row("Create", CREATE | {"product_ids": ["p"] * 65}, "product_ids", "products-65"),
    row("Create", CREATE | {"os": {"type": 3}}, "os.type", "os-unknown"),
    row(
        "Create",
        CREATE | {"hardware_generation": {"legacy_features": {"pci_topology": 7}}},
        "hardware_generation.legacy_features.pci_topology",
        "topology-unknown",
    ),
    row("Create", FOLDER, "source", "no-source"),
    row("Create", {"name": "A"}, ["folder_id", "name", "source"], "all-at-once"),
    row("List", FOLDER | {"filter": "x" * 1001}, "filter", "filter-long"),
    row("List", FOLDER | {"order_by": "x" * 101}, "order_by", "order-long"),
    *(
        row("Update", IMAGE | {"update_mask": {"paths": [path]}}, "update_mask", f"mask-{path!a}")
        for path in ("", "*", "minDiskSize", "labels.key", "family", "name,labels")
    ),
    row(
        "SetAccessBindings",
        {"resource_id": "i", "access_bindings": [{}]},
        ["access_bindings[0].role_id", "access_bindings[0].subject"],
        "empty-binding",
    ),
    row("UpdateAccessBindings", {"resource_id": "i"}, "access_binding_deltas", "no-deltas"),
    row(
        "UpdateAccessBindings",
        {"resource_id": "i", "access_binding_deltas": [ACTION, ACTION | {"action": 0}]},
        "access_binding_deltas[1].action",
        "no-action",
    ),
    row("OperationGet", {}, "operation_id", "empty"),
    row("OperationCancel", {}, "operation_id", "empty"),
    row("TokenCreate", {}, "identity", "neither"),
    row("TokenCreateForServiceAccount", {}, "service_account_id", "empty"),
]


@pytest.mark.parametrize(("method", "fields", "broken"), [*IDS, *PAGES, *VALUES, *OTHERS])
def test_broken_rule(api: Api, method: str, fields: dict[str, Any], broken: list[str]) -> None:
    refusal = refused(lambda: send(api, method, METHODS[method][1](**fields)))

    assert refusal.code == Code.INVALID_ARGUMENT
    assert refusal.fields == broken
    assert refusal.message.startswith("Request validation error: ")


def test_a_refusal_in_the_words_clients_know(api: Api) -> None:
    refusal = refused(lambda: api.create("", name="A_b", image_id="i"))

    assert refusal.message == "Request validation error: FolderId: is required; Name: invalid resource name"
    assert refusal.descriptions == ["is required", "invalid resource name"]
    assert (refusal.reason, refusal.domain) == ("REQUEST_INVALID", "imageledger")
    assert refusal.request_id == refusal.trailing["x-request-id"]


def test_two_sources_on_the_wire(api: Api) -> None:
    raw = Create(folder_id="f", image_id="i").SerializeToString() + Create(disk_id="d").SerializeToString()

    refusal = refused(lambda: send(api, "Create", raw))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["source"])


@pytest.mark.parametrize("character", ["Ж", "%", "\n", '"', "X"], ids=ascii)
def test_the_largest_refusal_still_arrives(api: Api, character: str) -> None:
    labels = {character * 60 + str(number): character * 64 for number in range(100)}
    ids = [("x-client-request-id", "%" * 64), ("x-client-trace-id", "%" * 64)]

    # gRPC refuses trailers beyond 8 KiB by chance, so one call would prove nothing.
    refusals = [refused(lambda: api.update("i", [character * 99], ids, labels=labels)) for _ in range(20)]

    assert {refusal.code for refusal in refusals} == {Code.INVALID_ARGUMENT}
    assert "more" in refusals[0].message
    assert len(refusals[0].fields) >= 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05a", b"\x0a\x02\xff\xfe", b"\x0b", b"\x07\x00"])
def test_bytes_that_are_no_message(api: Api, method: str, raw: bytes) -> None:
    refusal = refused(lambda: send(api, method, raw))

    assert refusal.code == Code.INVALID_ARGUMENT
    assert METHODS[method][1].DESCRIPTOR.full_name in refusal.message
    assert refusal.request_id


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_body_lacks_what_is_required(api: Api, method: str) -> None:
    refusal = refused(lambda: send(api, method, b""))

    assert refusal.code == Code.INVALID_ARGUMENT
    assert refusal.fields


@pytest.mark.parametrize("method", METHODS)
def test_random_fields_are_never_our_fault(api: Api, method: str) -> None:
    chance = random.Random(f"fields of {method}")
    for _ in range(25):
        body = b"".join(
            bytes([chance.randrange(1, 19) << 3 & 0x7F | 2, size])
            + bytes(chance.choices(b"a\0\x08\xc3\xa9", k=size))
            for size in chance.choices(range(6), k=3)
        )
        assert code_of(lambda: send(api, method, body)) not in OURS, body  # noqa: B023


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a\0b", id="nul"),
        pytest.param("a/b", id="slash"),
        pytest.param("\U0001f600" * 50, id="four-bytes-each"),
        pytest.param("a\nb\tc", id="control"),
        pytest.param("' OR 1=1 --", id="sql"),
    ],
)
def test_any_text_may_be_a_folder(api: Api, disk: Sources.Source, text: str) -> None:
    made = api.image(text, disk_id=disk.id)

    assert [image.id for image in api.list(text).images] == [made.id]
    assert api.get(made.id).folder_id == text


@pytest.mark.parametrize("text", ["a\0b", "' OR 1=1 --", "\U0001f600" * 50, "%s", 'a"b'])
def test_any_text_may_be_an_id_that_is_not_there(api: Api, text: str) -> None:
    refusal = refused(lambda: api.get(text))

    assert refusal.code == Code.NOT_FOUND
    assert refusal.message == f'Image "{text}" not found'


def test_a_request_over_one_mebibyte(api: Api) -> None:
    refusal = refused(lambda: send(api, "Get", b"\xa2\x06\x80\x80\x40" + bytes(MIB)))

    assert refusal.code in (Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT)


def test_metadata_over_eight_kibibytes(api: Api) -> None:
    refusal = refused(lambda: api.list("f", [("x-large", "x" * 9000)]))

    assert refusal.code == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "path", ["/x/y", f"/{IMAGES}/Nothing", f"/{IMAGES}", "/", "/grpc.channelz.v1.Channelz/GetTopChannels"]
)
def test_a_method_that_is_not_there(api: Api, path: str) -> None:
    stub = api.channel.unary_unary(path, lambda raw: raw, lambda raw: raw)

    refusal = refused(lambda: stub(b"", metadata=api.metadata(), timeout=10))

    assert refusal.code == Code.UNIMPLEMENTED
    assert refusal.request_id == refusal.trailing["x-request-id"]


@pytest.mark.parametrize("method", ["ListAccessBindings", "SetAccessBindings"])
def test_access_bindings_are_said_to_be_missing(api: Api, method: str) -> None:
    refusal = refused(lambda: send(api, method, METHODS[method][1](resource_id="i")))

    assert refusal.code == Code.UNIMPLEMENTED


NOT_THERE = [
    pytest.param("Get", {"image_id": MISSING}, f'Image "{MISSING}" not found', id="Get"),
    pytest.param("Update", {"image_id": MISSING}, f'Image "{MISSING}" not found', id="Update"),
    pytest.param("Delete", {"image_id": MISSING}, f'Image "{MISSING}" not found', id="Delete"),
    pytest.param(
        "ListOperations", {"image_id": MISSING}, f'Image "{MISSING}" not found', id="ListOperations"
    ),
    pytest.param("GetLatestByFamily", FOLDER | {"family": "web"}, 'Image "web" not found', id="family"),
    pytest.param("GetLatestByFamily", FOLDER, 'Image "" not found', id="empty-family"),
    pytest.param("OperationGet", {"operation_id": "o"}, 'Operation "o" not found', id="OperationGet"),
    pytest.param("OperationCancel", {"operation_id": "o"}, 'Operation "o" not found', id="OperationCancel"),
    pytest.param("SourceRemove", {"source_id": "s"}, 'Source "s" not found', id="SourceRemove"),
]


@pytest.mark.parametrize(("method", "fields", "message"), NOT_THERE)
def test_not_found(api: Api, method: str, fields: dict[str, Any], message: str) -> None:
    refusal = refused(lambda: send(api, method, METHODS[method][1](**fields)))

    assert (refusal.code, refusal.message, refusal.reason) == (Code.NOT_FOUND, message, "NOT_FOUND")
    assert refusal.request_id == refusal.trailing["x-request-id"]


def test_a_long_id_is_quoted_short(api: Api) -> None:
    refusal = refused(lambda: api.operation("o" * 500_000))

    assert refusal.code == Code.NOT_FOUND
    assert len(refusal.message) < 200


def test_the_bytes_of_an_image_that_is_not_there(api: Api) -> None:
    assert refused(lambda: api.read(MISSING)).message == f'Image "{MISSING}" not found'


def test_an_offset_beyond_the_end(api: Api, disk: Sources.Source, folder: str) -> None:
    image = api.image(folder, disk_id=disk.id)

    refusal = refused(lambda: api.read(image.id, offset=image.storage_size + 1))

    assert (refusal.code, refusal.fields) == (Code.OUT_OF_RANGE, ["offset"])


def test_a_negative_offset(api: Api) -> None:
    refusal = refused(lambda: api.read("i", offset=-1))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["offset"])


def test_garbage_for_a_streaming_method(api: Api) -> None:
    stub = api.channel.unary_stream(
        f"/{BLOBS}/Read", lambda raw: raw, blob_service_pb2.ReadBlobResponse.FromString
    )

    refusal = refused(lambda: list(stub(b"\xff", metadata=api.metadata(), timeout=10)))

    assert refusal.code == Code.INVALID_ARGUMENT
    assert refusal.request_id == refusal.trailing["x-request-id"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param({"image_id": MISSING}, f'Image "{MISSING}" not found', id="image"),
        pytest.param({"disk_id": MISSING}, f'Disk "{MISSING}" not found', id="disk"),
        pytest.param({"snapshot_id": MISSING}, f'Snapshot "{MISSING}" not found', id="snapshot"),
    ],
)
def test_a_missing_source(api: Api, source: dict[str, str], message: str) -> None:
    refusal = refused(lambda: api.create("f", **source))

    assert (refusal.code, refusal.message) == (Code.FAILED_PRECONDITION, message)


def test_a_disk_is_no_snapshot(api: Api, disk: Sources.Source) -> None:
    refusal = refused(lambda: api.create("f", snapshot_id=disk.id))

    assert (refusal.code, refusal.message) == (Code.FAILED_PRECONDITION, f'Snapshot "{disk.id}" not found')


def test_a_uri_outside_the_allowed_prefixes(api: Api) -> None:
    refusal = refused(lambda: api.create("f", uri="https://example.test/disk.qcow2?secret=hidden"))

    assert refusal.code == Code.FAILED_PRECONDITION
    assert "hidden" not in refusal.message


# --- Questions ---


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(
            pytest.param("filter", text, id=f"filter-{text!a}")
            for text in (
                "size = '1'",
                "labels.a = 'b'",
                "description = 'x'",
                "name",
                "name =",
                "name = web",
                "name = 'web",
                "name == 'web'",
                "name < 'web'",
                "name IN ()",
                "name IN 'web'",
                "name IN ('a' 'b')",
                "name NOT 'web'",
                "name = 'a' OR name = 'b'",
                "name = 'a' AND",
                "AND name = 'a'",
                "name = 'a' name = 'b'",
                r"name = 'a\n'",
                "status = 'GONE'",
                "created_at = 'yesterday'",
                "(name = 'a')",
                "Name = 'a'",
                "\0",
            )
        ),
        *(
            pytest.param("order_by", text, id=f"order-{text!a}")
            for text in (
                "size",
                "name,id",
                "name, id desc",
                "name down",
                "desc",
                "name desc desc",
                "createdat",
            )
        ),
        *(
            pytest.param("page_token", text, id=f"token-{text!a}")
            for text in ("x", "=", "2", "A" * 96, "A" * 100, "жжж", "../..", " ")
        ),
    ],
)
def test_a_question_that_is_none(api: Api, field: str, text: str) -> None:
    refusal = refused(lambda: api.list("f", **{field: text}))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, [field])
    camel = {"filter": "Filter", "order_by": "OrderBy", "page_token": "PageToken"}[field]
    assert refusal.message == f"Request validation error: {camel}: {refusal.descriptions[0]}"


# --- Headers ---


@pytest.mark.parametrize("text", ["", "not-a-uuid", "1", uuid.UUID(int=1).hex, f"{{{uuid.UUID(int=1)}}}"])
@pytest.mark.parametrize("method", ["Create", "Update", "Delete", "SourceRemove", "OperationCancel"])
def test_an_idempotency_key_that_is_no_uuid(api: Api, method: str, text: str) -> None:
    fields = {
        "Create": CREATE,
        "SourceRemove": {"source_id": "s"},
        "OperationCancel": {"operation_id": "o"},
    }.get(method, IMAGE)

    refusal = refused(lambda: send(api, method, METHODS[method][1](**fields), [("idempotency-key", text)]))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["idempotency-key"])


def test_an_idempotency_key_is_ignored_on_reads(api: Api, folder: str) -> None:
    assert not api.list(folder, [("idempotency-key", "not-a-uuid")]).images


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        pytest.param("x-change-reason", "x" * 257, "x-change-reason", id="long"),
        pytest.param("x-change-reason-bin", ("ж" * 257).encode(), "x-change-reason-bin", id="long-bin"),
        pytest.param("x-change-reason-bin", b"\xff", "x-change-reason-bin", id="not-utf-8"),
        pytest.param("x-change-reason-bin", b"\xed\xa0\x80", "x-change-reason-bin", id="surrogate"),
    ],
)
@pytest.mark.parametrize("method", ["Create", "Update", "Delete", "SourceRemove", "OperationCancel"])
def test_a_reason_that_is_none(api: Api, method: str, name: str, value: str | bytes, field: str) -> None:
    fields = {
        "Create": CREATE,
        "SourceRemove": {"source_id": "s"},
        "OperationCancel": {"operation_id": "o"},
    }.get(method, IMAGE)

    refusal = refused(lambda: send(api, method, METHODS[method][1](**fields), [(name, value)]))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, [field])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("x-change-reason", "x" * 256, id="text"),
        pytest.param("x-change-reason", "", id="empty"),
        pytest.param("x-change-reason-bin", ("ж" * 256).encode(), id="bytes"),
        pytest.param("x-change-reason-bin", b"two\nlines", id="lines"),
    ],
)
def test_a_reason(api: Api, disk: Sources.Source, folder: str, name: str, value: str | bytes) -> None:
    assert api.create(folder, [(name, value)], disk_id=disk.id).done


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "head",
        "-1",
        "+1",
        "01",
        "1.5",
        "0x1",
        "9" * 20,
        "9" * 5000,
        "2026-11-23",
        "2026-11-23T10:00:00",
        "2026-11-23 10:00:00Z",
        "2026-02-30T10:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T10:00:60Z",
        "2026-11-23T10:00:00.Z",
        "2026-11-23T10:00:00.0123456789Z",
        "2026-11-23T10:00:00+0300",
        "2026-11-23T10:00:00+24:00",
    ],
    ids=lambda text: f"{text[:30]!a}",
)
def test_a_moment_that_is_none(api: Api, text: str) -> None:
    refusal = refused(lambda: api.list("f", as_of(text)))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["x-as-of"])


@pytest.mark.parametrize(
    "text", ["2200-01-01T00:00:00Z", "2262-04-12T00:00:00Z", "9999-12-31T23:59:59.999999999Z"]
)
def test_a_time_in_the_future(api: Api, text: str) -> None:
    refusal = refused(lambda: api.list("f", as_of(text)))

    assert (refusal.code, refusal.fields) == (Code.OUT_OF_RANGE, ["x-as-of"])
    assert "future" in refusal.message


@pytest.mark.parametrize(
    "text", ["2001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z"]
)
def test_a_time_before_the_log_begins(api: Api, text: str) -> None:
    refusal = refused(lambda: api.list("f", as_of(text)))

    assert (refusal.code, refusal.fields) == (Code.OUT_OF_RANGE, ["x-as-of"])
    assert "The log begins at 20" in refusal.message


def test_a_position_beyond_the_head(api: Api) -> None:
    refusal = refused(lambda: api.list("f", as_of(2**63 - 1)))

    assert (refusal.code, refusal.fields) == (Code.OUT_OF_RANGE, ["x-as-of"])


@pytest.mark.parametrize("method", ["Create", "Update", "Delete", "SourceRemove", "OperationCancel"])
@pytest.mark.parametrize("text", ["1", "never", ""])
def test_as_of_on_a_write(api: Api, method: str, text: str) -> None:
    fields = {"Create": CREATE, "SourceRemove": {"source_id": "s"}, "OperationCancel": {"operation_id": "o"}}

    request = METHODS[method][1](**fields.get(method, IMAGE))
    refusal = refused(lambda: send(api, method, request, as_of(text)))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["x-as-of"])


def test_as_of_on_an_upload(api: Api) -> None:
    header = Sources.SourceHeader(folder_id="f", kind="DISK")

    refusal = refused(lambda: api.upload(header, [bytes(512)], as_of(1)))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["x-as-of"])


@pytest.mark.parametrize("text", ["", "-1", "x", "1.0", " 1 2", "9" * 20])
def test_a_minimum_that_is_no_position(api: Api, text: str) -> None:
    refusal = refused(lambda: api.list("f", [("x-min-position", text)]))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["x-min-position"])


@pytest.mark.parametrize("text", ["9" * 18, str(2**63)])
def test_a_minimum_beyond_the_head(api: Api, text: str) -> None:
    refusal = refused(lambda: api.list("f", [("x-min-position", text)]))

    assert (refusal.code, refusal.fields) == (Code.OUT_OF_RANGE, ["x-min-position"])
