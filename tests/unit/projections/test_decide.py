"""What a command becomes: given these events, when this command, then these events or this refusal."""

from __future__ import annotations

from typing import Any

import pytest

from eventstore.event import Event
from projections.domain.command import HOURS_24_NS, Repeat
from projections.domain.decide import Command, decide
from projections.domain.image import smallest_disk
from projections.domain.refusals import (
    ImageBusy,
    KeyReused,
    NameTaken,
    NotFound,
    Refused,
    SourceMissing,
    ValueRefused,
)
from tests.unit.projections.builders import (
    BLOB,
    CREATE,
    DELETE,
    KEY,
    LEGACY,
    LEGACY_2,
    MIB,
    SECOND_NS,
    T0,
    UPDATE,
    UPLOAD,
    asked,
    cancel,
    create,
    created,
    delete,
    deleted,
    ended,
    fail,
    finish,
    folded,
    image,
    numbered,
    register,
    registered,
    remove,
    removed,
    started,
    update,
    updated,
)

LATER = T0 + 3600 * SECOND_NS
MISSING = object()


def decided(given: list[Event], command: Command, *, at: int = LATER) -> Any:
    return decide(folded(numbered(given)), command, at=at)


def first_data(given: list[Event], command: Command) -> dict[str, Any]:
    return dict(decided(given, command)[0].data)


def test_an_image_of_a_disk_is_born_done_in_two_events() -> None:
    command = create(
        disk_id="d",
        name="web",
        description="text",
        labels={"z": "1", "a": "2"},
        family="fam",
        given=("name", "folder_id", "disk_id"),
    )
    start, end = decided([registered("d", size=5 * MIB)], command)
    assert (start.stream, start.type, start.resource_id) == ("folder/f", "ImageCreationStarted", "new")
    assert start.data == {
        "folder_id": "f",
        "name": "web",
        "description": "text",
        "labels": {"z": "1", "a": "2"},
        "family": "fam",
        "given": ["disk_id", "folder_id", "name"],
        "min_disk_size": 8 * MIB,
        "source": {"disk_id": "d"},
        "os": {"type": "LINUX"},
        "hardware_generation": LEGACY,
    }
    assert (end.stream, end.type, end.resource_id) == ("folder/f", "ImageCreated", "new")
    assert end.data == {"size": 5 * MIB, "storage_size": 4096, "min_disk_size": 8 * MIB, "blob": BLOB}


def test_an_image_of_a_uri_is_only_started() -> None:
    uri = "https://storage.example/x"
    [start] = decided([], create(uri=uri, uri_had_query=True, min_disk_size=MIB, pooled=True))
    assert (start.stream, start.type, start.resource_id) == ("folder/f", "ImageCreationStarted", "new")
    assert start.data == {
        "folder_id": "f",
        "given": ["folder_id", "uri"],
        "min_disk_size": MIB,
        "pooled": True,
        "source": {"uri": uri},
        "uri_had_query": True,
        "os": {"type": "LINUX"},
        "hardware_generation": LEGACY,
    }
    # Not known before its bytes are.
    assert "min_disk_size" not in first_data([], create(uri=uri))


RICH = {
    "os": {"type": "WINDOWS", "nvidia": {"driver": "d"}},
    "hardware_generation": LEGACY_2,
    "product_ids": ["p1", "p2"],
    "labels": {"a": "b"},
    "family": "fam",
    "description": "text",
    "name": "rich",
    "pooled": True,
}


@pytest.mark.parametrize(
    ("given", "when", "field", "then"),
    [
        # What comes from a source image, and what does not.
        pytest.param(image("a", **RICH), create(image_id="a"), "os", RICH["os"], id="image-os-inherited"),
        pytest.param(
            image("a", **RICH),
            create(image_id="a"),
            "hardware_generation",
            LEGACY_2,
            id="image-hardware-inherited",
        ),
        pytest.param(
            image("a", **RICH),
            create(image_id="a"),
            "product_ids",
            ["p1", "p2"],
            id="image-products-inherited",
        ),
        pytest.param(
            image("a", **RICH), create(image_id="a"), "pooled", MISSING, id="image-pooled-not-inherited"
        ),
        pytest.param(
            image("a", **RICH), create(image_id="a"), "labels", MISSING, id="image-labels-not-inherited"
        ),
        pytest.param(
            image("a", **RICH), create(image_id="a"), "family", MISSING, id="image-family-not-inherited"
        ),
        pytest.param(
            image("a", **RICH), create(image_id="a"), "name", MISSING, id="image-name-not-inherited"
        ),
        pytest.param(
            image("a", **RICH),
            create(image_id="a"),
            "description",
            MISSING,
            id="image-description-not-inherited",
        ),
        pytest.param(
            image("a", size=5 * MIB, min_disk_size=100 * MIB),
            create(image_id="a"),
            "min_disk_size",
            100 * MIB,
            id="image-disk-inherited",
        ),
        # What the caller says beats what is inherited.
        pytest.param(
            image("a", **RICH),
            create(image_id="a", os={"type": "LINUX"}),
            "os",
            {"type": "LINUX"},
            id="os-given",
        ),
        pytest.param(
            image("a", **RICH),
            create(image_id="a", os={"nvidia": {}}),
            "os",
            {"type": "WINDOWS", "nvidia": {}},
            id="os-given-without-type",
        ),
        pytest.param(
            image("a", **RICH),
            create(image_id="a", hardware_generation={"generation2_features": {}}),
            "hardware_generation",
            {"generation2_features": {}},
            id="hardware-given",
        ),
        pytest.param(
            image("a", **RICH),
            create(image_id="a", product_ids=("p3", "p1", "p3")),
            "product_ids",
            ["p1", "p2", "p3"],
            id="products-added-without-repeats",
        ),
        pytest.param(image("a"), create(image_id="a", pooled=True), "pooled", True, id="pooled-given"),
        # Disks and snapshots.
        pytest.param(
            [registered("d", hardware_generation=LEGACY_2)],
            create(disk_id="d"),
            "hardware_generation",
            LEGACY_2,
            id="disk-hardware-inherited",
        ),
        pytest.param([registered("d")], create(disk_id="d"), "os", {"type": "LINUX"}, id="disk-os-default"),
        pytest.param(
            [registered("d")],
            create(disk_id="d", os={"nvidia": {"driver": "x"}}),
            "os",
            {"type": "LINUX", "nvidia": {"driver": "x"}},
            id="disk-os-without-type",
        ),
        pytest.param(
            [registered("s", kind="SNAPSHOT")],
            create(snapshot_id="s"),
            "source",
            {"snapshot_id": "s"},
            id="snapshot",
        ),
        pytest.param(
            [registered("d")],
            create(disk_id="d", product_ids=("p", "p")),
            "product_ids",
            ["p"],
            id="products-once",
        ),
        # min_disk_size.
        pytest.param(
            [registered("d", size=5 * MIB)],
            create(disk_id="d", min_disk_size=5 * MIB),
            "min_disk_size",
            5 * MIB,
            id="disk-equal-to-virtual-size",
        ),
        pytest.param(
            [registered("d", size=5 * MIB)],
            create(disk_id="d", min_disk_size=5 * MIB + 1),
            "min_disk_size",
            5 * MIB + 1,
            id="disk-exactly-as-set",
        ),
        pytest.param(
            image("a", size=5 * MIB, min_disk_size=100 * MIB),
            create(image_id="a", min_disk_size=100 * MIB),
            "min_disk_size",
            100 * MIB,
            id="disk-equal-to-the-image's",
        ),
        # Names are unique among the images of one folder that are there.
        pytest.param(
            [*image("a", name="web", folder_id="g")],
            create(image_id="a", name="web"),
            "name",
            "web",
            id="other-folder",
        ),
        pytest.param(
            [registered("d"), *image("a", name="web"), deleted("a")],
            create(disk_id="d", name="web"),
            "name",
            "web",
            id="name-of-a-deleted-image",
        ),
        pytest.param(
            [registered("d"), started("a", name="web"), ended("a", "ImageCreationFailed")],
            create(disk_id="d", name="web"),
            "name",
            "web",
            id="name-of-a-failed-image",
        ),
        pytest.param(
            [registered("d"), started("a", name="web"), ended("a", "ImageCreationCancelled")],
            create(disk_id="d", name="web"),
            "name",
            "web",
            id="name-of-a-cancelled-image",
        ),
        pytest.param(
            [registered("d"), *image("a", name="web"), updated("a", name="db")],
            create(disk_id="d", name="web"),
            "name",
            "web",
            id="name-given-up",
        ),
        pytest.param(
            [registered("d"), *image("a")], create(disk_id="d"), "name", MISSING, id="many-without-a-name"
        ),
        pytest.param(
            image("a", folder_id="standard-images"),
            create(image_id="a"),
            "folder_id",
            "f",
            id="source-of-any-folder",
        ),
    ],
)
def test_what_a_creation_says(given: list[Event], when: Command, field: str, then: object) -> None:
    assert first_data(given, when).get(field, MISSING) == then


@pytest.mark.parametrize(
    ("size", "then"),
    [(0, 4 * MIB), (1, 4 * MIB), (4 * MIB, 4 * MIB), (4 * MIB + 1, 8 * MIB), (8 * MIB - 1, 8 * MIB)],
)
def test_the_default_disk_is_the_virtual_size_in_steps_of_4_mib(size: int, then: int) -> None:
    assert smallest_disk(size) == then


def test_the_second_event_repeats_the_disk_and_takes_the_parents_blob() -> None:
    _, end = decided(
        image("a", size=5 * MIB, min_disk_size=8 * MIB), create(image_id="a", min_disk_size=9 * MIB)
    )
    assert end.data == {"size": 5 * MIB, "storage_size": 4096, "min_disk_size": 9 * MIB, "blob": BLOB}


@pytest.mark.parametrize(
    ("given", "when", "then"),
    [
        pytest.param(
            image("a", name="web", description="old"),
            update("a", "description", description="new"),
            {"update_mask": ["description"], "description": "new"},
            id="one-field",
        ),
        pytest.param(
            image("a"),
            update("a", "name", "labels", "name", name="db", labels={"k": "v"}),
            {"update_mask": ["labels", "name"], "labels": {"k": "v"}, "name": "db"},
            id="mask-sorted-without-repeats",
        ),
        pytest.param(
            image("a", labels={"a": "b"}),
            update("a", "labels"),
            {"update_mask": ["labels"], "labels": {}},
            id="labels-cleared",
        ),
        pytest.param(
            image("a", description="same"),
            update("a", "description", description="same"),
            {"update_mask": ["description"], "description": "same"},
            id="unchanged-is-written",
        ),
        pytest.param(
            image("a", name="web", size=5 * MIB),
            update("a", labels={"k": "v"}),
            {
                "update_mask": ["description", "labels", "min_disk_size", "name"],
                "mask_empty": True,
                "description": "",
                "labels": {"k": "v"},
                "min_disk_size": 8 * MIB,
                "name": "",
            },
            id="empty-mask-resets-the-others",
        ),
        pytest.param(
            image("a", size=5 * MIB, min_disk_size=100 * MIB),
            update("a", "min_disk_size"),
            {"update_mask": ["min_disk_size"], "min_disk_size": 8 * MIB},
            id="disk-reset-to-the-virtual-size",
        ),
        pytest.param(
            image("a", size=5 * MIB, min_disk_size=100 * MIB),
            update("a", "min_disk_size", min_disk_size=5 * MIB),
            {"update_mask": ["min_disk_size"], "min_disk_size": 5 * MIB},
            id="disk-equal-to-the-virtual-size",
        ),
        pytest.param(
            image("a", name="web"),
            update("a", "name", name="web"),
            {"update_mask": ["name"], "name": "web"},
            id="its-own-name",
        ),
        pytest.param(
            [*image("a", name="web"), *image("b")],
            update("a", "name"),
            {"update_mask": ["name"], "name": ""},
            id="name-cleared-beside-another-without",
        ),
        pytest.param(
            [*image("a"), *image("b", name="web", folder_id="g")],
            update("a", "name", name="web"),
            {"update_mask": ["name"], "name": "web"},
            id="name-of-another-folder",
        ),
    ],
)
def test_what_an_update_says(given: list[Event], when: Command, then: dict[str, Any]) -> None:
    [said] = decided(given, when)
    assert (said.stream, said.type, said.resource_id, said.data) == ("folder/f", "ImageUpdated", "a", then)


@pytest.mark.parametrize(
    ("given", "when", "then"),
    [
        pytest.param(image("a"), delete("a"), ("folder/f", "ImageDeleted", "a", {}), id="delete"),
        pytest.param(
            image("a", folder_id="g"),
            delete("a"),
            ("folder/g", "ImageDeleted", "a", {}),
            id="delete-elsewhere",
        ),
        pytest.param([registered("d")], remove("d"), ("folder/f", "SourceRemoved", "d", {}), id="remove"),
        pytest.param(
            [],
            register(size=512),
            (
                "folder/f",
                "SourceRegistered",
                "new",
                {
                    "folder_id": "f",
                    "kind": "DISK",
                    "size": 512,
                    "storage_size": 4096,
                    "hardware_generation": LEGACY,
                    "blob": BLOB,
                },
            ),
            id="register",
        ),
        pytest.param(
            [registered("d", name="same")],
            register(kind="SNAPSHOT", name="same", folder_id="g", hardware_generation=LEGACY_2),
            (
                "folder/g",
                "SourceRegistered",
                "new",
                {
                    "folder_id": "g",
                    "kind": "SNAPSHOT",
                    "name": "same",
                    "size": 4 * MIB,
                    "storage_size": 4096,
                    "hardware_generation": LEGACY_2,
                    "blob": BLOB,
                },
            ),
            id="register-snapshot",
        ),
        pytest.param(
            [started("a")],
            finish("op-a", size=5 * MIB),
            (
                "folder/f",
                "ImageCreated",
                "a",
                {"size": 5 * MIB, "storage_size": 4096, "min_disk_size": 8 * MIB, "blob": BLOB},
            ),
            id="finish-with-the-default-disk",
        ),
        pytest.param(
            [started("a", min_disk_size=5 * MIB)],
            finish("op-a", size=5 * MIB),
            (
                "folder/f",
                "ImageCreated",
                "a",
                {"size": 5 * MIB, "storage_size": 4096, "min_disk_size": 5 * MIB, "blob": BLOB},
            ),
            id="finish-with-a-disk-as-set",
        ),
        pytest.param(
            [started("a", min_disk_size=5 * MIB)],
            finish("op-a", size=5 * MIB + 1),
            (
                "folder/f",
                "ImageCreationFailed",
                "a",
                {
                    "error": {
                        "code": 3,
                        "message": f"Minimal disk size should be greater or equal than {5 * MIB + 1}",
                        "reason": "VALUE_REFUSED",
                        "metadata": {"image_id": "a", "field": "min_disk_size"},
                    }
                },
            ),
            id="finish-with-a-disk-too-small",
        ),
        pytest.param(
            [started("a", folder_id="g")],
            fail("op-a"),
            (
                "folder/g",
                "ImageCreationFailed",
                "a",
                {
                    "error": {
                        "code": 9,
                        "message": "no",
                        "reason": "NO",
                        "metadata": {"image_id": "a", "found": "iso"},
                    }
                },
            ),
            id="fail",
        ),
        pytest.param(
            [started("a")],
            cancel("op-a"),
            (
                "folder/f",
                "ImageCreationCancelled",
                "a",
                {
                    "error": {
                        "code": 1,
                        "message": 'Operation "op-a" was cancelled',
                        "reason": "OPERATION_CANCELLED",
                        "metadata": {"image_id": "a"},
                    }
                },
            ),
            id="cancel-running",
        ),
    ],
)
def test_commands_of_one_event(given: list[Event], when: Command, then: tuple[Any, ...]) -> None:
    [said] = decided(given, when)
    assert (said.stream, said.type, said.resource_id, said.data) == then


IDS_60 = tuple(f"p{i}" for i in range(60))


@pytest.mark.parametrize(
    ("given", "when", "then", "text"),
    [
        pytest.param(
            [registered("d"), *image("a", name="web")],
            create(disk_id="d", name="web"),
            NameTaken,
            'Image with name "web" already exists',
            id="create-name-taken",
        ),
        pytest.param(
            [registered("d"), started("a", name="web")],
            create(disk_id="d", name="web"),
            NameTaken,
            'Image with name "web" already exists',
            id="create-name-of-an-image-being-created",
        ),
        pytest.param(
            image("a", name="web"),
            create(uri="https://storage.example/x", name="web"),
            NameTaken,
            'Image with name "web" already exists',
            id="create-from-uri-name-taken",
        ),
        pytest.param(
            [], create(image_id="a"), SourceMissing, 'Image "a" not found', id="create-image-missing"
        ),
        pytest.param(
            [*image("a"), deleted("a")],
            create(image_id="a"),
            SourceMissing,
            'Image "a" not found',
            id="create-image-deleted",
        ),
        pytest.param([], create(disk_id="d"), SourceMissing, 'Disk "d" not found', id="create-disk-missing"),
        pytest.param(
            [registered("d"), removed("d")],
            create(disk_id="d"),
            SourceMissing,
            'Disk "d" not found',
            id="create-disk-removed",
        ),
        pytest.param(
            [registered("d")],
            create(snapshot_id="d"),
            SourceMissing,
            'Snapshot "d" not found',
            id="create-disk-is-no-snapshot",
        ),
        pytest.param(
            [registered("s", kind="SNAPSHOT")],
            create(disk_id="s"),
            SourceMissing,
            'Disk "s" not found',
            id="create-snapshot-is-no-disk",
        ),
        pytest.param(
            image("a"), create(disk_id="a"), SourceMissing, 'Disk "a" not found', id="create-image-is-no-disk"
        ),
        pytest.param(
            [started("a")],
            create(image_id="a"),
            ImageBusy,
            'Image "a" is being created by operation "op-a": wait for it, or cancel it',
            id="create-source-not-ready",
        ),
        pytest.param(
            [registered("d", size=5 * MIB)],
            create(disk_id="d", min_disk_size=5 * MIB - 1),
            ValueRefused,
            f"Minimal disk size should be greater or equal than {5 * MIB}",
            id="create-disk-below-virtual-size",
        ),
        pytest.param(
            image("a", size=5 * MIB, min_disk_size=100 * MIB),
            create(image_id="a", min_disk_size=100 * MIB - 1),
            ValueRefused,
            f"Minimal disk size should be greater or equal than {100 * MIB}",
            id="create-disk-below-the-image's",
        ),
        pytest.param(
            image("a", product_ids=list(IDS_60)),
            create(image_id="a", product_ids=("a", "b", "c", "d", "e")),
            ValueRefused,
            "The image would have 65 product_ids, with those it inherits; at most 64 are allowed",
            id="create-65-products",
        ),
        pytest.param([], update("a", "name"), NotFound, 'Image "a" not found', id="update-missing"),
        pytest.param(
            [*image("a"), deleted("a")], update("a"), NotFound, 'Image "a" not found', id="update-deleted"
        ),
        pytest.param(
            [started("a")],
            update("a", "name"),
            ImageBusy,
            'Image "a" is being created by operation "op-a": wait for it, or cancel it',
            id="update-being-created",
        ),
        pytest.param(
            [*image("a"), *image("b", name="web")],
            update("a", "name", name="web"),
            NameTaken,
            'Image with name "web" already exists',
            id="update-name-taken",
        ),
        pytest.param(
            image("a", size=5 * MIB),
            update("a", "min_disk_size", min_disk_size=5 * MIB - 1),
            ValueRefused,
            f"Minimal disk size should be greater or equal than {5 * MIB}",
            id="update-disk-below-virtual-size",
        ),
        pytest.param([], delete("a"), NotFound, 'Image "a" not found', id="delete-missing"),
        pytest.param(
            [*image("a"), deleted("a")], delete("a"), NotFound, 'Image "a" not found', id="delete-twice"
        ),
        pytest.param(
            [started("a")],
            delete("a"),
            ImageBusy,
            'Image "a" is being created by operation "op-a": wait for it, or cancel it',
            id="delete-being-created",
        ),
        pytest.param(
            [started("a"), ended("a", "ImageCreationFailed")],
            delete("a"),
            NotFound,
            'Image "a" not found',
            id="delete-failed",
        ),
        pytest.param([], remove("d"), NotFound, 'Source "d" not found', id="remove-missing"),
        pytest.param(
            [registered("d"), removed("d")], remove("d"), NotFound, 'Source "d" not found', id="remove-twice"
        ),
        pytest.param([], cancel("op"), NotFound, 'Operation "op" not found', id="cancel-unknown"),
        pytest.param(
            [], delete("x" * 150), NotFound, f'Image "{"x" * 100}" not found', id="a-long-id-is-cut"
        ),
    ],
)
def test_refusals(given: list[Event], when: Command, then: type[Refused], text: str) -> None:
    with pytest.raises(then) as refused:
        decided(given, when)
    assert str(refused.value) == text


def test_64_products_are_allowed() -> None:
    command = create(image_id="a", product_ids=("a", "b", "c", "d"))
    assert len(first_data(image("a", product_ids=list(IDS_60)), command)["product_ids"]) == 64


def test_a_source_can_be_removed_while_images_of_it_live() -> None:
    given = [registered("d"), *image("a", source={"disk_id": "d"})]
    assert [said.type for said in decided(given, remove("d"))] == ["SourceRemoved"]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(image("a"), id="succeeded"),
        pytest.param([started("a"), ended("a", "ImageCreationFailed")], id="failed"),
        pytest.param([started("a"), ended("a", "ImageCreationCancelled")], id="cancelled"),
    ],
)
@pytest.mark.parametrize("when", [cancel("op-a"), finish("op-a"), fail("op-a")])
def test_ending_a_finished_operation_answers_it_unchanged(given: list[Event], when: Command) -> None:
    assert decided(given, when) == Repeat("op-a")


@pytest.mark.parametrize("when", [finish("op"), fail("op")])
def test_ending_an_import_that_nobody_began_is_our_bug(when: Command) -> None:
    with pytest.raises(AssertionError, match="operation op"):
        decided([], when)


def keyed(method: str = CREATE, **fields: Any) -> Any:
    return asked("second", method=method, key=KEY, **fields)


FIRST = {"key": KEY, "request": b"\1" * 32, "at": T0}
CREATED = [
    started("a", name="web")._replace(**FIRST),
    created("a"),
    registered("d"),
]


@pytest.mark.parametrize(
    ("given", "when", "at", "then"),
    [
        pytest.param(CREATED, create(disk_id="d", by=keyed()), T0 + 9, "op-a", id="at-once"),
        pytest.param(
            CREATED,
            create(disk_id="d", by=keyed()),
            T0 + HOURS_24_NS - 1,
            "op-a",
            id="one-ns-before-24-hours",
        ),
        pytest.param(
            CREATED[:1],
            create(disk_id="nobody", by=keyed()),
            T0 + 9,
            "op-a",
            id="while-it-runs-whatever-it-asks",
        ),
        pytest.param(
            [CREATED[0], ended("a", "ImageCreationFailed")],
            create(disk_id="d", by=keyed()),
            T0 + 9,
            "op-a",
            id="after-it-failed",
        ),
        pytest.param(
            [*image("a"), deleted("a")._replace(**FIRST)],
            delete("a", by=keyed(DELETE)),
            T0 + 9,
            "op-delete-a",
            id="delete-of-what-is-gone",
        ),
        pytest.param(
            [*image("a"), updated("a", name="x")._replace(**FIRST), deleted("a")],
            update("a", "name", by=keyed(UPDATE)),
            T0 + 9,
            "op-update-a",
            id="update-of-what-is-gone",
        ),
        pytest.param(
            [registered("d")._replace(**FIRST), removed("d")],
            register("e", by=keyed(UPLOAD)),
            T0 + 9,
            "op-d",
            id="upload-of-what-was-removed",
        ),
    ],
)
def test_a_repeated_key_answers_the_first_operation(
    given: list[Event], when: Command, at: int, then: str
) -> None:
    assert decided(given, when, at=at) == Repeat(then)


@pytest.mark.parametrize(
    ("when", "at"),
    [
        pytest.param(create(disk_id="d", by=keyed()), T0 + HOURS_24_NS, id="after-24-hours"),
        pytest.param(
            create(disk_id="d", by=keyed(request=b"\2" * 32)),
            T0 + HOURS_24_NS,
            id="after-24-hours-another-request",
        ),
        pytest.param(create(disk_id="d", by=keyed(actor="bob")), T0 + 9, id="another-subject"),
        pytest.param(register("e", by=keyed(UPLOAD)), T0 + 9, id="another-method"),
        pytest.param(create(disk_id="d", by=asked("second", key=KEY[:-1] + "2")), T0 + 9, id="another-key"),
        pytest.param(create(disk_id="d"), T0 + 9, id="no-key"),
    ],
)
def test_what_is_no_repeat_is_decided_anew(when: Command, at: int) -> None:
    assert isinstance(decided(CREATED, when, at=at), list)


def test_a_key_with_another_request_is_refused_and_names_the_operation() -> None:
    command = create(disk_id="d", by=keyed(request=b"\2" * 32))
    with pytest.raises(KeyReused, match="op-a") as refused:
        decided(CREATED, command, at=T0 + HOURS_24_NS - 1)
    assert refused.value.key == KEY


def test_a_reused_key_belongs_to_the_newest_operation_also_when_an_older_one_ends_last() -> None:
    old = started("a")._replace(**FIRST)
    young = started("b")._replace(**{**FIRST, "at": T0 + HOURS_24_NS})
    late = created("a")._replace(at=T0 + HOURS_24_NS + 5)
    given = [old, young, late, registered("d")._replace(at=T0 + HOURS_24_NS + 6)]
    assert decided(given, create(disk_id="d", by=keyed()), at=T0 + HOURS_24_NS + 9) == Repeat("op-b")


@pytest.mark.parametrize("command", [finish("op-a"), fail("op-a")])
def test_an_ending_of_an_operation_that_runs_without_its_image_is_a_defect(command: Any) -> None:
    state = folded(numbered([started("a")]))
    del state.images["a"]
    with pytest.raises(AssertionError, match="operation op-a runs, but its image is not there"):
        decide(state, command, at=T0)
