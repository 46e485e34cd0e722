"""Callers of all kinds at once, who note what they are told."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import Message

from projections.moments import format_time
from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2, operation_service_pb2
from server.identity import foreign_subject
from tests.conformance.api import Api, as_of, key, position_of
from tests.conformance.sites import until
from tests.crash.power.told import OperationTold, PositionTold, SourceTold, TimeTold, TokenTold, Told
from tests.harness import IMAGES, OPERATIONS, SOURCES, image_of

CHUNK_BYTES = 8 * 1024
BLOB_CHUNKS_MAX = 6


@dataclass(slots=True)
class Load:
    """What is asked of one server, and what was told. Everything random comes from the seed."""

    address: str
    sources: Path
    seed: int
    writes: int
    uploads: int
    imports: int
    told: list[Told] = field(default_factory=list)

    def run(self) -> None:
        """All callers at once. Raises what any of them raises."""
        self._run([self._uploading, self._importing, self._writing, self._writing, self._asking])

    def run_beside_a_rebuild(self) -> None:
        """All callers at once, while the server goes over to another projection."""
        writing = [self._writing, self._writing]
        self._run([self._uploading, self._importing, *writing, self._asking, self._rebuilding])

    def _run(self, work: list[Callable[[Api, random.Random, str], None]]) -> None:
        with ThreadPoolExecutor(len(work)) as threads:
            running = [threads.submit(self._call, one, number) for number, one in enumerate(work)]
            for caller in running:
                caller.result()

    def close_a_time(self) -> None:
        """Ask as of a time after the newest event, when nobody writes: the log must close it, durably."""
        with Api(self.address) as api:
            closed_ns = time.time_ns()
            request = image_service_pb2.ListImagesRequest(folder_id=self._folder_id(0))
            answer = image_service_pb2.ListImagesResponse
            _, call = api.full_call(IMAGES, "List", request, answer, as_of(format_time(closed_ns)))
            self.told.append(TimeTold(time.time_ns(), position_of(call), closed_ns))

    def _call(self, work: Callable[[Api, random.Random, str], None], number: int) -> None:
        api = Api(self.address)
        with api:
            work(api, random.Random(f"{self.seed} {number}"), self._folder_id(number))

    def _folder_id(self, number: int) -> str:
        return f"folder-{self.seed}-{number}"

    def _writing(self, api: Api, choices: random.Random, folder_id: str) -> None:
        disk = self._upload(api, folder_id, _body(choices, chunks=1))
        images: list[str] = []
        for number in range(self.writes):
            kind = choices.choice(("create", "create", "update", "update", "delete"))
            if kind == "create" or not images:
                created = api.created(
                    folder_id,
                    key(str(uuid.UUID(int=choices.getrandbits(128), version=4))),
                    disk_id=disk.id,
                    name=f"web-{number}",
                    family="web",
                    labels={"b": "1", "a": "2"},
                )
                images.append(image_of(self._note(*created)).id)
            elif kind == "update":
                text = "x" * choices.randrange(200)
                self._note(*api.updated(choices.choice(images), ["description"], description=text))
            else:
                self._note(*api.deleted(images.pop(choices.randrange(len(images)))))

    def _uploading(self, api: Api, choices: random.Random, folder_id: str) -> None:
        """Sources of which some have the bytes of an earlier one, and some are removed with their images."""
        bodies: list[bytes] = []
        for _ in range(self.uploads):
            if bodies and choices.random() < 0.25:
                body = choices.choice(bodies)
            else:
                body = _body(choices, chunks=choices.randint(1, BLOB_CHUNKS_MAX))
                bodies.append(body)
            source = self._upload(api, folder_id, body)
            image = image_of(self._note(*api.created(folder_id, disk_id=source.id)))
            if choices.random() < 0.5:
                request = source_service_pb2.RemoveSourceRequest(source_id=source.id)
                self._note(*api.full_call(SOURCES, "Remove", request, operation_pb2.Operation))
                if choices.random() < 0.5:
                    self._note(*api.deleted(image.id))

    def _importing(self, api: Api, choices: random.Random, folder_id: str) -> None:
        for number in range(self.imports):
            path = self.sources / f"{choices.getrandbits(64):x}.raw"
            path.write_bytes(_body(choices, chunks=choices.randint(1, BLOB_CHUNKS_MAX)))
            operation = self._note(*api.created(folder_id, uri=path.as_uri(), family="web"))
            if number % 4 == 3:
                cancel = operation_service_pb2.CancelOperationRequest(operation_id=operation.id)
                self._note(*api.full_call(OPERATIONS, "Cancel", cancel, operation_pb2.Operation))

            def is_done(asked: str = operation.id) -> bool:
                request = operation_service_pb2.GetOperationRequest(operation_id=asked)
                return self._note(*api.full_call(OPERATIONS, "Get", request, operation_pb2.Operation)).done

            until(is_done)

    def _asking(self, api: Api, choices: random.Random, folder_id: str) -> None:
        """Reads, of which no power cut may take back what they showed; and tokens, some of them revoked."""
        subject = foreign_subject(folder_id)
        for number in range(self.writes):
            _, call = api.full_call(
                IMAGES,
                "List",
                image_service_pb2.ListImagesRequest(folder_id=self._folder_id(2 + number % 2)),
                image_service_pb2.ListImagesResponse,
            )
            self.told.append(PositionTold(time.time_ns(), position_of(call)))
            if number % 8 == 0:
                token = api.exchanged(yandex_passport_oauth_token=folder_id)
                is_revoked = number % 16 == 0 and api.revoke(token) == subject
                self.told.append(TokenTold(time.time_ns(), 0, token, None if is_revoked else subject))

    def _rebuilding(self, api: Api, choices: random.Random, folder_id: str) -> None:
        command = [sys.executable, "-m", "tools.cli", "rebuild", "--online", "--json"]
        rebuilt = subprocess.run([*command, "--endpoint", self.address], check=True, capture_output=True)
        digests = json.loads(rebuilt.stdout)
        assert digests["digest_before"] == digests["digest_after"] is not None

    def _upload(self, api: Api, folder_id: str, body: bytes) -> source_service_pb2.Source:
        request = source_service_pb2.UploadSourceRequest
        header = source_service_pb2.SourceHeader(folder_id=folder_id, kind=source_service_pb2.DISK)

        def parts() -> Iterator[Message]:
            yield request(header=header)
            for start in range(0, len(body), CHUNK_BYTES):
                yield request(chunk=body[start : start + CHUNK_BYTES])

        stub = api.channel.stream_unary(
            f"/{SOURCES}/Upload", request.SerializeToString, source_service_pb2.Source.FromString
        )
        source, call = stub.with_call(parts(), metadata=api.metadata(), timeout=30)
        self.told.append(SourceTold(time.time_ns(), position_of(call), source))
        return source

    def _note(self, operation: operation_pb2.Operation, call: object) -> operation_pb2.Operation:
        self.told.append(OperationTold(time.time_ns(), position_of(call), operation))
        return operation


def _body(choices: random.Random, *, chunks: int) -> bytes:
    # No zeros, of which a file that a power cut emptied may be full.
    return choices.randbytes(chunks * CHUNK_BYTES)
