"""Clients that write down what they ask and what they are told, with the times of one monotonic clock."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import assert_never

import grpc
from google.protobuf.message import Message

from projections.moments import format_time
from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.gen.yandex.cloud.operation import operation_pb2
from tests.crash.callers import UNKNOWN, Caller, Place
from tests.crash.linear import (
    ALREADY_EXISTS,
    NOT_FOUND,
    Answer,
    Asked,
    Call,
    Create,
    Delete,
    Describe,
    Get,
    GetLatest,
    Image,
    ListAll,
    ListNamed,
    Read,
    Rename,
    Write,
)
from tests.harness import IMAGES, Metadata, image_of

FOLDERS = ("a", "b", "c")
NAMES = ("", "one", "two", "three")
FAMILIES = ("web", "data")
LIVING_MAX = 8
# What became of these nobody asks again; each doubles what a search that fails has to look at.
GIVEN_UP_MAX = 3
JUST_NOW_NS = 30_000_000
REFUSED = {grpc.StatusCode.NOT_FOUND: NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS: ALREADY_EXISTS}


@dataclass(frozen=True, slots=True)
class Seen:
    """A call of one folder; `position` is that of the answer's metadata, which a refusal does not have."""

    folder: str
    call: Call
    position: int | None = None
    key: str = ""
    as_of: str = ""
    wire: bytes = b""


@dataclass(frozen=True, slots=True)
class Told:
    """A call's answer as it came. A refusal has no position and no bytes."""

    answer: Answer
    position: int | None
    wire: bytes
    at: int


@dataclass
class Book:
    """What all clients have seen so far, and what they need to ask for more."""

    disk_id: str = ""
    seen: list[Seen] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)
    living: dict[str, list[str]] = field(default_factory=lambda: {folder: [] for folder in FOLDERS})
    gone: dict[str, list[str]] = field(default_factory=lambda: {folder: [] for folder in FOLDERS})
    given_up: Counter[str] = field(default_factory=Counter)
    # Of writes that are answered: their positions, and the times that their operations name.
    positions: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    questions: list[tuple[str, Read, str]] = field(default_factory=list)
    just_now: int = 0
    grown: threading.Condition = field(default_factory=threading.Condition)

    def add(self, seen: Seen) -> None:
        with self.grown:
            self.seen.append(seen)
            self.grown.notify_all()

    def learn(self, image: image_pb2.Image) -> Image:
        """The image in the model's terms. Raises AssertionError for a second image of one Create."""
        tag = image.labels["made"]
        with self.grown:
            assert self.ids.setdefault(tag, image.id) == image.id, f"{tag} was made twice"
        status = image_pb2.Image.Status.Name(image.status)
        return Image(tag, image.name, image.family, image.description, status)

    def wrote(self, folder: str, asked: Write, told: Told) -> None:
        if told.position is None:
            return
        with self.grown:
            self.positions.append(told.position)
            self.times.append(told.at)
            if isinstance(asked, Create):
                self.living[folder].append(asked.tag)
            elif isinstance(asked, Delete):
                self.living[folder].remove(asked.tag)
                self.gone[folder].append(asked.tag)

    def gives_up(self, folder: str) -> bool:
        """Whether one more write may stay unknown."""
        with self.grown:
            self.given_up[folder] += 1
            return self.given_up[folder] <= GIVEN_UP_MAX


class Recording(Caller):
    """Asks and is told, over one channel."""

    def __init__(self, place: Place, book: Book, name: str, seed: int) -> None:
        super().__init__(place, name, seed)
        self.book = book
        self.made = 0

    def tell(self, folder: str, asked: Asked, metadata: Metadata) -> Told:
        """What the server says. Raises RpcError with one of UNKNOWN where it says nothing."""
        method, request = self.request(folder, asked)
        stub = self.client.channel.unary_unary(f"/{IMAGES}/{method}", _serialized, None)
        try:
            wire, call = stub.with_call(request, metadata=tuple(self.client.metadata(metadata)), timeout=20)
        except grpc.RpcError as error:
            code = error.code()
            if code not in REFUSED:
                raise
            return Told(REFUSED[code], None, b"", 0)
        position = int(dict(call.trailing_metadata())["x-log-position"])
        return self.told(asked, wire, position)

    def request(self, folder: str, asked: Asked) -> tuple[str, Message]:
        match asked:
            case Create(tag, name, family):
                request = pb.CreateImageRequest(folder_id=folder, name=name, family=family)
                request.disk_id = self.book.disk_id
                request.labels["made"] = tag
                return "Create", request
            case Describe(tag, description):
                mask = {"paths": ["description"]}
                image_id = self.book.ids[tag]
                return "Update", pb.UpdateImageRequest(
                    image_id=image_id, update_mask=mask, description=description
                )
            case Rename(tag, name):
                mask = {"paths": ["name"]}
                return "Update", pb.UpdateImageRequest(
                    image_id=self.book.ids[tag], update_mask=mask, name=name
                )
            case Delete(tag):
                return "Delete", pb.DeleteImageRequest(image_id=self.book.ids[tag])
            case Get(tag):
                return "Get", pb.GetImageRequest(image_id=self.book.ids[tag])
            case ListAll():
                return "List", pb.ListImagesRequest(folder_id=folder, page_size=1000)
            case ListNamed(name):
                return "List", pb.ListImagesRequest(folder_id=folder, filter=f'name = "{name}"')
            case GetLatest(family):
                return "GetLatestByFamily", pb.GetImageLatestByFamilyRequest(folder_id=folder, family=family)
            case _ as never:
                assert_never(never)

    def told(self, asked: Asked, wire: bytes, position: int) -> Told:
        at = 0
        images: list[image_pb2.Image] = []
        match asked:
            case Create() | Describe() | Rename() | Delete():
                operation = operation_pb2.Operation.FromString(wire)
                assert operation.done
                at = operation.modified_at.ToNanoseconds()
                if not isinstance(asked, Delete):
                    images = [image_of(operation)]
            case Get() | GetLatest():
                images = [image_pb2.Image.FromString(wire)]
            case ListAll() | ListNamed():
                page = pb.ListImagesResponse.FromString(wire)
                assert not page.next_page_token
                images = list(page.images)
            case _ as never:
                assert_never(never)
        return Told(tuple(sorted(map(self.book.learn, images))), position, wire, at)

    def read(self, folder: str, asked: Read, as_of: str = "") -> bool:
        """Ask once. Whether it was answered."""
        invoked = time.monotonic_ns()
        try:
            told = self.tell(folder, asked, [("x-as-of", as_of)] if as_of else [])
        except grpc.RpcError as error:
            if error.code() not in UNKNOWN:
                raise
            self.follow()
            return False
        call = Call(asked, invoked, time.monotonic_ns(), told.answer)
        self.book.add(Seen(folder, call, told.position, as_of=as_of, wire=told.wire))
        return True

    def write(self, folder: str, asked: Write) -> None:
        """Ask with a key until it is answered, or, now and then, give it up when it is cut off."""
        key = str(uuid.UUID(int=self.choices.getrandbits(128), version=4))
        invoked = time.monotonic_ns()
        while True:
            try:
                told = self.tell(folder, asked, [("idempotency-key", key)])
                break
            except grpc.RpcError as error:
                if error.code() not in UNKNOWN:
                    raise
                is_given_up = self.choices.random() < 0.3 and self.book.gives_up(folder)
                self.follow()
            if is_given_up:
                self.book.add(Seen(folder, Call(asked, invoked), key=key))
                return
        call = Call(asked, invoked, time.monotonic_ns(), told.answer)
        self.book.wrote(folder, asked, told)
        self.book.add(Seen(folder, call, told.position, key, wire=told.wire))

    def some_tag(self, folder: str) -> str | None:
        """Mostly of an image that lives, as far as is known."""
        with self.book.grown:
            tags = self.book.gone[folder][-4:] if self.choices.random() < 0.1 else self.book.living[folder]
            known = [tag for tag in tags if tag in self.book.ids]
        return self.choices.choice(known) if known else None

    def some_read(self, folder: str) -> Read:
        tag = self.some_tag(folder)
        kind = self.choices.randrange(5)
        if kind == 0:
            return ListAll()
        if kind == 1:
            return ListNamed(self.choices.choice(NAMES[1:]))
        if kind == 2 or tag is None:
            return GetLatest(self.choices.choice(FAMILIES))
        return Get(tag)


class Present(Recording):
    """Writes and reads, in all folders."""

    def turn(self) -> None:
        folder = self.choices.choice(FOLDERS)
        if self.choices.random() < 0.5:
            self.read(folder, self.some_read(folder))
        else:
            self.write(folder, self.some_write(folder))

    def some_write(self, folder: str) -> Write:
        self.made += 1
        unique = f"{self.name}-{self.made}"
        tag = self.some_tag(folder)
        kind = self.choices.randrange(5)
        with self.book.grown:
            is_crowded = len(self.book.living[folder]) >= LIVING_MAX
        if tag is None or (kind < 2 and not is_crowded):
            return Create(unique, self.choices.choice(NAMES), self.choices.choice(FAMILIES))
        if kind == 2:
            return Rename(tag, self.choices.choice(NAMES))
        return Delete(tag) if is_crowded or kind == 3 else Describe(tag, unique)


class Past(Recording):
    """Asks as of positions and times, new ones and, as often, those that were asked before."""

    def turn(self) -> None:
        with self.book.grown:
            self.book.grown.wait_for(lambda: self.book.positions or self.place.is_over, timeout=1)
            asked_before = list(self.book.questions)
            positions, times = self.book.positions[-200:], self.book.times[-200:]
        if asked_before and self.choices.random() < 0.5:
            self.read(*self.choices.choice(asked_before))
            return
        if not positions:
            return
        folder = self.choices.choice(FOLDERS)
        question = folder, self.some_read(folder), self.some_moment(positions, times)
        self.read(*question)
        with self.book.grown:
            self.book.questions.append(question)

    def some_moment(self, positions: list[int], times: list[int]) -> str:
        """A position that was told, one between them, or a time at which, or just before which, one was."""
        kind = self.choices.randrange(3)
        if kind == 0:
            return str(self.choices.choice(positions))
        if kind == 1:
            return str(self.choices.randint(min(positions), max(positions)))
        return format_time(self.choices.choice(times) - self.choices.randrange(2))


class JustNow(Recording):
    """Asks as of times so recent that the server has to wait before it can promise its answer."""

    def turn(self) -> None:
        folder = self.choices.choice(FOLDERS)
        at = time.time_ns() - self.choices.randrange(JUST_NOW_NS)
        question = folder, self.some_read(folder), format_time(at)
        with self.book.grown:
            self.book.questions.append(question)
        if self.read(*question):
            with self.book.grown:
                self.book.just_now += 1
                self.book.grown.notify_all()


def _serialized(request: Message) -> bytes:
    return request.SerializeToString()
