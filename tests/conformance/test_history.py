"""imageledger.v1.HistoryService over the wire: each answer against the answers of other rpcs as of then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from eventstore.event import Event, decode, encode
from projections.changes import IMAGE_FIELDS
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.gen.imageledger.v1 import source_service_pb2
from tests.conformance.api import Api, Code, as_of, position_of, refused
from tests.conformance.history import HISTORY, at, document, events, got, latest, stream
from tests.harness import Metadata, Server
from tests.unit.server.disk_images import tiny_qcow2

pytestmark = pytest.mark.usefixtures("quiet")

OTHER_TOKEN = "somebody-else"


@dataclass
class Story:
    """Two images and an import that failed, what they were called, and the positions from the first on."""

    folder: str
    disk_id: str
    image_ids: list[str] = field(default_factory=list)
    first: int = 0
    last: int = 0

    @property
    def positions(self) -> range:
        return range(self.first, self.last + 1)


@pytest.fixture(scope="module")
def story(api: Api, server: Server) -> Story:
    """One comes, changes and goes; one comes, and takes the family back when the other is gone."""
    folder = "history"
    disk = api.source(tiny_qcow2(2**20, salt=b"history"), folder_id=folder)
    told = Story(folder, disk.id)
    told.first = int(dict(api.full_call(*_get_source_list(folder))[1].trailing_metadata())["x-log-position"])

    def create(**fields: Any) -> None:
        image = api.image(folder, disk_id=disk.id, **fields)
        told.image_ids.append(image.id)

    create(name="one", family="web", labels={"env": "test"}, description="first")
    create(family="web")
    one, two = told.image_ids
    api.update(one, ["labels"], [("x-change-reason", "ticket 17")], labels={"env": "live"})
    with Api(server.address, token=OTHER_TOKEN) as other:
        other.update(two, ["name"], name="two")
        other.update(one, ["name"], name="one")
    api.update(one, [], description="reset all but this")
    told.last = position_of(api.deleted(two)[1])
    return told


def _get_source_list(folder: str) -> Any:
    request = source_service_pb2.ListSourcesRequest(folder_id=folder)
    return "imageledger.v1.SourceService", "List", request, source_service_pb2.ListSourcesResponse


# ReadEvents.


def test_events_are_those_that_were_written(api: Api, story: Story) -> None:
    answers, call = stream(api, "ReadEvents", pb.ReadEventsRequest(folder_id=story.folder))
    messages = [event for answer in answers for event in answer.events]
    found = [decode(message.body) for message in messages]
    assert [one.position for one in found] == [message.position for message in messages]
    types = [one.type for one in found]
    assert types == [
        "SourceRegistered",
        *["ImageCreationStarted", "ImageCreated"] * 2,
        *["ImageUpdated"] * 4,
        "ImageDeleted",
    ]
    for message, one in zip(messages, found, strict=True):
        assert encode(one) == message.body
        assert message.at.ToNanoseconds() == one.at
        for name in ("stream", "version", "type", "schema", "actor", "auth"):
            assert getattr(message, name) == getattr(one, name)
        for name in ("operation_id", "resource_id", "request_id", "method", "reason"):
            assert getattr(message, name) == (getattr(one, name) or "")
    assert [one.reason for one in found if one.reason] == ["ticket 17"]
    assert position_of(call) >= found[-1].position


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(lambda story, one: {}, id="everything"),
        pytest.param(lambda story, one: {"folder_id": story.folder}, id="folder"),
        pytest.param(lambda story, one: {"resource_id": one.resource_id}, id="resource"),
        pytest.param(lambda story, one: {"operation_id": one.operation_id}, id="operation"),
        pytest.param(lambda story, one: {"actor": one.actor}, id="actor"),
        pytest.param(lambda story, one: {"type": one.type}, id="type"),
        pytest.param(
            lambda story, one: {"folder_id": story.folder, "actor": one.actor, "type": one.type}, id="three"
        ),
        pytest.param(
            lambda story, one: {"resource_id": one.resource_id, "folder_id": "another"}, id="nothing"
        ),
    ],
)
def test_filters_narrow_each_other(api: Api, story: Story, wanted: Callable[..., dict[str, str]]) -> None:
    bounds = {"from_moment": at(story.first), "to_moment": at(story.last)}
    everything = events(api, **bounds)
    for one in everything:
        asked = wanted(story, one)
        expected = [
            event for event in everything if all(value == _said(event, name) for name, value in asked.items())
        ]
        assert events(api, **bounds, **asked) == expected


def _said(event: Event, name: str) -> Any:
    return event.stream.removeprefix("folder/") if name == "folder_id" else getattr(event, name)


def test_bounds_are_included(api: Api, story: Story) -> None:
    first, last = story.first + 1, story.last - 1
    found = events(api, from_moment=at(first), to_moment=at(last))
    assert [one.position for one in found] == list(range(first, last + 1))
    one = events(api, from_moment=at(first), to_moment=at(first))
    assert [event.position for event in one] == [first]
    assert events(api, to_moment=at(2)) == events(api, from_moment=at(0), to_moment=at(2))
    assert events(api, from_moment=at(0), to_moment=at(0)) == []


def test_a_time_is_the_last_position_at_or_before_it(api: Api, story: Story) -> None:
    (one,) = events(api, from_moment=at(story.last), to_moment=at(story.last))

    def time_of(ns: int) -> dict[str, Any]:
        return {"time": {"seconds": ns // 10**9, "nanos": ns % 10**9}}

    for offset, position in ((-1, story.last - 1), (0, story.last), (1, story.last)):
        found = events(api, from_moment=time_of(one.at + offset), to_moment=at(story.last))
        assert found[0].position == position


def test_as_of_a_position_nothing_after_it_is_known(api: Api, story: Story) -> None:
    asked = as_of(story.last - 1)
    answers, call = stream(api, "ReadEvents", pb.ReadEventsRequest(folder_id=story.folder), asked)
    assert answers[-1].events[-1].position == story.last - 1
    assert position_of(call) == story.last - 1
    refusal = refused(lambda: events(api, asked, from_moment=at(story.last)))
    assert (refusal.code, refusal.fields) == (Code.OUT_OF_RANGE, ["from_moment"])


def test_positions_are_those_of_the_folders_events(api: Api, story: Story) -> None:
    request = pb.ReadPositionsRequest(
        folder_id=story.folder, from_moment=at(story.first), to_moment=at(story.last - 1)
    )
    answers, _ = stream(api, "ReadPositions", request)
    assert (answers[0].from_position, answers[0].to_position) == (story.first, story.last - 1)
    found = [position for answer in answers for position in answer.positions]
    assert found == [
        one.position for one in events(api, folder_id=story.folder) if story.first < one.position < story.last
    ]


# ImageHistory.


def test_an_images_history_leads_from_each_answer_of_get_to_the_next(api: Api, story: Story) -> None:
    for image_id in story.image_ids:
        answers, _ = stream(api, "ImageHistory", pb.ImageHistoryRequest(image_id=image_id))
        found = [event for answer in answers for event in answer.events]
        own = events(api, resource_id=image_id)
        assert [event.position for event in found] == [event.position for event in own]
        for told, event in zip(found, own, strict=True):
            assert (told.type, told.actor, told.operation_id) == (event.type, event.actor, event.operation_id)
            assert (told.reason or None, told.at.ToNanoseconds()) == (event.reason, event.at)
            before, after = got(api, image_id, event.position - 1), got(api, image_id, event.position)
            differing = [name for name in IMAGE_FIELDS if before.get(name) != after.get(name)]
            assert list(told.change.fields) == differing
            assert document(told.change.old) == {name: before[name] for name in differing if name in before}
            assert document(told.change.new) == {name: after[name] for name in differing if name in after}


def test_a_history_as_of_then_ends_then(api: Api, story: Story) -> None:
    one = story.image_ids[0]
    request = pb.ImageHistoryRequest(image_id=one)
    whole = [event for answer in stream(api, "ImageHistory", request)[0] for event in answer.events]
    for moment in story.positions:
        known = [event for event in whole if event.position <= moment]
        if not known:
            refusal = refused(lambda m=moment: stream(api, "ImageHistory", request, as_of(m)))
            assert refusal.code == Code.NOT_FOUND
            continue
        answers, call = stream(api, "ImageHistory", request, as_of(moment))
        assert [event for answer in answers for event in answer.events] == known
        assert position_of(call) == moment


# FamilyHistory.


def test_a_familys_history_is_what_its_latest_was(api: Api, story: Story) -> None:
    request = pb.FamilyHistoryRequest(folder_id=story.folder, family="web")
    for moment in story.positions:
        answers, call = stream(api, "FamilyHistory", request, as_of(moment))
        found = [one for answer in answers for one in answer.answers]
        assert position_of(call) == moment
        for position in range(story.first, moment + 1):
            there = [one.image_id for one in found if one.since <= position < (one.until or moment + 1)]
            assert there == latest(api, story.folder, "web", position)
        for one in found:
            (since,) = events(api, from_moment=at(one.since), to_moment=at(one.since))
            assert (one.at.ToNanoseconds(), one.actor) == (since.at, since.actor)
            assert one.operation_id == since.operation_id
    assert [one.image_id for one in found] == [*story.image_ids, story.image_ids[0]]
    assert [bool(one.until) for one in found] == [True, True, False]


def test_a_family_that_never_was_has_no_history(api: Api, story: Story) -> None:
    answers, _ = stream(api, "FamilyHistory", pb.FamilyHistoryRequest(folder_id=story.folder, family="db"))
    assert answers == []


# Diff.


def test_a_diff_is_the_difference_of_two_lists(api: Api, story: Story) -> None:
    lists = {
        position: {image.id: image for image in api.list(story.folder, as_of(position)).images}
        for position in story.positions
    }
    for before in story.positions:
        for after in range(before, story.last + 1):
            old, new = lists[before], lists[after]
            found = diff(api, before, after, story.folder)
            assert (found.from_position, found.to_position) == (before, after)
            assert list(found.added) == [new[one] for one in sorted(new.keys() - old.keys())]
            assert list(found.removed) == [old[one] for one in sorted(old.keys() - new.keys())]
            both = sorted(one for one in old.keys() & new.keys() if old[one] != new[one])
            assert [one.id for one in found.changed] == both
            for one in found.changed:
                was, is_ = document(old[one.id]), document(new[one.id])
                fields = [name for name in IMAGE_FIELDS if was.get(name) != is_.get(name)]
                assert list(one.change.fields) == fields
                assert document(one.change.old) == {name: was[name] for name in fields if name in was}
                assert document(one.change.new) == {name: is_[name] for name in fields if name in is_}


def diff(api: Api, before: int, after: int, folder: str = "") -> pb.DiffResponse:
    request = pb.DiffRequest(from_moment=at(before), to_moment=at(after), folder_id=folder)
    answers, call = stream(api, "Diff", request)
    merged = pb.DiffResponse()
    for answer in answers:
        merged.MergeFrom(answer)
    assert position_of(call) == after
    return merged


def test_a_diff_of_everything_has_all_folders(api: Api, story: Story, disk: Any, folder: str) -> None:
    before = diff(api, 0, 0).to_position
    image = api.image(folder, disk_id=disk.id)
    head = position_of(api.created(f"{folder}-2", disk_id=disk.id)[1])
    added = diff(api, before, head).added
    assert image.id in [one.id for one in added]
    assert {one.folder_id for one in added} >= {folder, f"{folder}-2"}
    assert [one.folder_id for one in diff(api, before, head, folder).added] == [folder]


def test_a_diff_up_to_the_head_needs_no_second_moment(api: Api, story: Story) -> None:
    request = pb.DiffRequest(from_moment=at(story.first), folder_id=story.folder)
    answers, call = stream(api, "Diff", request)
    assert answers[0].to_position == position_of(call)
    request.to_moment.head.SetInParent()
    assert stream(api, "Diff", request)[0][0].added == answers[0].added


# Blame.


def blamed(api: Api, image_id: str, metadata: Metadata = ()) -> tuple[pb.BlameResponse, Any]:
    request = pb.BlameRequest(image_id=image_id)
    return api.full_call(HISTORY, "Blame", request, pb.BlameResponse, metadata)


def test_a_blame_names_the_last_event_that_set_a_field(api: Api, story: Story) -> None:
    one = story.image_ids[0]
    own = events(api, resource_id=one)
    started, created, labels, name, reset = own
    found, call = blamed(api, one)
    assert found.image == api.get(one)
    assert found.position == position_of(call) >= story.last
    assert [blame.field for blame in found.fields] == list(IMAGE_FIELDS)
    setters = {blame.field: blame for blame in found.fields}
    # An empty mask sets every field that can be updated, also to the value that was there.
    expected = dict.fromkeys(("name", "description", "labels", "min_disk_size"), reset.position)
    expected |= dict.fromkeys(("folder_id", "family"), started.position)
    assert {blame.field: blame.position for blame in found.fields} == {
        name: expected.get(name, created.position) for name in IMAGE_FIELDS
    }
    assert setters["labels"].actor == reset.actor
    assert setters["labels"].operation_id == reset.operation_id
    assert setters["labels"].at.ToNanoseconds() == reset.at
    before, call = blamed(api, one, as_of(reset.position - 1))
    assert (before.position, position_of(call)) == (reset.position - 1, reset.position - 1)
    positions = {blame.field: blame.position for blame in before.fields}
    # Its name was set to what it was, by somebody else.
    assert (positions["name"], positions["labels"]) == (name.position, labels.position)
    assert positions["description"] == started.position
    assert name.actor != labels.actor


def test_a_blame_follows_an_update_at_once(api: Api, disk: Any, folder: str) -> None:
    image = api.image(folder, disk_id=disk.id)
    for number in range(3):
        position = position_of(api.updated(image.id, ["name"], name=f"n{number}")[1])
        for metadata in ((), [("x-min-position", str(position))], as_of(position)):
            found, _ = blamed(api, image.id, metadata)
            assert found.image.name == f"n{number}"
            assert {blame.field: blame.position for blame in found.fields}["name"] == position


def test_of_what_is_not_there_nobody_is_to_blame(api: Api, story: Story) -> None:
    for image_id in ("nobody", story.image_ids[1], story.disk_id):
        refusal = refused(lambda i=image_id: blamed(api, i))
        assert (refusal.code, refusal.message) == (Code.NOT_FOUND, f'Image "{image_id}" not found')
    assert blamed(api, story.image_ids[1], as_of(story.last - 1))[0].image.name == "two"


# Clients that know no .proto file.


@pytest.fixture(scope="module")
def described(api: Api) -> DescriptorPool:
    credentials: Metadata = api.metadata()

    class WithToken(grpc.StreamStreamClientInterceptor):
        def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
            return continuation(details._replace(metadata=credentials), requests)

    channel = grpc.intercept_channel(api.channel, WithToken())
    return DescriptorPool(ProtoReflectionDescriptorDatabase(channel))


def test_a_client_without_our_protos_asks_for_a_blame(
    api: Api, story: Story, described: DescriptorPool
) -> None:
    service = described.FindServiceByName(HISTORY)
    assert {method.name for method in service.methods} >= {
        "ReadEvents",
        "Watch",
        "ReadPositions",
        "ImageHistory",
        "FamilyHistory",
        "Diff",
        "Blame",
    }
    method = service.methods_by_name["Blame"]
    request, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    stub = api.channel.unary_unary(f"/{HISTORY}/Blame", request.SerializeToString, answer.FromString)
    found: Any = stub(request(image_id=story.image_ids[0]), metadata=api.metadata())
    assert found.image.id == story.image_ids[0]
