"""Rows of an export and the digest over them: from the projection, from the log, and as the API answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgpack
import pytest

from eventstore import database
from eventstore.reader import LogReader
from projections import exported
from projections.domain.refusals import NotFound
from projections.exported import (
    Row,
    Rows,
    image_row,
    in_text,
    operation_row,
    rows_of_log,
    rows_of_projection,
    state_digest,
)
from projections.filters import parse_order
from projections.queries import Queries
from projections.rows import RowDamaged
from projections.store import ProjectionFiles, open_live, open_queries
from server.encode import image_frame, operation_message, unframe
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from tests.unit.projections.image_log import START_NS, ImageLog, write_at_random, write_everything


class Made(NamedTuple):
    log: LogReader
    path: Path
    connection: database.Connection
    queries: Queries
    head: int


def open_made(directory: Path) -> Iterator[Made]:
    with LogReader.open(directory / "log.db") as log:
        path = open_live(ProjectionFiles(directory), log, encode=image_frame)
        connection = database.connect(path, access="read", synchronous="NORMAL")
        queries = open_queries(path, encode=image_frame)
        yield Made(log, path, connection, queries, log.head())
        queries.close()
        connection.close()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    write_everything(tmp_path)
    yield from open_made(tmp_path)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "PAGE_ROWS", 2)


def all_rows(rows: Rows) -> tuple[list[Row], list[Row], list[Row]]:
    return list(rows.images()), list(rows.families()), list(rows.operations())


def test_projection_and_log_give_the_same_rows_at_every_position(made: Made) -> None:
    for at in range(made.head + 1):
        of_projection = rows_of_projection(made.connection, at=at)
        of_log = rows_of_log(made.log, at=at)
        assert all_rows(of_projection) == all_rows(of_log), f"position {at}"
        assert state_digest(of_projection) == state_digest(of_log)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_of_a_random_log(tmp_path: Path, seed: int) -> None:
    write_at_random(tmp_path, events=400, seed=seed)
    for made in open_made(tmp_path):
        for at in range(made.head, 0, -13):
            of_projection = rows_of_projection(made.connection, at=at)
            assert all_rows(of_projection) == all_rows(rows_of_log(made.log, at=at)), f"position {at}"


def test_image_rows_are_the_answers_as_of_that_position(made: Made) -> None:
    for at in range(made.head + 1):
        listed = {}
        for folder_id in ("f1", "f2"):
            listing = made.queries.images(folder_id, limit=1000, order=parse_order(""), at=at)
            for message in image_service_pb2.ListImagesResponse.FromString(listing.wire).images:
                listed[message.id] = message
        rows = list(rows_of_projection(made.connection, at=at).images())
        assert [row["id"] for row in rows] == sorted(listed)
        for row in rows:
            assert row == row_of_message(listed[str(row["id"])])


def row_of_message(message: image_pb2.Image) -> Row:
    """The row that the API's message says, made in another way than the export's."""
    generation2 = message.hardware_generation.generation2_features
    if message.hardware_generation.HasField("legacy_features"):
        hardware: Row = {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V1"}}
    else:
        hardware = {"generation2_features": {"vtpm_enabled": True} if generation2.vtpm_enabled else {}}
    columns: Row = {
        "id": message.id,
        "folder_id": message.folder_id,
        "created_at": message.created_at.seconds * 1_000_000_000,
        "name": message.name,
        "description": message.description,
        "labels": dict(message.labels),
        "family": message.family,
        "storage_size": message.storage_size,
        "min_disk_size": message.min_disk_size,
        "product_ids": list(message.product_ids),
        "status": image_pb2.Image.Status.Name(message.status),
        "os": image_pb2.Os.Type.Name(message.os.type),
        "hardware_generation": hardware,
        "size": message.size,
    }
    return {name: value for name, value in columns.items() if value} | {"pooled": message.pooled}


def test_family_rows_are_the_answers_as_of_that_position(made: Made) -> None:
    families = [(folder, family) for folder in ("f1", "f2") for family in ("web", "db")]
    for at in range(made.head + 1):
        found = {}
        for folder, family in families:
            try:
                found[folder, family] = image_pb2.Image.FromString(
                    unframe(made.queries.latest(folder, family, at=at).wire)
                ).id
            except NotFound:
                continue
        rows = list(rows_of_projection(made.connection, at=at).families())
        assert {(row["folder_id"], row["family"]): row["image_id"] for row in rows} == found
        for row in rows:
            since = row["since"]
            if not isinstance(since, int):
                raise AssertionError(since)
            assert made.log.event(since).operation_id == row["operation_id"]  # type: ignore[arg-type]
            before = rows_of_log(made.log, at=since - 1).families()
            key = (row["folder_id"], row["family"], row["image_id"])
            assert key not in {(r["folder_id"], r["family"], r["image_id"]) for r in before}


def test_operation_rows_are_the_answers_as_of_that_position(made: Made) -> None:
    for at in range(made.head + 1):
        for row in rows_of_projection(made.connection, at=at).operations():
            view, _ = made.queries.operation(str(row["id"]), at=at)
            message = operation_message(view)
            assert row["description"] == message.description
            assert row["created_by"] == message.created_by
            assert row["created_at"] == message.created_at.ToNanoseconds()
            assert row["modified_at"] == message.modified_at.ToNanoseconds()
            assert row["done"] is message.done
            assert ("error" in row) is message.HasField("error")
            assert ("image_id" in row) is ("image" in message.description)


def test_the_digest_is_over_canonical_msgpack(made: Made) -> None:
    rows = rows_of_projection(made.connection, at=4)
    hashed = hashlib.sha256()
    for kind, some in (("image", rows.images), ("family", rows.families), ("operation", rows.operations)):
        for row in some():
            hashed.update(msgpack.packb([kind, sorted_maps(row)]))
    assert state_digest(rows) == hashed.hexdigest()
    assert state_digest(rows_of_log(made.log, at=0)) == hashlib.sha256().hexdigest()


def sorted_maps(value: object) -> object:
    if isinstance(value, dict):
        return {key: sorted_maps(value[key]) for key in sorted(value, key=str.encode)}
    return [sorted_maps(item) for item in value] if isinstance(value, list) else value


def test_every_change_of_the_state_changes_the_digest(made: Made) -> None:
    digests = [state_digest(rows_of_log(made.log, at=at)) for at in range(1, made.head + 1)]
    assert len(set(digests)) == len(digests)


def test_the_wording_of_a_row(tmp_path: Path) -> None:
    """Released exports have rows in this form: it is never changed."""
    with ImageLog(tmp_path) as log:
        running = log.start("i1", labels={"b": "2", "a": "1"}, pooled=True)
        log.end("i1", running, "Failed")
        log.create("i2", name="n", family="fam")
        rows = rows_of_log(log.log, at=2)
        (image,) = rows.images()
        assert image == {
            "id": "i1",
            "folder_id": "f1",
            "created_at": 1_700_000_001_000_000_000,
            "labels": {"a": "1", "b": "2"},
            "status": "CREATING",
            "os": "LINUX",
            "pooled": True,
            "hardware_generation": {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V1"}},
        }
        assert in_text(image)["created_at"] == "2023-11-14T22:13:21.000000000Z"
        rows = rows_of_log(log.log, at=5)
        assert [*rows.families()] == [
            {"folder_id": "f1", "family": "fam", "image_id": "i2", "since": 5, "operation_id": "op0002"}
        ]
        failed, _ = rows.operations()
        assert failed == {
            "id": "op0001",
            "image_id": "i1",
            "description": "Create image",
            "created_at": START_NS + 1_000_000_007,
            "created_by": "alice",
            "modified_at": START_NS + 2_000_000_014,
            "done": True,
            "error": {
                "code": 9,
                "message": "it Failed",
                "metadata": {"image_id": "i1"},
                "reason": "SOURCE_BAD",
            },
        }


def test_a_damaged_row_is_named_and_not_exported(made: Made) -> None:
    writer = database.connect(made.path, access="write", synchronous="NORMAL")
    (since,) = writer.execute("SELECT since FROM image WHERE id = 'img-i' ORDER BY since DESC").fetchone()
    writer.execute("UPDATE image SET state = x'80' WHERE since = ?", (since,))
    writer.close()
    with pytest.raises(RowDamaged, match=f"position {since}"):
        state_digest(rows_of_projection(made.connection, at=made.head))


def test_rows_as_of_a_position_stay_while_the_projection_moves_on(tmp_path: Path) -> None:
    with ImageLog(tmp_path) as log:
        log.create("i1", name="n", family="fam")
        log.create("i2", family="fam")
        for made in open_made(tmp_path):
            rows = rows_of_projection(made.connection, at=made.head)
            before, digest = all_rows(rows), state_digest(rows)
            some = rows.images()
            first = next(some)
            log.delete("i1")
            log.update("i2", name="n")
            open_live(ProjectionFiles(tmp_path), made.log, encode=image_frame)
            assert [first, *some] == before[0]
            assert all_rows(rows) == before
            assert state_digest(rows) == digest


def test_rows_are_pure_functions_of_the_state(made: Made) -> None:
    image = made.queries.image_state("img-i", at=made.head)
    assert image_row(image) == next(
        row for row in rows_of_log(made.log, at=made.head).images() if row["id"] == "img-i"
    )
    view, _ = made.queries.operation("op0001")
    assert operation_row(view.operation)["description"] == "Register source"
