"""What each event makes of an image, a source and an operation, and what it refuses to follow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as given_any

from eventstore.event import Event, Position, decode, encode
from projections.domain.evolve import LOG_EVENTS, EventUnknown
from projections.domain.operation import evolve_operation
from tests.unit.projections.builders import (
    BLOB,
    CREATE,
    DELETE,
    LEGACY,
    LEGACY_2,
    MIB,
    SECOND_NS,
    T0,
    History,
    created,
    deleted,
    ended,
    event,
    folded,
    image,
    numbered,
    registered,
    removed,
    started,
    steps,
    updated,
)

STARTED: dict[str, Any] = {
    "blob": {},
    "born": 1,
    "created_at": T0 // SECOND_NS + 1,
    "description": "",
    "family": "",
    "folder_id": "f",
    "hardware_generation": LEGACY,
    "id": "a",
    "labels": {},
    "min_disk_size": 0,
    "name": "",
    "operation_id": "op-a",
    "os": {"type": "LINUX"},
    "pooled": False,
    "product_ids": [],
    "size": 0,
    "source": {"uri": "https://storage.example/x"},
    "status": "CREATING",
    "storage_size": 0,
    "uri_had_query": False,
}
READY = {
    **STARTED,
    "blob": BLOB,
    "min_disk_size": 4 * MIB,
    "size": 4 * MIB,
    "status": "READY",
    "storage_size": 4096,
}
FULL: dict[str, Any] = {
    "name": "web",
    "description": "text",
    "labels": {"k": "v"},
    "family": "fam",
    "product_ids": ["p"],
    "pooled": True,
    "min_disk_size": 8 * MIB,
    "os": {"type": "WINDOWS"},
    "hardware_generation": LEGACY_2,
    "source": {"image_id": "b"},
    "uri_had_query": True,
}


@pytest.mark.parametrize(
    ("given", "then"),
    [
        pytest.param([started("a")], STARTED, id="started-with-what-is-left-out"),
        pytest.param([started("a", **FULL)], {**STARTED, **FULL}, id="started-with-everything"),
        pytest.param(
            [started("a")._replace(at=T0 + 999_999_999)],
            {**STARTED, "created_at": T0 // SECOND_NS},
            id="time-in-seconds",
        ),
        pytest.param([started("a"), created("a")], READY, id="created"),
        pytest.param(
            [started("a"), event("ImageCreated", "a", {"min_disk_size": 4 * MIB, "blob": BLOB})],
            {**READY, "size": 0, "storage_size": 0},
            id="created-without-sizes",
        ),
        pytest.param([started("a"), ended("a", "ImageCreationFailed")], None, id="failed"),
        pytest.param([started("a"), ended("a", "ImageCreationCancelled")], None, id="cancelled"),
        pytest.param(
            [started("a"), created("a"), updated("a", name="x", labels={}, description="", min_disk_size=9)],
            {**READY, "name": "x", "min_disk_size": 9},
            id="updated",
        ),
        pytest.param(
            [*image("a", **FULL), updated("a", labels={})],
            {**READY, **FULL, "labels": {}},
            id="updated-only-what-the-mask-names",
        ),
        pytest.param([*image("a"), deleted("a")], None, id="deleted"),
        pytest.param(
            [started("a"), created("a"), *image("b"), deleted("b")], READY, id="others-leave-it-alone"
        ),
    ],
)
def test_an_image_after_its_events(given: list[Event], then: dict[str, Any] | None) -> None:
    assert folded(numbered(given)).image("a") == then


@pytest.mark.parametrize(
    ("given", "then"),
    [
        pytest.param(
            [registered("d", name="n")],
            {
                "blob": BLOB,
                "created_at": T0 // SECOND_NS + 1,
                "folder_id": "f",
                "hardware_generation": LEGACY,
                "id": "d",
                "kind": "DISK",
                "name": "n",
                "size": 4 * MIB,
                "storage_size": 4096,
            },
            id="registered",
        ),
        pytest.param([registered("d"), removed("d")], None, id="removed"),
    ],
)
def test_a_source_after_its_events(given: list[Event], then: dict[str, Any] | None) -> None:
    assert folded(numbered(given)).source("d") == then


OPERATION: dict[str, Any] = {
    "created_at": T0 + SECOND_NS,
    "created_by": "ann",
    "done": False,
    "error": {},
    "first": 1,
    "id": "op-a",
    "key": "",
    "last": 1,
    "method": CREATE,
    "modified_at": T0 + SECOND_NS,
    "request": b"",
    "request_id": "r",
    "resource_id": "a",
}
ENDED = {**OPERATION, "done": True, "last": 2, "modified_at": T0 + 2 * SECOND_NS}
ERROR = {"code": 9, "message": "no", "reason": "NO", "metadata": {"image_id": "a"}}


@pytest.mark.parametrize(
    ("given", "then"),
    [
        pytest.param([started("a")], OPERATION, id="running"),
        pytest.param(
            [started("a")._replace(key="k", request=b"1")],
            {**OPERATION, "key": "k", "request": b"1"},
            id="with-a-key",
        ),
        pytest.param([started("a"), created("a")], ENDED, id="succeeded"),
        pytest.param(
            [started("a"), ended("a", "ImageCreationFailed", auth="system")],
            {**ENDED, "error": ERROR},
            id="failed",
        ),
        pytest.param(
            [started("a"), ended("a", "ImageCreationCancelled", actor="bob", request_id="other")],
            {**ENDED, "error": ERROR},
            id="cancelled-by-another-keeps-who-began-it",
        ),
        pytest.param([started("a"), created("a"), deleted("a")], ENDED, id="of-an-image-deleted-later"),
    ],
)
def test_an_operation_after_its_events(given: list[Event], then: dict[str, Any]) -> None:
    assert folded(numbered(given)).operation("op-a") == then


def test_an_operation_of_one_event_is_done() -> None:
    operation = folded(numbered([*image("a"), deleted("a")])).operation("op-delete-a")
    assert operation is not None
    assert (operation["method"], operation["done"], operation["first"], operation["last"]) == (
        DELETE,
        True,
        3,
        3,
    )


@pytest.mark.parametrize("type", sorted(LOG_EVENTS))
def test_an_event_of_the_log_itself_changes_nothing(type: str) -> None:
    state = folded(numbered([event(type, None, {}, stream="log")]))
    assert (state.images, state.sources, state.operations) == ({}, {}, {})


@pytest.mark.parametrize(
    "given",
    [
        pytest.param([created("a")], id="created"),
        pytest.param([updated("a", name="x")], id="updated"),
        pytest.param([deleted("a")], id="deleted"),
        pytest.param([ended("a", "ImageCreationFailed")], id="failed"),
        pytest.param([ended("a", "ImageCreationCancelled")], id="cancelled"),
        pytest.param([removed("a")], id="removed"),
        pytest.param([*image("a"), deleted("a"), updated("a", name="x")], id="updated-after-its-deletion"),
    ],
)
def test_an_event_of_what_is_not_there_is_our_bug_and_names_its_position(given: list[Event]) -> None:
    with pytest.raises(AssertionError, match=rf"position {len(given)}: .*not there"):
        folded(numbered(given))


def test_an_unknown_type_stops_the_fold_and_changes_nothing() -> None:
    state = folded(numbered(image("a")))
    [unknown] = numbered([event("ImagePainted", "a", {}, method="Paint")], first=3)
    with pytest.raises(EventUnknown, match=r"position 3: event type 'ImagePainted' \(schema 1\)") as stopped:
        state.apply(unknown)
    assert stopped.value.position == 3
    assert set(state.operations) == {"op-a"}


@given_any(steps())
def test_folding_what_was_decided_gives_the_state_that_its_bytes_give(
    walk: list[tuple[str, int, int]],
) -> None:
    history = History(walk)
    again = folded(decode(encode(one)) for one in history.events)
    assert again.images == history.state.images
    assert again.sources == history.state.sources
    assert again.operations == history.state.operations


# An operation goes on only where it is there.


@pytest.mark.parametrize("type_", ["ImageCreated", "ImageCreationFailed"])
def test_an_event_that_goes_on_with_an_unknown_operation_is_a_defect(type_: str) -> None:
    before = started("a")._replace(position=Position(7), at=T0)
    with pytest.raises(AssertionError, match=r"position 7: .* operation op-a, which is not there"):
        evolve_operation(None, before._replace(type=type_, method=None))


def test_a_forgotten_operation_leaves_no_key() -> None:
    state = folded(numbered([started("a")._replace(key="k", request=b"1"), created("a")]))
    keyed = {"actor": "ann", "method": CREATE, "key": "k"}
    assert state.operation_keyed(**keyed) is not None
    state.forget("op-a")
    assert (state.operation("op-a"), state.operation_keyed(**keyed)) == (None, None)


def test_a_forgotten_operation_leaves_a_key_that_a_newer_one_has() -> None:
    both = [started("a")._replace(key="k", request=b"1"), started("b")._replace(key="k", request=b"1")]
    state = folded(numbered(both))
    state.forget("op-a")
    newer = state.operation_keyed(actor="ann", method=CREATE, key="k")
    assert newer is not None
    assert newer["id"] == "op-b"
