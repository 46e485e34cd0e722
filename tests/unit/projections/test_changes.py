"""What an event changed, as the API's JSON has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from eventstore.reader import LogReader
from projections.changes import IMAGE_FIELDS, SOURCE_FIELDS, Change, changes, image_json, source_json
from projections.domain.command import Image, Source
from projections.domain.image import evolve_image
from projections.replay import changed, events_until
from server.encode import image_message, source_message
from server.gen.imageledger.v1 import source_service_pb2
from server.gen.pool import POOL
from server.gen.yandex.cloud.compute.v1 import image_pb2
from tests.unit.projections.image_log import write_everything

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SIZE = st.one_of(st.just(0), st.integers(0, 2**63 - 1))
HARDWARE = st.one_of(
    st.just({}),
    st.sampled_from(
        [
            {"legacy_features": {}},
            {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V2"}},
            {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_UNSPECIFIED"}},
            {"generation2_features": {}},
            {"generation2_features": {"secure_boot_template_id": "t", "vtpm_enabled": True}},
            {"generation2_features": {"secure_boot_template_id": "", "vtpm_enabled": False}},
        ]
    ),
)
OS = st.sampled_from(
    [
        {"type": "LINUX"},
        {"type": "WINDOWS"},
        {"type": "LINUX", "nvidia": {}},
        {"type": "LINUX", "nvidia": {"driver": "550"}},
    ]
)
IMAGES = st.fixed_dictionaries(
    {
        "blob": st.just({}),
        "born": st.just(1),
        "created_at": st.integers(0, 9_000_000_000),
        "description": TEXT,
        "family": TEXT,
        "folder_id": TEXT,
        "hardware_generation": HARDWARE,
        "id": TEXT,
        "labels": st.dictionaries(TEXT, TEXT, max_size=3),
        "min_disk_size": SIZE,
        "name": TEXT,
        "operation_id": TEXT,
        "os": OS,
        "pooled": st.booleans(),
        "product_ids": st.lists(TEXT, max_size=3),
        "size": SIZE,
        "source": st.just({}),
        "status": st.sampled_from(["CREATING", "READY"]),
        "storage_size": SIZE,
    }
)
SOURCES = st.fixed_dictionaries(
    {
        "blob": st.fixed_dictionaries({"sha256": TEXT, "format": TEXT}),
        "created_at": st.integers(0, 9_000_000_000),
        "folder_id": TEXT,
        "hardware_generation": HARDWARE,
        "id": TEXT,
        "kind": st.sampled_from(["DISK", "SNAPSHOT"]),
        "name": TEXT,
        "size": SIZE,
        "storage_size": SIZE,
    }
)


def protobuf_json(message: Message) -> object:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=POOL)


@given(IMAGES)
def test_an_image_is_what_protobuf_makes_of_it(image: Image) -> None:
    assert image_json(image) == protobuf_json(image_message(image))


@given(SOURCES)
def test_a_source_is_what_protobuf_makes_of_it(source: Source) -> None:
    assert source_json(source) == protobuf_json(source_message(source))


def test_the_fields_are_those_of_the_messages_in_their_order() -> None:
    # Keys of ours to encrypt with: no image has one here.
    image = [name for name in image_pb2.Image.DESCRIPTOR.fields_by_name if name != "kms_key"]
    assert list(IMAGE_FIELDS) == image
    assert list(SOURCE_FIELDS) == list(source_service_pb2.Source.DESCRIPTOR.fields_by_name)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, list[Change]]]:
    directory = tmp_path_factory.mktemp("log")
    head = write_everything(directory)
    with LogReader.open(directory / "log.db") as log:
        return {
            event.position: (event.type, changes(change.before, change.after))
            for event, change in changed(events_until(log, until=head))
        }


def test_an_update_tells_what_changed_and_nothing_else(history: dict[int, tuple[str, list[Change]]]) -> None:
    updates = [found for type_, found in history.values() if type_ == "ImageUpdated"]
    assert updates == [
        [Change("name", "web-1", "web-one"), Change("labels", {"env": "prod", "я": "да"}, None)],
        [Change("min_disk_size", "4194304", "8388608")],
    ]


def test_a_creation_begins_from_nothing(history: dict[int, tuple[str, list[Change]]]) -> None:
    started = next(found for type_, found in history.values() if type_ == "ImageCreationStarted")
    assert all(change.old is None and change.new is not None for change in started)
    assert Change("status", None, "CREATING") in started
    created = next(found for type_, found in history.values() if type_ == "ImageCreated")
    assert created == [
        Change("storage_size", None, "4096"),
        Change("min_disk_size", None, "4194304"),
        Change("status", "CREATING", "READY"),
        Change("size", None, "1048576"),
    ]


@pytest.mark.parametrize(
    "type_", ["ImageDeleted", "ImageCreationFailed", "ImageCreationCancelled", "SourceRemoved"]
)
def test_an_end_ends_every_field(history: dict[int, tuple[str, list[Change]]], type_: str) -> None:
    ended = next(found for name, found in history.values() if name == type_)
    assert all(change.old is not None and change.new is None for change in ended)
    assert {"id", "folder_id", "created_at"} <= {change.field for change in ended}


def test_what_changed_nothing_has_no_changes(history: dict[int, tuple[str, list[Change]]]) -> None:
    assert history[1] == ("LogCreated", [])
    assert changes(None, None) == []


def test_the_changes_lead_from_one_state_to_the_next(tmp_path: Path) -> None:
    head = write_everything(tmp_path)
    states: dict[str | None, dict[str, object]] = {}
    with LogReader.open(tmp_path / "log.db") as log:
        for event, change in changed(events_until(log, until=head)):
            state = states.setdefault(event.resource_id, {})
            for field, old, new in changes(change.before, change.after):
                assert state.pop(field, None) == old
                if new is not None:
                    state[field] = new
            if event.type.startswith("Image"):
                after = evolve_image(change.before, event)  # type: ignore[arg-type]
                assert state == ({} if after is None else image_json(after))
