"""Every rule on every request, both sides of each bound."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2 as default_descriptor_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from server.gen.imageledger.v1 import blob_service_pb2, source_service_pb2, status_service_pb2
from server.gen.yandex.cloud.access import access_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from server.gen.yandex.cloud.endpoint import api_endpoint_service_pb2
from server.gen.yandex.cloud.iam.v1 import iam_token_service_pb2
from server.gen.yandex.cloud.operation import operation_service_pb2
from server.validate import (
    VIOLATIONS_MAX,
    RequestInvalid,
    RequestUnreadable,
    Violation,
    check,
    fields,
    parse,
)

SERVICES = (
    image_service_pb2,
    operation_service_pb2,
    api_endpoint_service_pb2,
    iam_token_service_pb2,
    source_service_pb2,
    blob_service_pb2,
    status_service_pb2,
)
REQUESTS: list[type[Message]] = [
    GetMessageClass(method.input_type)
    for file in SERVICES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]

Get = image_service_pb2.GetImageRequest
Latest = image_service_pb2.GetImageLatestByFamilyRequest
List = image_service_pb2.ListImagesRequest
Create = image_service_pb2.CreateImageRequest
Update = image_service_pb2.UpdateImageRequest
Delete = image_service_pb2.DeleteImageRequest
ListOperations = image_service_pb2.ListImageOperationsRequest
ListBindings = access_pb2.ListAccessBindingsRequest
SetBindings = access_pb2.SetAccessBindingsRequest
UpdateBindings = access_pb2.UpdateAccessBindingsRequest
GetOperation = operation_service_pb2.GetOperationRequest
Cancel = operation_service_pb2.CancelOperationRequest
Token = iam_token_service_pb2.CreateIamTokenRequest
ServiceAccountToken = iam_token_service_pb2.CreateIamTokenForServiceAccountRequest
Revoke = iam_token_service_pb2.RevokeIamTokenRequest
Upload = source_service_pb2.UploadSourceRequest
ListSources = source_service_pb2.ListSourcesRequest
RemoveSource = source_service_pb2.RemoveSourceRequest
ReadBlob = blob_service_pb2.ReadBlobRequest
VerifyBlob = blob_service_pb2.VerifyBlobRequest

GIB = 2**30
BINDING = {"role_id": "r", "subject": {"id": "i", "type": "t"}}
DELTA = {"action": "ADD", "access_binding": BINDING}
HEADER = {"folder_id": "f", "kind": "DISK"}

# A request of each type that keeps all rules; the rows below change one field of it.
VALID: dict[type[Any], dict[str, Any]] = {
    Get: {"image_id": "i"},
    Latest: {"folder_id": "f"},
    List: {"folder_id": "f"},
    Create: {"folder_id": "f", "image_id": "i"},
    Update: {"image_id": "i"},
    Delete: {"image_id": "i"},
    ListOperations: {"image_id": "i"},
    ListBindings: {"resource_id": "i"},
    SetBindings: {"resource_id": "i"},
    UpdateBindings: {"resource_id": "i", "access_binding_deltas": [DELTA]},
    GetOperation: {"operation_id": "o"},
    Cancel: {"operation_id": "o"},
    Token: {"jwt": "j"},
    ServiceAccountToken: {"service_account_id": "s"},
    Revoke: {"iam_token": "t"},
    Upload: {"header": HEADER},
    ListSources: {"folder_id": "f"},
    RemoveSource: {"source_id": "s"},
    ReadBlob: {"image_id": "i"},
    VerifyBlob: {"image_id": "x"},
    api_endpoint_service_pb2.GetApiEndpointRequest: {},
    api_endpoint_service_pb2.ListApiEndpointsRequest: {},
    status_service_pb2.GetStatusRequest: {},
}


def refusal_of(kind: type[Message], raw: bytes) -> RequestInvalid | None:
    try:
        parse(kind, raw)
    except RequestInvalid as error:
        return error
    return None


def refusals(message: Message) -> tuple[Violation, ...]:
    refusal = refusal_of(type(message), message.SerializeToString())
    return refusal.violations if refusal else ()


def paths(message: Message) -> list[str]:
    return [violation.field for violation in refusals(message)]


def text(kind: type[Any], field: str, *, most: int) -> Iterator[Any]:
    """Rows of a string's upper bound, in characters, not bytes."""
    for size, broken in ((most, []), (most + 1, [field])):
        yield pytest.param(kind, {field: "ж" * size}, broken, id=f"{kind.__name__}-{field}-{size}")


def required(kind: type[Any], field: str) -> Any:
    return pytest.param(kind, {field: ""}, [field], id=f"{kind.__name__}-{field}-required")


def accepted(kind: type[Any], field: str, *values: Any) -> Iterator[Any]:
    for value in values:
        yield pytest.param(kind, {field: value}, [], id=f"{kind.__name__}-{field}-{str(value)[:30]}")


def refused(kind: type[Any], field: str, *values: Any) -> Iterator[Any]:
    for value in values:
        yield pytest.param(
            kind, {field: value}, [field], id=f"{kind.__name__}-{field}-not-{str(value)[:30]!r}"
        )


def identifiers() -> Iterator[Any]:
    for kind, field, most in (
        (Get, "image_id", 50),
        (Latest, "folder_id", 50),
        (List, "folder_id", 50),
        (Create, "folder_id", 50),
        (Update, "image_id", 50),
        (Delete, "image_id", 50),
        (ListOperations, "image_id", 50),
        (ListBindings, "resource_id", 64),
        (SetBindings, "resource_id", 64),
        (UpdateBindings, "resource_id", 64),
        (ServiceAccountToken, "service_account_id", 50),
        (Revoke, "iam_token", 4096),
        (ListSources, "folder_id", 50),
        (RemoveSource, "source_id", 50),
        (ReadBlob, "image_id", 50),
        (VerifyBlob, "image_id", 50),
    ):
        yield required(kind, field)
        yield from text(kind, field, most=most)
    yield required(GetOperation, "operation_id")
    yield required(Cancel, "operation_id")


def listings() -> Iterator[Any]:
    for kind in (List, ListOperations, ListBindings, ListSources):
        yield from accepted(kind, "page_size", 0, 1, 1000)
        yield from refused(kind, "page_size", -1, 1001, 2**63 - 1, -(2**63))
        yield from text(kind, "page_token", most=100)
    yield from text(List, "filter", most=1000)
    yield from text(List, "order_by", most=100)


def resources() -> Iterator[Any]:
    for kind in (Create, Update):
        yield from accepted(kind, "name", "", "a", "a1", "a-1", "a" * 63)
        yield from refused(kind, "name", "A", "1a", "-a", "a-", "a_b", "a" * 64, "a\n", "\n", " ", "а", "a.b")
        yield from text(kind, "description", most=256)
        yield from accepted(kind, "min_disk_size", 0, 4194304, 4194305, 4398046511104)
        yield from refused(kind, "min_disk_size", -1, 1, 4194303, 4398046511105, -4194304)
        yield from accepted(kind, "labels", {f"k{i}": "" for i in range(64)})
        yield from refused(kind, "labels", {f"k{i}": "" for i in range(65)})
    for named in (Create, Latest):
        yield from accepted(named, "family", "", "abc", "a-1", "a" * 63)
        yield from refused(named, "family", "a", "ab", "Abc", "ab-", "1ab", "a" * 64, "abc\n", "a_c")
    yield from accepted(Create, "product_ids", [], [""], ["p"] * 64)
    yield from refused(Create, "product_ids", ["p"] * 65)
    for member, most in (("image_id", 50), ("disk_id", 50), ("snapshot_id", 50), ("uri", 4096)):
        yield required(Create, member)
        yield from text(Create, member, most=most)
    yield from accepted(Create, "os", {}, {"type": "TYPE_UNSPECIFIED"}, {"type": "WINDOWS"})


def ours() -> Iterator[Any]:
    yield from accepted(ReadBlob, "offset", 0, 1, 2**63 - 1)
    yield from refused(ReadBlob, "offset", -1)
    for member, most in (("yandex_passport_oauth_token", 4000), ("jwt", 8000)):
        yield required(Token, member)
        yield from text(Token, member, most=most)


@pytest.mark.parametrize(("kind", "changed", "broken"), [*identifiers(), *listings(), *resources(), *ours()])
def test_rule_of_a_field(kind: type[Any], changed: dict[str, Any], broken: list[str]) -> None:
    assert paths(kind(**VALID[kind] | changed)) == broken


@pytest.mark.parametrize(
    ("kind", "raw"), [pytest.param(k, k(**v).SerializeToString(), id=k.__name__) for k, v in VALID.items()]
)
def test_valid_request(kind: type[Message], raw: bytes) -> None:
    parse(kind, raw)


def test_every_request_of_every_service_is_tested_here() -> None:
    assert set(REQUESTS) == VALID.keys()


@pytest.mark.parametrize("kind", [Create, Update])
@pytest.mark.parametrize(
    ("labels", "broken"),
    [
        pytest.param({"a": ""}, [], id="shortest"),
        pytest.param({"a" * 63: "b" * 63}, [], id="longest"),
        pytest.param({r"a-_./\@09z": r"-_./\@09z"}, [], id="all-characters-with-a-backslash"),
        pytest.param({"a": "9"}, [], id="value-begins-with-anything"),
        pytest.param({"": "v"}, ['labels[""]', 'labels[""]'], id="empty-key"),
        pytest.param({"a" * 64: "v"}, [f'labels["{"a" * 64}"]'], id="key-too-long"),
        pytest.param({"Key": "v"}, ['labels["Key"]'], id="key-upper-case"),
        pytest.param({"1": "v"}, ['labels["1"]'], id="key-begins-with-a-digit"),
        pytest.param({"a\n": "v"}, [r'labels["a\n"]'], id="key-newline"),
        pytest.param({'a"]': "v"}, [r'labels["a\"]"]'], id="key-quote"),
        pytest.param({"a": "b" * 64}, ['labels["a"]'], id="value-too-long"),
        pytest.param({"a": "B"}, ['labels["a"]'], id="value-upper-case"),
        pytest.param({"a": "b\n"}, ['labels["a"]'], id="value-newline"),
        pytest.param(dict.fromkeys("fcebda", "X"), [f'labels["{k}"]' for k in "abcdef"], id="in-order"),
    ],
)
def test_labels(kind: type[Any], labels: dict[str, str], broken: list[str]) -> None:
    assert paths(kind(**VALID[kind] | {"labels": labels})) == broken


def test_a_label_says_which_side_is_broken() -> None:
    assert [v.description for v in refusals(Update(image_id="i", labels={"K": "V"}))] == [
        r'the key must match the pattern [a-z][-_./\\@0-9a-z]*, but is "K"',
        r'the value must match the pattern [-_./\\@0-9a-z]*, but is "V"',
    ]


def test_each_item_of_a_list() -> None:
    message = Create(folder_id="f", image_id="i", product_ids=["p" * 50, "", "p" * 51])

    assert paths(message) == ["product_ids[2]"]


@pytest.mark.parametrize(
    ("update_mask", "broken"),
    [
        pytest.param([], [], id="no-paths"),
        pytest.param(["name", "description", "min_disk_size", "labels"], [], id="all"),
        pytest.param(["name", "name"], [], id="repeated"),
        *(
            pytest.param([path, "name"], [path], id=path or "empty")
            for path in (
                "",
                "*",
                "minDiskSize",
                "labels.a",
                "family",
                "image_id",
                "update_mask",
                "os",
                "name,labels",
                "Name",
                " name",
                "name\n",
            )
        ),
        pytest.param(["b", "a", "b"], ["a", "b"], id="each-once-in-order"),
    ],
)
def test_update_mask(update_mask: list[str], broken: list[str]) -> None:
    found = refusals(Update(image_id="i", update_mask={"paths": update_mask}))

    assert [v.field for v in found] == ["update_mask"] * len(broken)
    for violation, path in zip(found, broken, strict=True):
        seen = path.replace("\n", r"\n")
        assert violation.description == (
            f'must hold only name, description, min_disk_size, labels, but holds "{seen}"'
        )


@pytest.mark.parametrize(
    ("message", "broken"),
    [
        pytest.param(Create(**VALID[Create], os={"type": 3}), "os.type", id="os"),
        pytest.param(Create(**VALID[Create], os={"type": -1}), "os.type", id="negative"),
        pytest.param(
            Create(**VALID[Create], hardware_generation={"legacy_features": {"pci_topology": 3}}),
            "hardware_generation.legacy_features.pci_topology",
            id="deep",
        ),
        pytest.param(
            UpdateBindings(resource_id="i", access_binding_deltas=[DELTA, DELTA | {"action": 77}]),
            "access_binding_deltas[1].action",
            id="in-a-list",
        ),
        pytest.param(Upload(header=HEADER | {"kind": 3}), "header.kind", id="ours"),
    ],
)
def test_unknown_enum_number(message: Message, broken: str) -> None:
    assert paths(message) == [broken]


def test_unknown_enum_number_is_told_with_the_known_names() -> None:
    (found,) = refusals(Create(**VALID[Create], os={"type": 3}))

    assert found.description == "must be one of TYPE_UNSPECIFIED, LINUX, WINDOWS, but is 3"


@pytest.mark.parametrize(
    ("binding", "broken"),
    [
        pytest.param(BINDING, [], id="valid"),
        pytest.param(
            {"role_id": "r" * 64, "subject": {"id": "i" * 100, "type": "t" * 100}}, [], id="longest"
        ),
        pytest.param(
            {"role_id": "r" * 65, "subject": {"id": "i" * 101, "type": "t" * 101}},
            ["role_id", "subject.id", "subject.type"],
            id="too-long",
        ),
        pytest.param({}, ["role_id", "subject"], id="empty"),
        pytest.param({"role_id": "r", "subject": {}}, ["subject.id", "subject.type"], id="empty-subject"),
    ],
)
def test_access_binding(binding: dict[str, Any], broken: list[str]) -> None:
    of_set = SetBindings(resource_id="i", access_bindings=[BINDING, binding])
    of_update = UpdateBindings(
        resource_id="i", access_binding_deltas=[{"action": "REMOVE", "access_binding": binding}]
    )

    assert paths(of_set) == [f"access_bindings[1].{path}" for path in broken]
    assert paths(of_update) == [f"access_binding_deltas[0].access_binding.{path}" for path in broken]


def test_access_binding_delta_needs_both() -> None:
    assert paths(UpdateBindings(resource_id="i", access_binding_deltas=[{}])) == [
        "access_binding_deltas[0].action",
        "access_binding_deltas[0].access_binding",
    ]


@pytest.mark.parametrize(
    ("message", "broken"),
    [
        pytest.param(SetBindings(resource_id="i"), [], id="set-none"),
        pytest.param(SetBindings(resource_id="i", access_bindings=[BINDING] * 1000), [], id="set-1000"),
        pytest.param(
            SetBindings(resource_id="i", access_bindings=[BINDING] * 1001), ["access_bindings"], id="set-1001"
        ),
        pytest.param(UpdateBindings(resource_id="i"), ["access_binding_deltas"], id="update-none"),
        pytest.param(
            UpdateBindings(resource_id="i", access_binding_deltas=[DELTA] * 1000), [], id="update-1000"
        ),
        pytest.param(
            UpdateBindings(resource_id="i", access_binding_deltas=[DELTA] * 1001),
            ["access_binding_deltas"],
            id="update-1001",
        ),
    ],
)
def test_how_many_bindings(message: Message, broken: list[str]) -> None:
    assert paths(message) == broken


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        pytest.param({}, [], id="valid"),
        pytest.param({"kind": "SNAPSHOT", "name": "a", "size_bytes": 1, "sha256": "0" * 64}, [], id="all"),
        pytest.param({"folder_id": ""}, ["header.folder_id"], id="no-folder"),
        pytest.param({"folder_id": "f" * 51}, ["header.folder_id"], id="long-folder"),
        pytest.param({"kind": 0}, ["header.kind"], id="no-kind"),
        pytest.param({"name": "A"}, ["header.name"], id="name"),
        pytest.param({"size_bytes": -1}, ["header.size_bytes"], id="size"),
        pytest.param({"sha256": "0" * 63}, ["header.sha256"], id="short-digest"),
        pytest.param({"sha256": "A" * 64}, ["header.sha256"], id="upper-case-digest"),
    ],
)
def test_source_header(changed: dict[str, Any], broken: list[str]) -> None:
    assert paths(Upload(header=HEADER | changed)) == broken


@pytest.mark.parametrize(
    ("raw", "broken"),
    [
        pytest.param(Create(folder_id="f"), ["source"], id="none"),
        pytest.param(Create(folder_id="f", disk_id=""), ["disk_id"], id="empty-member"),
        pytest.param(Token(), ["identity"], id="no-identity"),
        pytest.param(Token(jwt=""), ["jwt"], id="empty-identity"),
        pytest.param(Upload(), ["part"], id="no-part"),
        pytest.param(Upload(chunk=b""), [], id="empty-chunk"),
    ],
)
def test_exactly_one_of_a_oneof(raw: Message, broken: list[str]) -> None:
    assert paths(raw) == broken


def joined(*messages: Message, between: bytes = b"") -> bytes:
    """What a client sends that sets several members: parsers keep the last one only."""
    return between.join(message.SerializeToString() for message in messages)


GROUP = b"\xa3\x06" + Create(image_id="x").SerializeToString() + b"\xa4\x06"


@pytest.mark.parametrize(
    ("kind", "raw", "broken"),
    [
        pytest.param(
            Create, joined(Create(folder_id="f", image_id="i"), Create(uri="u")), "source", id="two"
        ),
        pytest.param(
            Create, joined(Create(folder_id="f", image_id=""), Create(uri="u")), "source", id="one-empty"
        ),
        pytest.param(Create, joined(Create(folder_id="f", uri="u"), Create(uri="v")), None, id="one-twice"),
        pytest.param(
            Create,
            joined(Create(image_id="i"), Create(folder_id="f", snapshot_id="s"), Create(image_id="i")),
            "source",
            id="first-and-last-the-same",
        ),
        pytest.param(
            Create,
            b"\xc2\x00\x01i" + Create(folder_id="f", uri="u").SerializeToString(),
            "source",
            id="long-tag",
        ),
        pytest.param(
            Create, joined(Create(folder_id="f"), Create(uri="u"), between=GROUP), None, id="inside-a-group"
        ),
        pytest.param(
            Create,
            Create(folder_id="f", uri="u").SerializeToString() + b"\x40\x01",
            None,
            id="another-wire-type",
        ),
        pytest.param(
            Create,
            Create(folder_id="f", uri="u", description=str(Create(image_id="i"))).SerializeToString()
            + b"\xa9\x06"
            + b"B" * 8
            + b"\xad\x06"
            + b"B" * 4
            + b"\xa8\x06\xff\xff\x01",
            None,
            id="unknown-fields-of-every-wire-type",
        ),
        pytest.param(
            Token, joined(Token(jwt="j"), Token(yandex_passport_oauth_token="t")), "identity", id="token"
        ),
        pytest.param(Upload, joined(Upload(header=HEADER), Upload(chunk=b"c")), "part", id="upload"),
    ],
)
def test_members_on_the_wire(kind: type[Message], raw: bytes, broken: str | None) -> None:
    if broken is None:
        parse(kind, raw)
        return
    with pytest.raises(RequestInvalid) as refusal:
        parse(kind, raw)
    assert [v.field for v in refusal.value.violations] == [broken]


def test_two_members_are_named_but_no_value() -> None:
    with pytest.raises(RequestInvalid, match="but is jwt and yandex_passport_oauth_token") as refusal:
        parse(Token, joined(Token(jwt="secret"), Token(yandex_passport_oauth_token="secret")))
    assert "secret" not in str(refusal.value)


def test_bytes_that_the_message_was_not_read_from() -> None:
    message = Create(folder_id="f", uri="u")

    with pytest.raises(RequestUnreadable):
        check(message, message.SerializeToString()[:-1])


def test_name_is_refused_in_the_words_clients_know() -> None:
    with pytest.raises(RequestInvalid) as refusal:
        parse(Create, Create(image_id="i", name="A_b").SerializeToString())

    assert str(refusal.value) == (
        "Request validation error: FolderId: is required; Name: invalid resource name"
    )
    assert refusal.value.violations == (
        Violation("folder_id", "is required"),
        Violation("name", "invalid resource name"),
    )


def test_all_violations_at_once_with_paths_for_people() -> None:
    message = UpdateBindings(
        access_binding_deltas=[{"action": "ADD", "access_binding": {"role_id": "r" * 65}}]
    )

    with pytest.raises(RequestInvalid) as refusal:
        parse(UpdateBindings, message.SerializeToString())

    assert str(refusal.value) == (
        "Request validation error: ResourceId: is required; "
        "AccessBindingDeltas[0].AccessBinding.RoleId: must have at most 64 characters, but has 65; "
        "AccessBindingDeltas[0].AccessBinding.Subject: is required"
    )


def test_a_quoted_key_is_not_made_camel_case() -> None:
    with pytest.raises(RequestInvalid, match=r'Labels\["a_b\.c D"\]: the key'):
        parse(Update, Update(image_id="i", labels={"a_b.c D": ""}).SerializeToString())


@pytest.mark.parametrize(
    "value", ["A" * 10_000, "Ж" * 10_000, "\U0001f600" * 10_000, '"' * 10_000, "\x00\n" * 99]
)
def test_a_long_value_is_quoted_short_and_in_printable_ascii(value: str) -> None:
    (found,) = refusals(Latest(folder_id="f", family=value))

    assert len(found.description) < 200
    assert found.description.isascii()
    assert found.description.isprintable()
    assert found.description.endswith('..."')


def test_a_refusal_fits_into_grpc_trailers() -> None:
    labels = {"Ж" * 60 + str(i): "Ж" * 64 for i in range(100)}

    with pytest.raises(RequestInvalid) as refusal:
        parse(Update, Update(image_id="i", labels=labels).SerializeToString())

    assert len(refusal.value.violations) == VIOLATIONS_MAX
    assert refusal.value.omitted == 1 + 3 * 100 - VIOLATIONS_MAX
    assert str(refusal.value).endswith(f"; and {refusal.value.omitted} more")
    assert len(str(refusal.value)) < 4096


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Token(jwt="SECRET" * 2000), id="jwt"),
        pytest.param(Token(yandex_passport_oauth_token="SECRET" * 2000), id="oauth"),
        pytest.param(Revoke(iam_token="SECRET" * 2000), id="iam-token"),
        pytest.param(Create(folder_id="f", uri="SECRET" * 2000), id="uri"),
    ],
)
def test_a_secret_is_never_quoted(message: Message) -> None:
    with pytest.raises(RequestInvalid) as refusal:
        parse(type(message), message.SerializeToString())

    assert "SECRET" not in str(refusal.value)
    assert "12000" in str(refusal.value)


@pytest.mark.parametrize(
    "raw", [b"\xff", b"\x0a\x05a", b"\x0a\x02\xff\xfe", b"\x0b", b"\x0c", b"\x07\x00", b"\x00\x00"]
)
def test_bytes_that_are_no_message(raw: bytes) -> None:
    with pytest.raises(RequestUnreadable) as refusal:
        parse(Get, raw)

    assert refusal.value.violations == ()
    assert str(refusal.value) == (
        "Request validation error: the bytes are no yandex.cloud.compute.v1.GetImageRequest message"
    )


def test_unknown_fields_are_ignored() -> None:
    parse(Get, Get(image_id="i").SerializeToString() + b"\xa2\x06\x01x")


@given(st.sampled_from(REQUESTS), st.binary())
def test_any_bytes_are_a_message_or_refused(kind: type[Message], raw: bytes) -> None:
    refusal = refusal_of(kind, raw)

    assert refusal is None or str(refusal).startswith("Request validation error: ")


FIELD = st.builds(
    lambda number, payload: bytes([number << 3 | 2, len(payload)]) + payload,
    st.integers(1, 15),
    st.binary(max_size=5) | st.sampled_from([b"", b"i", b"\x08\x4d", b"\x0a\x00", b"\x0a\x01a\x12\x01b"]),
)


@given(st.sampled_from(REQUESTS), st.lists(FIELD).map(b"".join))
def test_any_fields_are_a_message_or_refused(kind: type[Message], raw: bytes) -> None:
    refusal = refusal_of(kind, raw)

    assert refusal is None or refusal.violations or isinstance(refusal, RequestUnreadable)
    assert len(str(refusal)) < 8192


@given(st.text())
def test_any_name_is_quoted_or_accepted(name: str) -> None:
    for violation in refusals(Latest(folder_id="f", family=name)):
        assert violation.description.isascii()


FULL = Create(
    folder_id="f",
    name="web",
    labels={"b": "2", "a": "1"},
    min_disk_size=GIB,
    product_ids=["p2", "p1"],
    image_id="i",
    os={"type": "LINUX", "nvidia": {"driver": "550"}},
    pooled=True,
    hardware_generation={"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V2"}},
)


@pytest.mark.parametrize(
    ("message", "keep", "mapped"),
    [
        pytest.param(Create(), (), {}, id="defaults-left-out"),
        pytest.param(
            FULL,
            (),
            {
                "folder_id": "f",
                "name": "web",
                "labels": {"a": "1", "b": "2"},
                "min_disk_size": GIB,
                "product_ids": ["p2", "p1"],
                "image_id": "i",
                "os": {"type": "LINUX", "nvidia": {"driver": "550"}},
                "pooled": True,
                "hardware_generation": {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V2"}},
            },
            id="everything",
        ),
        pytest.param(
            Create(os={}, hardware_generation={"legacy_features": {}}),
            (),
            {"os": {}, "hardware_generation": {"legacy_features": {}}},
            id="set-messages-even-if-empty",
        ),
        pytest.param(
            Update(image_id="i", update_mask={"paths": ["name", "labels", "name"]}),
            ("name", "labels"),
            {"image_id": "i", "update_mask": ["labels", "name"], "name": "", "labels": {}},
            id="mask-sorted-and-its-fields-kept",
        ),
        pytest.param(Update(image_id="i", update_mask={}), (), {"image_id": "i"}, id="empty-mask-is-none"),
        pytest.param(
            Update(name="a", min_disk_size=4194304),
            ("name", "min_disk_size"),
            {"name": "a", "min_disk_size": 4194304},
            id="kept-with-its-value",
        ),
        pytest.param(
            Create(),
            ("product_ids", "os", "pooled", "min_disk_size"),
            {"product_ids": [], "os": {}, "pooled": False, "min_disk_size": 0},
            id="kept-of-each-kind",
        ),
        pytest.param(image_pb2.Image(), ("status",), {"status": "STATUS_UNSPECIFIED"}, id="kept-enum"),
        pytest.param(
            UpdateBindings(resource_id="i", access_binding_deltas=[DELTA]),
            (),
            {"resource_id": "i", "access_binding_deltas": [DELTA]},
            id="messages-in-a-list",
        ),
    ],
)
def test_fields(message: Message, keep: tuple[str, ...], mapped: dict[str, Any]) -> None:
    assert fields(message, keep=keep) == mapped


def test_fields_keep_names_only_fields_that_exist() -> None:
    with pytest.raises(AssertionError, match="UpdateImageRequest has no field family"):
        fields(Update(), keep=["family"])


def test_fields_have_no_bytes() -> None:
    with pytest.raises(AssertionError, match="bytes"):
        fields(Upload(chunk=b"x"))


def test_rules_are_read_though_the_runtime_reads_options_with_the_default_pool() -> None:
    options = Get.DESCRIPTOR.fields_by_name["image_id"].GetOptions()

    assert isinstance(options, default_descriptor_pb2.FieldOptions)
    assert list(options.Extensions) == []
    assert paths(Get()) == ["image_id"]
