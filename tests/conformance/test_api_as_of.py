"""Every answer of every reading rpc, as of any moment; once given it never changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from projections.moments import format_time
from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from tests.conformance.api import Api, Code, as_of, position_of, refused
from tests.harness import IMAGES, Metadata, Server
from tests.unit.server.disk_images import tiny_qcow2

pytestmark = pytest.mark.usefixtures("quiet")

Source = source_service_pb2.Source
List = image_service_pb2.ListImagesRequest
ListAnswer = image_service_pb2.ListImagesResponse


@dataclass
class Story:
    """What happened in a folder: after each step the position, a time, and what every rpc answered then."""

    folder: str
    image_ids: list[str] = field(default_factory=list)
    operation_ids: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    answers: list[dict[str, object]] = field(default_factory=list)


def questions(api: Api, story: Story) -> dict[str, Callable[[Metadata], object]]:
    """Every reading rpc, asked about the story's things."""
    asked: dict[str, Callable[[Metadata], object]] = {
        "List": lambda metadata: list(api.list(story.folder, metadata).images),
        "List by name": lambda metadata: list(api.list(story.folder, metadata, order_by="name").images),
        "List filtered": lambda metadata: list(
            api.list(story.folder, metadata, filter="family = 'web'", order_by="createdAt desc").images
        ),
        "GetLatestByFamily": lambda metadata: api.latest(story.folder, "web", metadata),
        "SourceService.List": lambda metadata: list(api.sources(story.folder, metadata).sources),
    }
    for image_id in story.image_ids:
        asked[f"Get {image_id}"] = lambda metadata, i=image_id: api.get(i, metadata)
        asked[f"ListOperations {image_id}"] = lambda metadata, i=image_id: list(
            api.operations(i, metadata).operations
        )
        asked[f"BlobService.Read {image_id}"] = lambda metadata, i=image_id: api.read(i, metadata=metadata)
    for operation_id in story.operation_ids:
        asked[f"OperationService.Get {operation_id}"] = lambda metadata, i=operation_id: api.operation(
            i, metadata
        )
    return asked


def answers(api: Api, story: Story, metadata: Metadata = ()) -> dict[str, object]:
    return {name: _answer(ask, metadata) for name, ask in questions(api, story).items()}


def _answer(ask: Callable[[Metadata], object], metadata: Metadata) -> object:
    try:
        return ask(metadata)
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code(), failed.details()


@pytest.fixture(scope="module")
def story(api: Api) -> Story:
    """Two images and a disk that come, change and go, an answer to everything after each step."""
    told = Story("story")
    data = tiny_qcow2(2**20, salt=b"story")

    def note(call: Any) -> None:
        told.positions.append(position_of(call))

    def step(run: Callable[[], Any]) -> None:
        """A step's write, then its position, a time after it, and what everything answers now."""
        run()
        told.times.append(time.time_ns())
        told.answers.append(answers(api, told))

    def create(name: str, source: Source) -> None:
        operation, call = api.created(told.folder, name=name, family="web", disk_id=source.id)
        named = image_service_pb2.CreateImageMetadata()
        operation.metadata.Unpack(named)
        told.image_ids.append(named.image_id)
        told.operation_ids.append(operation.id)
        note(call)

    def update(number: int, name: str) -> None:
        operation, call = api.updated(told.image_ids[number], ["name"], name=name)
        told.operation_ids.append(operation.id)
        note(call)

    def delete(number: int) -> None:
        operation, call = api.deleted(told.image_ids[number])
        told.operation_ids.append(operation.id)
        note(call)

    disk = api.source(data, folder_id=told.folder, name="root")
    for run in (
        lambda: create("one", disk),
        lambda: create("two", disk),
        lambda: update(0, "three"),
        lambda: delete(1),
        lambda: create("two", disk),
        lambda: delete(0),
    ):
        step(run)
    told.operation_ids.append(api.remove_source(disk.id).id)
    return told


STEPS = range(6)


def known(then: dict[str, object], now: dict[str, object]) -> dict[str, object]:
    """Of today's answers about the past, those to questions that could be asked then."""
    return {name: answer for name, answer in now.items() if name in then}


@pytest.mark.parametrize("step", STEPS)
def test_as_of_a_writes_position(api: Api, story: Story, step: int) -> None:
    then = story.answers[step]

    assert known(then, answers(api, story, as_of(story.positions[step]))) == then


@pytest.mark.parametrize("step", STEPS)
def test_as_of_a_time_after_a_write(api: Api, story: Story, step: int) -> None:
    then = story.answers[step]

    assert known(then, answers(api, story, as_of(format_time(story.times[step])))) == then


@pytest.mark.parametrize("step", STEPS)
def test_what_was_not_there_yet_is_not_found(api: Api, story: Story, step: int) -> None:
    then, now = story.answers[step], answers(api, story, as_of(story.positions[step]))

    later = [answer for name, answer in now.items() if name not in then]

    assert later
    assert all(isinstance(answer, tuple) and answer[0] == Code.NOT_FOUND for answer in later)


def test_just_before_a_write(api: Api, story: Story) -> None:
    update = story.positions[2]

    assert api.get(story.image_ids[0], as_of(update - 1)).name == "one"
    assert api.get(story.image_ids[0], as_of(update)).name == "three"


def test_times_are_exact_to_the_nanosecond(api: Api, story: Story) -> None:
    changed_at = api.operation(story.operation_ids[2]).modified_at.ToNanoseconds()

    def name(at: int) -> str:
        return api.get(story.image_ids[0], as_of(format_time(at))).name

    assert [name(changed_at + offset) for offset in (-1, 0, 1)] == ["one", "three", "three"]


def test_between_the_two_events_of_a_create(api: Api, story: Story) -> None:
    started = story.positions[1] - 1

    refusal = refused(lambda: api.read(story.image_ids[1], metadata=as_of(started)))

    assert not api.operation(story.operation_ids[1], as_of(started)).done
    assert refusal.code == Code.FAILED_PRECONDITION
    assert story.operation_ids[1] in refusal.message
    # A family's latest image is a READY one.
    assert api.latest(story.folder, "web", as_of(started)).id == story.image_ids[0]


def test_a_zone_is_only_another_way_to_write_a_time(api: Api, story: Story) -> None:
    utc = format_time(story.times[1])
    hour = int(utc[11:13])
    moscow = f"{utc[:11]}{hour + 3:02}{utc[13:-1]}+03:00" if hour < 21 else utc

    assert api.list(story.folder, as_of(moscow)) == api.list(story.folder, as_of(utc))


def test_pages_of_the_past(api: Api, story: Story) -> None:
    moment = as_of(story.positions[1])
    first = api.list(story.folder, moment, page_size=1)
    second = api.list(story.folder, moment, page_size=1, page_token=first.next_page_token)

    assert [*first.images, *second.images] == list(api.list(story.folder, moment).images)
    assert not second.next_page_token


@pytest.mark.parametrize("step", STEPS)
def test_the_position_of_an_answer(api: Api, story: Story, step: int) -> None:
    request = List(folder_id=story.folder)

    _, call = api.full_call(IMAGES, "List", request, ListAnswer, as_of(format_time(story.times[step])))
    same = api.list(story.folder, as_of(position_of(call)))

    assert story.positions[step] <= position_of(call)
    assert list(same.images) == story.answers[step]["List"]


def test_a_write_is_there_for_the_next_read_at_least(api: Api, disk: Source, folder: str) -> None:
    _, call = api.created(folder, disk_id=disk.id)
    position = position_of(call)

    listed = api.list(folder, [("x-min-position", str(position))])

    assert len(listed.images) == 1


# --- Times that are still young ---


def test_a_young_time_is_answered_when_it_is_two_seconds_old(api: Api, story: Story) -> None:
    asked = time.time_ns()
    before = time.monotonic()

    api.list(story.folder, as_of(format_time(asked)))

    assert 1.5 < time.monotonic() - before < 4


def test_an_answer_never_changes_while_writes_go_on(
    api: Api, server: Server, disk: Source, folder: str
) -> None:
    """Ask as of the present over and over beside a writer, and again when all is past."""
    stop = threading.Event()

    def write() -> None:
        with Api(server.address) as own:
            while not stop.is_set():
                own.create(folder, disk_id=disk.id)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        asked = [format_time(time.time_ns() + offset) for offset in (-1_000_000, 0)]
        first = [api.list(folder, as_of(at), page_size=1000).SerializeToString() for at in asked]
    finally:
        stop.set()
        writer.join()

    again = [api.list(folder, as_of(at), page_size=1000).SerializeToString() for at in asked]
    assert again == first


def test_a_deadline_that_is_shorter_than_the_wait(api: Api, story: Story) -> None:
    request: Message = List(folder_id=story.folder)

    refusal = refused(
        lambda: api.call(IMAGES, "List", request, ListAnswer, as_of(format_time(time.time_ns())), timeout=0.2)
    )

    assert refusal.code == Code.DEADLINE_EXCEEDED
