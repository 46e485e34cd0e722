"""What HistoryService refuses, naming which field; and an event of newer software, which it does not."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventstore import database
from eventstore.event import Position, Version
from eventstore.log import EventLog
from server.gen.imageledger.v1 import history_service_pb2 as pb
from tests.conformance.api import Api, Code, as_of, position_of, refused
from tests.conformance.history import at, events, stream
from tests.harness import Server, serving

pytestmark = pytest.mark.usefixtures("quiet")

FUTURE = {"time": {"seconds": 4_000_000_000}}
REFUSED = [
    ("ReadEvents", {"from_moment": at(10**9)}, Code.OUT_OF_RANGE, "from_moment", "is beyond the head"),
    ("ReadEvents", {"to_moment": at(10**9)}, Code.OUT_OF_RANGE, "to_moment", "is beyond the head"),
    ("ReadEvents", {"from_moment": FUTURE}, Code.OUT_OF_RANGE, "from_moment", "is in the future"),
    (
        "ReadEvents",
        {"to_moment": {"time": {"seconds": 1}}},
        Code.OUT_OF_RANGE,
        "to_moment",
        "The log begins at",
    ),
    (
        "ReadEvents",
        {"from_moment": at(2), "to_moment": at(1)},
        Code.INVALID_ARGUMENT,
        "from_moment",
        "from_moment is position 2, which is after to_moment, position 1",
    ),
    ("ReadEvents", {"from_moment": at(-1)}, Code.INVALID_ARGUMENT, "from_moment.position", "at least 0"),
    (
        "ReadEvents",
        {"to_moment": {"time": {"nanos": -1}}},
        Code.INVALID_ARGUMENT,
        "to_moment.time",
        "no Timestamp",
    ),
    (
        "ReadEvents",
        {"to_moment": {"time": {"seconds": 2**62}}},
        Code.INVALID_ARGUMENT,
        "to_moment.time",
        "no Timestamp",
    ),
    ("ReadEvents", {"folder_id": "f" * 51}, Code.INVALID_ARGUMENT, "folder_id", "at most 50"),
    ("ReadPositions", {}, Code.INVALID_ARGUMENT, "folder_id", "is required"),
    (
        "ReadPositions",
        {"folder_id": "f", "from_moment": at(10**9)},
        Code.OUT_OF_RANGE,
        "from_moment",
        "is beyond the head",
    ),
    ("Watch", {"from_moment": at(10**9)}, Code.OUT_OF_RANGE, "from_moment", "is beyond the head"),
    ("Watch", {"from_moment": FUTURE}, Code.OUT_OF_RANGE, "from_moment", "is in the future"),
    ("ImageHistory", {}, Code.INVALID_ARGUMENT, "image_id", "is required"),
    ("FamilyHistory", {"folder_id": "f"}, Code.INVALID_ARGUMENT, "family", "is required"),
    ("Diff", {}, Code.INVALID_ARGUMENT, "from_moment", "is required"),
    ("Diff", {"from_moment": {}}, Code.INVALID_ARGUMENT, "from_moment", "is required"),
    (
        "Diff",
        {"from_moment": at(2), "to_moment": at(1)},
        Code.INVALID_ARGUMENT,
        "from_moment",
        "is after to_moment",
    ),
    (
        "Diff",
        {"from_moment": at(1), "to_moment": at(10**9)},
        Code.OUT_OF_RANGE,
        "to_moment",
        "is beyond the head",
    ),
]


@pytest.mark.parametrize(("method", "fields", "code", "field_name", "text"), REFUSED)
def test_what_is_refused(
    api: Api, method: str, fields: dict[str, Any], code: Any, field_name: str, text: str
) -> None:
    request = getattr(pb, f"{method}Request")(**fields)
    refusal = refused(lambda: stream(api, method, request))
    assert (refusal.code, refusal.fields, refusal.domain) == (code, [field_name], "imageledger")
    assert text in refusal.message
    assert refusal.request_id


def test_an_image_that_never_was_has_no_history(api: Api, disk: Any) -> None:
    for image_id in ("nobody", disk.id):
        request = pb.ImageHistoryRequest(image_id=image_id)
        refusal = refused(lambda r=request: stream(api, "ImageHistory", r))
        assert (refusal.code, refusal.message) == (Code.NOT_FOUND, f'Image "{image_id}" not found')


@pytest.mark.parametrize("method", ["ReadEvents", "Watch", "ImageHistory", "FamilyHistory", "Diff"])
def test_history_needs_a_token(server: Server, method: str) -> None:
    with Api(server.address, token=None) as anonymous:
        request = getattr(pb, f"{method}Request")()
        assert refused(lambda: stream(anonymous, method, request)).code == Code.UNAUTHENTICATED


def test_an_event_of_newer_software_is_shown_and_what_was_applied_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as alone, Api(alone.address) as api:
        image = api.image("f", disk_id=api.disk("f"))
        head = append_unknown(tmp_path / "data" / "log.db")
        found = events(api, from_moment=at(head - 1))
        assert [(one.position, one.type, one.schema) for one in found] == [
            (head - 1, "ImageCreated", 1),
            (head, "ImageBlessed", 7),
        ]
        # What the projection has not applied is no state of anything.
        history = pb.ImageHistoryRequest(image_id=image.id)
        (answer,), call = stream(api, "ImageHistory", history)
        assert [event.type for event in answer.events] == ["ImageCreationStarted", "ImageCreated"]
        assert dict(call.trailing_metadata())["x-log-position"] == str(head - 1)
        assert api.get(image.id) == api.get(image.id, as_of(head - 1)) == image
        assert refused(lambda: api.get(image.id, as_of(head))).code == Code.OUT_OF_RANGE


def test_a_history_that_lacks_an_event_is_never_given(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as alone, Api(alone.address) as api:
        image = api.image("f", disk_id=api.disk("f"))
        position = position_of(api.updated(image.id, ["name"], name="web")[1])
    hide(tmp_path / "data" / "log.db", position)
    with serving(tmp_path / "data") as alone, Api(alone.address) as api:
        request = pb.ImageHistoryRequest(image_id=image.id)
        refusal = refused(lambda: stream(api, "ImageHistory", request))
        assert (refusal.code, refusal.reason) == (Code.DATA_LOSS, "ROW_DAMAGED")
        before = stream(api, "ImageHistory", request, as_of(position - 1))[0]
        assert [event.type for event in before[0].events] == ["ImageCreationStarted", "ImageCreated"]
        assert api.get(image.id).name == "web"


def hide(path: Path, position: int) -> None:
    """Let the index of resources lead past an event."""
    with closing(database.connect(path, access="write", synchronous="FULL")) as connection:
        connection.execute("DROP TRIGGER event_update")
        connection.execute("UPDATE event SET resource_id = 'another' WHERE position = ?", (position,))


def append_unknown(path: Path) -> Position:
    """What another writer would do that had broken the lock: its position is the new head."""
    with EventLog.open(path) as log:
        head = log.head()
        last = log.event(head)
        version = Version(log.stream_version(last.stream) + 1)
        unknown = last._replace(
            position=Position(head + 1), version=version, type="ImageBlessed", schema=7, at=last.at + 1
        )
        log.append([unknown], expected_head=head)
        return unknown.position
