"""Random calls of every rpc against a real server and a small model of its own, now and as of the past.

The model is written from the API's description, with none of the project's domain code, and remembers every
state there ever was: an answer as of an old position must be what was remembered then.
"""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.gen.yandex.cloud.operation import operation_pb2
from server.gen.yandex.cloud.operation import operation_service_pb2 as operation_pb
from tests.harness import IMAGES, OPERATIONS, Client, Server, image_of
from tests.unit.server.disk_images import tiny_qcow2

MIB = 1024 * 1024
OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

Fields = dict[str, Any]

names = st.sampled_from(("", "", "a", "b", "c", "d"))
families = st.sampled_from(("", "web", "data"))
labels = st.dictionaries(st.sampled_from(("z", "a", "k/k")), st.sampled_from(("", "1", "2")), max_size=3)
disk_sizes = st.sampled_from((0, 0, 8 * MIB, 64 * MIB, 4 * MIB, 6 * MIB))
products = st.lists(st.sampled_from(("p1", "p2", "p3")), max_size=3)
indexes = st.integers(0, 7)
pages = st.integers(1, 4)


@dataclass
class Model:
    """What the world looks like at one position."""

    sources: dict[str, Fields] = field(default_factory=dict)
    images: dict[str, Fields] = field(default_factory=dict)
    operations: dict[str, list[str]] = field(default_factory=dict)  # Of an image, newest first.
    order: dict[str, int] = field(default_factory=dict)  # Of images, by when each was created.

    def named(self, folder: str, name: str) -> str | None:
        for image_id, image in self.images.items():
            if name and (image["folder_id"], image["name"]) == (folder, name):
                return image_id
        return None

    def listed(self, folder: str) -> list[str]:
        return sorted(one for one, image in self.images.items() if image["folder_id"] == folder)

    def latest(self, folder: str, family: str) -> str | None:
        members = [
            one
            for one, image in self.images.items()
            if family and (image["folder_id"], image["family"]) == (folder, family)
        ]
        return max(members, key=self.order.__getitem__, default=None)


def shown(image: image_pb2.Image) -> Fields:
    """An answer in the model's terms."""
    assert image.status == image_pb2.Image.READY
    return {
        "folder_id": image.folder_id,
        "name": image.name,
        "description": image.description,
        "labels": dict(image.labels),
        "family": image.family,
        "min_disk_size": image.min_disk_size,
        "size": image.size,
        "product_ids": list(image.product_ids),
        "pooled": image.pooled,
        "os": image_pb2.Os.Type.Name(image.os.type),
        "created_at": image.created_at.seconds,
    }


def rounded(size: int) -> int:
    """Up to whole 4 MiB, and at least that."""
    return max(1, (size + 4 * MIB - 1) // (4 * MIB)) * 4 * MIB


class Machine(RuleBasedStateMachine):
    """Two folders of its own for each run; one server for all."""

    client: ClassVar[Client]
    numbers: ClassVar[Iterator[int]]

    sources = Bundle("sources")

    def __init__(self) -> None:
        super().__init__()
        number = next(self.numbers)
        self.folders = (f"run-{number}-a", f"run-{number}-b")
        self.model = Model()
        self.moments: list[tuple[int, Model]] = []
        self.done: dict[str, operation_pb2.Operation] = {}
        self.keyed: list[tuple[str, Message, str, str]] = []
        self.seen: list[str] = []

    # Writes.

    @initialize(target=sources, data=st.data())
    def begin(self, data: st.DataObject) -> str:
        """A disk and, as a rule, images: most rules need some."""
        source_id = self.upload(0, 5 * MIB)
        for _ in range(3):
            self.create(data, "disk_id", source_id, self.model.sources[source_id])
        return source_id

    @rule(target=sources, folder=st.integers(0, 1), size=st.sampled_from((512, 4 * MIB, 5 * MIB)))
    def upload(self, folder: int, size: int) -> str:
        kind = source_service_pb2.SNAPSHOT if folder else source_service_pb2.DISK
        header = source_service_pb2.SourceHeader(folder_id=self.folders[folder], kind=kind)
        source = self.client.upload(header, [tiny_qcow2(size)])
        assert source.size == size
        self.model.sources[source.id] = {"kind": "snapshot_id" if folder else "disk_id", "size": size}
        return source.id

    @rule(source=sources, swapped=st.sampled_from((False,) * 6 + (True,)), data=st.data())
    def create_from_source(self, source: str, swapped: bool, data: st.DataObject) -> None:
        parent = self.model.sources[source]
        kind = parent["kind"]
        if swapped:
            kind = "disk_id" if kind == "snapshot_id" else "snapshot_id"
        self.create(data, kind, source, None if swapped else parent)

    @rule(index=indexes, data=st.data())
    def create_from_image(self, index: int, data: st.DataObject) -> None:
        image_id = self.some_image(index)
        self.create(data, "image_id", image_id, self.model.images.get(image_id))

    def create(self, data: st.DataObject, kind: str, source_id: str, parent: Fields | None) -> None:
        given = data.draw(
            st.fixed_dictionaries(
                {
                    "folder_id": st.sampled_from(self.folders),
                    "name": names,
                    "family": families,
                    "labels": labels,
                    "min_disk_size": disk_sizes,
                    "product_ids": products,
                    "pooled": st.booleans(),
                    "description": st.sampled_from(("", "text")),
                }
            )
        )
        windows = data.draw(st.booleans())
        request = pb.CreateImageRequest(**{kind: source_id}, **given)
        if windows:
            request.os.type = image_pb2.Os.WINDOWS
        refusals = set()
        if parent is None:
            refusals.add(PRECONDITION)
        elif 0 < given["min_disk_size"] < max(parent["size"], parent.get("min_disk_size", 0)):
            refusals.add(INVALID)
        if self.model.named(given["folder_id"], given["name"]):
            refusals.add(EXISTS)
        operation = self.write("Create", request, refusals)
        if operation is None or parent is None:
            return
        image = image_of(operation)
        inherited = parent.get("min_disk_size") or rounded(parent["size"])
        made = {
            **given,
            "min_disk_size": given["min_disk_size"] or inherited,
            "size": parent["size"],
            "product_ids": list(dict.fromkeys([*parent.get("product_ids", []), *given["product_ids"]])),
            "os": "WINDOWS" if windows else parent.get("os", "LINUX"),
            "created_at": operation.created_at.seconds,
        }
        assert shown(image) == made
        assert image.id not in self.seen
        self.seen.append(image.id)
        self.model.images[image.id] = made
        self.model.order[image.id] = len(self.model.order)
        self.model.operations[image.id] = [operation.id]
        self.remember()

    @rule(
        index=indexes,
        mask=st.lists(st.sampled_from(("name", "description", "labels", "min_disk_size")), max_size=3),
        name=names,
        text=st.sampled_from(("", "one", "two")),
        some=labels,
        size=disk_sizes,
    )
    def update(
        self, index: int, mask: list[str], name: str, text: str, some: dict[str, str], size: int
    ) -> None:
        image_id = self.some_image(index)
        request = pb.UpdateImageRequest(
            image_id=image_id, name=name, description=text, labels=some, min_disk_size=size
        )
        request.update_mask.paths.extend(mask)
        before = self.model.images.get(image_id)
        values = {"name": name, "description": text, "labels": some, "min_disk_size": size}
        written = {key: value for key, value in values.items() if key in mask or not mask}
        refusals = set()
        if before is None:
            refusals.add(NOT_FOUND)
        else:
            if 0 < written.get("min_disk_size", 0) < before["size"]:
                refusals.add(INVALID)
            if "name" in written and self.model.named(before["folder_id"], name) not in (None, image_id):
                refusals.add(EXISTS)
        operation = self.write("Update", request, refusals)
        if operation is None or before is None:
            return
        if written.get("min_disk_size") == 0:
            written["min_disk_size"] = rounded(before["size"])
        after = {**before, **written}
        assert shown(image_of(operation)) == after
        self.model.images[image_id] = after
        self.model.operations[image_id].insert(0, operation.id)
        self.remember()

    @rule(index=indexes)
    def delete(self, index: int) -> None:
        image_id = self.some_image(index)
        refusals = set() if image_id in self.model.images else {NOT_FOUND}
        operation = self.write("Delete", pb.DeleteImageRequest(image_id=image_id), refusals)
        if operation is None:
            return
        assert operation.response.type_url == "type.googleapis.com/google.protobuf.Empty"
        del self.model.images[image_id]
        self.model.operations[image_id].insert(0, operation.id)
        self.remember()

    @rule(index=indexes)
    def repeat(self, index: int) -> None:
        """An earlier request with its key again: the first operation, and no other change."""
        if not self.keyed:
            return
        method, request, key, operation_id = self.keyed[index % len(self.keyed)]
        metadata = [("idempotency-key", key)]
        again = self.client.call(IMAGES, method, request, operation_pb2.Operation, metadata)
        assert again == self.done[operation_id]

    @rule(index=indexes)
    def reuse_a_key(self, index: int) -> None:
        """An earlier key with another request."""
        if not self.keyed:
            return
        method, request, key, _ = self.keyed[index % len(self.keyed)]
        other = copy.deepcopy(request)
        if method == "Delete":
            other = pb.DeleteImageRequest(image_id="another")
        else:
            other.description = "another"  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError) as refused:
            self.client.call(IMAGES, method, other, operation_pb2.Operation, [("idempotency-key", key)])
        assert refused.value.code() == INVALID  # type: ignore[attr-defined]

    def write(
        self, method: str, request: Message, refusals: set[grpc.StatusCode]
    ) -> operation_pb2.Operation | None:
        """The operation, or None where the call was refused with one of these, as it should be."""
        key = str(uuid.uuid4())
        metadata = [("idempotency-key", key)]
        try:
            operation, call = self.client.full_call(
                IMAGES, method, request, operation_pb2.Operation, metadata
            )
        except grpc.RpcError as error:
            if error.code() not in refusals:  # type: ignore[attr-defined]
                raise
            return None
        assert not refusals, (method, request, refusals)
        assert operation.done
        assert operation.WhichOneof("result") == "response"
        self.position = int(dict(call.trailing_metadata())["x-log-position"])
        self.done[operation.id] = operation
        self.keyed.append((method, request, key, operation.id))
        return operation

    def remember(self) -> None:
        self.moments.append((self.position, copy.deepcopy(self.model)))

    def some_image(self, index: int) -> str:
        """Mostly one that there is; else one that there was, or that never was."""
        living = [one for one in self.seen if one in self.model.images]
        gone = [one for one in self.seen if one not in self.model.images]
        if index == 7 or not living:
            return "never-there"
        return gone[-1] if index == 6 and gone else living[-1 - index % len(living)]

    # Reads, now and as of what is remembered.

    @invariant()
    def the_present_is_the_models(self) -> None:
        for folder in self.folders:
            answer = self.client.call(
                IMAGES, "List", pb.ListImagesRequest(folder_id=folder), pb.ListImagesResponse
            )
            assert {image.id: shown(image) for image in answer.images} == {
                one: self.model.images[one] for one in self.model.listed(folder)
            }

    @rule(page_size=pages)
    def ask_now(self, page_size: int) -> None:
        self.check(self.model, [], page_size)

    @rule(index=st.integers(0, 30), page_size=pages)
    def ask_as_of(self, index: int, page_size: int) -> None:
        if self.moments:
            position, model = self.moments[index % len(self.moments)]
            self.check(model, [("x-as-of", str(position))], page_size)

    @rule(index=st.integers(0, 30))
    def ask_as_of_an_operations_time(self, index: int) -> None:
        """The moment of a write is the position that it led to."""
        if not self.moments:
            return
        position, model = self.moments[index % len(self.moments)]
        images = {one for ids in model.operations.values() for one in ids}
        [operation_id] = images - self.operations_before(position)
        at = self.done[operation_id].modified_at
        self.check(model, [("x-as-of", at.ToJsonString())], 1000)

    def operations_before(self, position: int) -> set[str]:
        earlier = [model for other, model in self.moments if other < position]
        return {one for ids in earlier[-1].operations.values() for one in ids} if earlier else set()

    @rule(position=st.integers(0, 1))
    def ask_as_of_the_beginning(self, position: int) -> None:
        self.check(Model(), [("x-as-of", str(position))], 1000)

    def check(self, model: Model, metadata: list[tuple[str, str]], page_size: int) -> None:
        """Every image, and one folder: half of the questions, so that there are more of the moments."""
        image_ids = (*self.seen[-6:], "never-there")
        for image_id in image_ids:
            got = self.answer("Get", pb.GetImageRequest(image_id=image_id), image_pb2.Image, metadata)
            self.compare(got, image_id if image_id in model.images else None, model)
        self.check_operations(model, image_ids[page_size % len(image_ids)], metadata, page_size)
        folder = self.folders[page_size % 2]
        assert self.all_pages(folder, "", "", metadata, page_size) == model.listed(folder)
        by_name = sorted(model.listed(folder), key=lambda one: (model.images[one]["name"], one))
        assert self.all_pages(folder, "", "name desc", metadata, page_size) == by_name[::-1]
        expected = [one for one in [model.named(folder, "a")] if one is not None]
        assert self.all_pages(folder, 'name = "a"', "", metadata, page_size) == expected
        for family in ("", "web", "data"):
            latest = pb.GetImageLatestByFamilyRequest(folder_id=folder, family=family)
            got = self.answer("GetLatestByFamily", latest, image_pb2.Image, metadata)
            self.compare(got, model.latest(folder, family), model)

    def compare(self, got: Any, image_id: str | None, model: Model) -> None:
        if image_id is None:
            assert got is NOT_FOUND
        else:
            assert (got.id, shown(got)) == (image_id, model.images[image_id])

    def check_operations(
        self, model: Model, image_id: str, metadata: list[tuple[str, str]], page_size: int
    ) -> None:
        request = pb.ListImageOperationsRequest(image_id=image_id, page_size=page_size)
        got: list[operation_pb2.Operation] = []
        while True:
            page = self.answer("ListOperations", request, pb.ListImageOperationsResponse, metadata)
            if page is NOT_FOUND:
                assert image_id not in model.operations
                return
            got += page.operations
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        expected = [self.done[one] for one in model.operations[image_id]]
        assert got == expected
        for operation in expected[:1]:
            by_id = operation_pb.GetOperationRequest(operation_id=operation.id)
            assert self.client.call(OPERATIONS, "Get", by_id, operation_pb2.Operation, metadata) == operation

    def all_pages(
        self, folder: str, text: str, order: str, metadata: list[tuple[str, str]], page_size: int
    ) -> list[str]:
        request = pb.ListImagesRequest(folder_id=folder, filter=text, order_by=order, page_size=page_size)
        found: list[str] = []
        while True:
            page = self.answer("List", request, pb.ListImagesResponse, metadata)
            found += [image.id for image in page.images]
            if not page.next_page_token:
                return found
            assert page.images, "an empty page with a token"
            request.page_token = page.next_page_token

    def answer(
        self, method: str, request: Message, kind: type[Message], metadata: list[tuple[str, str]]
    ) -> Any:
        """The answer, or the status code of the refusal."""
        try:
            return self.client.call(IMAGES, method, request, kind, metadata)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined]


def test_a_real_server_is_the_model_now_and_as_of_every_moment(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    try:
        with Client(server.address) as client:
            fields = {"client": client, "numbers": itertools.count()}
            bound: type[Machine] = type("BoundMachine", (Machine,), fields)
            run_state_machine_as_test(
                bound,
                settings=settings(
                    max_examples=30,
                    stateful_step_count=50,
                    deadline=None,
                    print_blob=True,
                    # Making a failure smaller takes minutes over a real server; the printed blob repeats it.
                    phases=(Phase.reuse, Phase.generate),
                    suppress_health_check=list(HealthCheck),
                ),
            )
        errors = server.stderr()
    finally:
        server.stop()
    assert "Traceback" not in errors
    check_digests(tmp_path / "data")


def check_digests(data: Path) -> None:
    """The rows that the server made live are those that a rebuild makes of the log."""
    command = [sys.executable, "-m", "tools.cli", "rebuild", "--data", str(data), "--json"]
    rebuilt = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert rebuilt["digest_before"] == rebuilt["digest_after"] is not None
