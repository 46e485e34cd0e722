"""What Create, Update, Delete and GetLatestByFamily mean."""

from __future__ import annotations

import time
from typing import Any

import pytest

from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import hardware_generation_pb2, image_pb2
from tests.conformance.api import GIB, MIB, Api, Code, as_of, refused
from tests.conformance.conftest import DISK_SIZE
from tests.harness import image_of
from tests.unit.server.disk_images import tiny_qcow2

pytestmark = pytest.mark.usefixtures("quiet")

Source = source_service_pb2.Source
LINUX, WINDOWS = image_pb2.Os.LINUX, image_pb2.Os.WINDOWS
Hardware = hardware_generation_pb2.HardwareGeneration
LEGACY_1 = Hardware(legacy_features={"pci_topology": "PCI_TOPOLOGY_V1"})
LEGACY_2 = Hardware(legacy_features={"pci_topology": "PCI_TOPOLOGY_V2"})
SECOND = Hardware(generation2_features={"secure_boot_template_id": "t", "vtpm_enabled": True})
DEFAULT_DISK_SIZE = 12 * MIB


# --- Create ---


def test_an_image_of_a_disk(api: Api, disk: Source, folder: str) -> None:
    before = int(time.time())
    made = api.image(folder, disk_id=disk.id)

    assert made.created_at.seconds in range(before, int(time.time()) + 1)
    assert made.created_at.nanos == 0
    assert len(made.id) == 20
    assert made.id.startswith("fd8")
    made.ClearField("created_at")
    assert made == image_pb2.Image(
        id=made.id,
        folder_id=folder,
        storage_size=disk.storage_size,
        size=DISK_SIZE,
        min_disk_size=DEFAULT_DISK_SIZE,
        status="READY",
        os={"type": LINUX},
        hardware_generation=LEGACY_1,
    )


def test_every_field_comes_back_as_it_was_set(api: Api, disk: Source, folder: str) -> None:
    fields: dict[str, Any] = {
        "name": "w" * 63,
        "description": "ж" * 256,
        "labels": {f"key-{number}": "v" * 63 for number in range(64)} | {},
        "family": "f" * 63,
        "min_disk_size": 4096 * GIB,
        "product_ids": ["p" * 50, "", "a"],
        "os": {"type": WINDOWS, "nvidia": {"driver": "550"}},
        "pooled": True,
        "hardware_generation": SECOND,
    }

    made = api.image(folder, disk_id=disk.id, **fields)

    wanted = image_pb2.Image(**fields)
    assert {name: getattr(made, name) for name in fields} == {name: getattr(wanted, name) for name in fields}


def test_the_operations_answer_is_what_get_answers(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, disk_id=disk.id, name="web", labels={"b": "1", "a": "2"})

    assert api.get(made.id) == made
    assert list(api.list(folder).images) == [made]


def parent(api: Api, disk: Source, **fields: Any) -> image_pb2.Image:
    return api.image("parents", disk_id=disk.id, **fields)


RICH: dict[str, Any] = {
    "description": "d",
    "labels": {"a": "b"},
    "family": "parents",
    "min_disk_size": GIB,
    "product_ids": ["a", "b"],
    "os": {"type": WINDOWS},
    "pooled": True,
    "hardware_generation": SECOND,
}


@pytest.mark.parametrize(
    ("field", "inherited"),
    [
        ("description", ""),
        ("family", ""),
        ("pooled", False),
        ("min_disk_size", GIB),
        ("product_ids", ["a", "b"]),
        ("os", image_pb2.Os(type=WINDOWS)),
        ("hardware_generation", SECOND),
        ("size", DISK_SIZE),
        ("name", ""),
    ],
)
def test_what_an_image_of_an_image_inherits(
    api: Api, disk: Source, folder: str, field: str, inherited: object
) -> None:
    made = api.image(folder, image_id=parent(api, disk, **RICH).id)

    assert getattr(made, field) == inherited


def test_labels_are_not_inherited(api: Api, disk: Source, folder: str) -> None:
    assert not api.image(folder, image_id=parent(api, disk, **RICH).id).labels


@pytest.mark.parametrize(
    ("field", "given", "wanted"),
    [
        pytest.param("os", {"type": LINUX}, {"type": LINUX}, id="os"),
        pytest.param("os", {}, {"type": WINDOWS}, id="os-empty"),
        pytest.param("os", {"type": 0}, {"type": WINDOWS}, id="os-unspecified"),
        pytest.param(
            "os",
            {"nvidia": {"driver": "550"}},
            {"type": WINDOWS, "nvidia": {"driver": "550"}},
            id="os-nvidia-keeps-the-type",
        ),
        pytest.param("hardware_generation", LEGACY_2, LEGACY_2, id="hardware"),
        pytest.param("hardware_generation", {}, SECOND, id="hardware-empty"),
        pytest.param(
            "hardware_generation", {"legacy_features": {}}, LEGACY_1, id="hardware-without-topology"
        ),
        pytest.param("product_ids", ["c", "a", "c"], ["a", "b", "c"], id="products-added-once"),
        pytest.param("min_disk_size", GIB, GIB, id="disk-size-equal"),
        pytest.param("min_disk_size", GIB + 1, GIB + 1, id="disk-size-as-it-was-set"),
    ],
)
def test_what_is_given_beside_an_image(
    api: Api, disk: Source, folder: str, field: str, given: Any, wanted: Any
) -> None:
    source = parent(api, disk, **RICH)

    made = api.image(folder, image_id=source.id, **{field: given})

    assert getattr(made, field) == getattr(image_pb2.Image(**{field: wanted}), field)


def test_products_given_twice_are_kept_once(api: Api, disk: Source, folder: str) -> None:
    assert api.image(folder, disk_id=disk.id, product_ids=["b", "a", "b"]).product_ids == ["b", "a"]


def test_too_many_products_with_the_inherited_ones(api: Api, disk: Source, folder: str) -> None:
    source = parent(api, disk, product_ids=[f"p{number}" for number in range(64)])

    refusal = refused(lambda: api.create(folder, image_id=source.id, product_ids=["q"]))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["product_ids"])


def test_an_explicit_disk_size_below_the_source_images_is_refused(
    api: Api, disk: Source, folder: str
) -> None:
    source = parent(api, disk, min_disk_size=GIB)

    refusal = refused(lambda: api.create(folder, image_id=source.id, min_disk_size=GIB - 1))

    assert refusal.code == Code.INVALID_ARGUMENT
    assert refusal.message == f"Minimal disk size should be greater or equal than {GIB}"
    assert refusal.fields == ["min_disk_size"]


def test_a_disk_size_below_the_virtual_size_is_refused(api: Api, disk: Source, folder: str) -> None:
    refusal = refused(lambda: api.create(folder, disk_id=disk.id, min_disk_size=DISK_SIZE - 1))

    assert refusal.code == Code.INVALID_ARGUMENT
    assert refusal.message == f"Minimal disk size should be greater or equal than {DISK_SIZE}"


def test_a_disk_size_equal_to_the_virtual_size(api: Api, disk: Source, folder: str) -> None:
    assert api.image(folder, disk_id=disk.id, min_disk_size=DISK_SIZE).min_disk_size == DISK_SIZE


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(512, 4 * MIB), (4 * MIB, 4 * MIB), (4 * MIB + 512, 8 * MIB), (8 * MIB, 8 * MIB)],
)
def test_the_default_disk_size(api: Api, folder: str, size: int, wanted: int) -> None:
    source = api.source(tiny_qcow2(size))

    assert api.image(folder, disk_id=source.id).min_disk_size == wanted


@pytest.mark.parametrize("kind", ["DISK", "SNAPSHOT"])
def test_the_hardware_of_a_disk_or_snapshot_is_inherited(api: Api, folder: str, kind: str) -> None:
    source = api.source(tiny_qcow2(MIB), kind=kind, hardware_generation=SECOND)

    made = api.image(folder, **{f"{kind.lower()}_id": source.id})

    assert made.hardware_generation == SECOND


def test_a_source_may_belong_to_any_folder(api: Api, disk: Source) -> None:
    standard = api.image("standard-images", disk_id=disk.id, family="any-folder")

    made = api.image("my-folder", image_id=api.latest("standard-images", "any-folder").id)

    assert made.size == standard.size


def test_an_image_outlives_its_sources(api: Api, folder: str) -> None:
    source = api.source(tiny_qcow2(MIB, salt=b"outlives"))
    first = api.image(folder, disk_id=source.id)
    second = api.image(folder, image_id=first.id)
    api.remove_source(source.id)
    api.delete(first.id)

    assert api.get(second.id) == second
    assert len(api.read(second.id)[1]) == second.storage_size


def test_a_removed_disk_is_no_source(api: Api, folder: str) -> None:
    source = api.source(tiny_qcow2(MIB))
    api.remove_source(source.id)

    refusal = refused(lambda: api.create(folder, disk_id=source.id))

    assert (refusal.code, refusal.message) == (
        Code.FAILED_PRECONDITION,
        f'Disk "{source.id}" not found',
    )


# --- Names ---


def test_a_name_that_is_taken(api: Api, disk: Source, folder: str) -> None:
    api.create(folder, disk_id=disk.id, name="web")

    refusal = refused(lambda: api.create(folder, disk_id=disk.id, name="web"))

    assert refusal.code == Code.ALREADY_EXISTS
    assert refusal.message == 'Image with name "web" already exists'
    assert refusal.request_id == refusal.trailing["x-request-id"]


def test_a_refused_create_leaves_nothing(api: Api, disk: Source, folder: str) -> None:
    api.create(folder, disk_id=disk.id, name="web")
    refused(lambda: api.create(folder, disk_id=disk.id, name="web"))

    assert api.names(folder) == ["web"]


def test_a_name_in_another_folder(api: Api, disk: Source, folder: str) -> None:
    api.create(folder, disk_id=disk.id, name="web")

    assert api.image(f"{folder}-2", disk_id=disk.id, name="web").name == "web"


def test_many_images_may_have_no_name(api: Api, disk: Source, folder: str) -> None:
    made = {api.image(folder, disk_id=disk.id).id for _ in range(3)}

    assert {image.id for image in api.list(folder).images} == made


def test_a_rename_frees_the_old_name(api: Api, disk: Source, folder: str) -> None:
    first = api.image(folder, disk_id=disk.id, name="web")
    api.update(first.id, ["name"], name="db")

    assert api.image(folder, disk_id=disk.id, name="web").name == "web"


def test_a_rename_to_a_taken_name(api: Api, disk: Source, folder: str) -> None:
    api.create(folder, disk_id=disk.id, name="web")
    other = api.image(folder, disk_id=disk.id, name="db")

    refusal = refused(lambda: api.update(other.id, ["name"], name="web"))

    assert (refusal.code, refusal.message) == (
        Code.ALREADY_EXISTS,
        'Image with name "web" already exists',
    )


def test_a_rename_to_its_own_name(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, disk_id=disk.id, name="web")

    assert image_of(api.update(made.id, ["name"], name="web")) == made


def test_a_name_may_be_taken_away(api: Api, disk: Source, folder: str) -> None:
    made = [api.image(folder, disk_id=disk.id, name=name) for name in ("web", "db")]
    for image in made:
        api.update(image.id, ["name"])

    assert api.names(folder) == ["", ""]


def test_delete_frees_the_name_at_once(api: Api, disk: Source, folder: str) -> None:
    for _ in range(3):
        api.delete(api.image(folder, disk_id=disk.id, name="web").id)

    assert api.names(folder) == []


# --- Update ---

FULL: dict[str, Any] = {
    "name": "web",
    "description": "d",
    "labels": {"a": "b", "c": "d"},
    "min_disk_size": GIB,
}


@pytest.mark.parametrize(
    ("mask", "fields", "changed"),
    [
        pytest.param(["name"], {"name": "db"}, {"name": "db"}, id="name"),
        pytest.param(["description"], {"description": "e"}, {"description": "e"}, id="description"),
        pytest.param(["description"], {}, {"description": ""}, id="description-cleared"),
        pytest.param(["labels"], {"labels": {"x": "y"}}, {"labels": {"x": "y"}}, id="labels-replaced-whole"),
        pytest.param(["labels"], {}, {"labels": {}}, id="labels-cleared"),
        pytest.param(
            ["min_disk_size"], {"min_disk_size": DISK_SIZE}, {"min_disk_size": DISK_SIZE}, id="disk-size"
        ),
        pytest.param(["min_disk_size"], {}, {"min_disk_size": DEFAULT_DISK_SIZE}, id="disk-size-reset"),
        pytest.param(["name", "name"], {"name": "db"}, {"name": "db"}, id="repeated"),
        pytest.param(
            ["labels", "name"],
            {"name": "db", "labels": {"x": "y"}, "description": "not in the mask"},
            {"name": "db", "labels": {"x": "y"}},
            id="only-what-the-mask-names",
        ),
        pytest.param(
            [],
            {},
            {"name": "", "description": "", "labels": {}, "min_disk_size": DEFAULT_DISK_SIZE},
            id="empty-mask-resets",
        ),
        pytest.param(
            [],
            {"name": "db", "min_disk_size": 2 * GIB},
            {"name": "db", "description": "", "labels": {}, "min_disk_size": 2 * GIB},
            id="empty-mask-applies-what-is-listed",
        ),
    ],
)
def test_update(
    api: Api, disk: Source, folder: str, mask: list[str], fields: dict[str, Any], changed: dict[str, Any]
) -> None:
    before = api.image(folder, disk_id=disk.id, family="web", pooled=True, product_ids=["p"], **FULL)

    after = image_of(api.update(before.id, mask, **fields))

    wanted = image_pb2.Image()
    wanted.CopyFrom(before)
    for name in changed:
        wanted.ClearField(name)
    wanted.MergeFrom(image_pb2.Image(**changed))
    assert after == wanted
    assert api.get(before.id) == wanted


def test_a_reset_disk_size_forgets_the_source_images(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, image_id=parent(api, disk, min_disk_size=GIB).id)

    assert image_of(api.update(made.id, ["min_disk_size"])).min_disk_size == DEFAULT_DISK_SIZE


def test_an_updated_disk_size_below_the_virtual_size(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, disk_id=disk.id)

    refusal = refused(lambda: api.update(made.id, ["min_disk_size"], min_disk_size=DISK_SIZE - 1))

    assert refusal.code == Code.INVALID_ARGUMENT
    assert refusal.message == f"Minimal disk size should be greater or equal than {DISK_SIZE}"


def test_an_update_changes_the_list_too(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, disk_id=disk.id, name="web")
    after = image_of(api.update(made.id, ["name"], name="db"))

    assert list(api.list(folder).images) == [after]


# --- Delete ---


def test_a_deleted_image_is_gone(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, disk_id=disk.id)
    api.delete(made.id)

    for ask in (
        lambda: api.get(made.id),
        lambda: api.delete(made.id),
        lambda: api.update(made.id, ["name"]),
        lambda: api.read(made.id),
    ):
        refusal = refused(ask)
        assert (refusal.code, refusal.message) == (Code.NOT_FOUND, f'Image "{made.id}" not found')


def test_a_deleted_image_is_no_source(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, disk_id=disk.id)
    api.delete(made.id)

    refusal = refused(lambda: api.create(folder, image_id=made.id))

    assert (refusal.code, refusal.message) == (Code.FAILED_PRECONDITION, f'Image "{made.id}" not found')


# --- GetLatestByFamily ---


def test_the_latest_of_a_family(api: Api, disk: Source, folder: str) -> None:
    made = [api.image(folder, disk_id=disk.id, family="web") for _ in range(3)]

    assert api.latest(folder, "web") == made[-1]


def test_the_latest_falls_back_when_it_is_deleted(api: Api, disk: Source, folder: str) -> None:
    made = [api.image(folder, disk_id=disk.id, family="web") for _ in range(3)]

    seen = []
    for image in reversed(made):
        seen.append(api.latest(folder, "web").id)
        api.delete(image.id)

    assert seen == [image.id for image in reversed(made)]
    assert refused(lambda: api.latest(folder, "web")).code == Code.NOT_FOUND


def test_an_older_image_of_a_family_may_be_deleted(api: Api, disk: Source, folder: str) -> None:
    first, second = (api.image(folder, disk_id=disk.id, family="web") for _ in range(2))
    api.delete(first.id)

    assert api.latest(folder, "web") == second


def test_the_latest_is_answered_as_it_is_now(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, disk_id=disk.id, family="web")
    after = image_of(api.update(made.id, ["description"], description="new"))

    assert api.latest(folder, "web") == after


def test_families_of_other_folders_are_others(api: Api, disk: Source, folder: str) -> None:
    mine = api.image(folder, disk_id=disk.id, family="web")
    api.image(f"{folder}-2", disk_id=disk.id, family="web")

    assert api.latest(folder, "web") == mine


def test_images_without_a_family_are_of_none(api: Api, disk: Source, folder: str) -> None:
    api.image(folder, disk_id=disk.id)

    assert refused(lambda: api.latest(folder, "")).code == Code.NOT_FOUND


def test_the_empty_state_has_nothing(api: Api, disk: Source, folder: str) -> None:
    made = api.image(folder, disk_id=disk.id, family="web")

    assert not api.list(folder, as_of(0)).images
    assert refused(lambda: api.get(made.id, as_of(0))).code == Code.NOT_FOUND
    assert refused(lambda: api.latest(folder, "web", as_of(0))).code == Code.NOT_FOUND
