"""Bytes in and out: uploads that are refused or interrupted leave nothing, and damage is named."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.gen.imageledger.v1 import source_service_pb2, status_service_pb2
from server.services.sources import steady
from server.status import CallRefused
from tests.conformance.api import MIB, SOURCES, Api, Code, Refusal, refused
from tests.harness import STATUS, Server
from tests.unit.server.disk_images import patched, tiny_qcow2, tiny_raw, tiny_vmdk

pytestmark = pytest.mark.usefixtures("quiet")

Header = source_service_pb2.SourceHeader
Part = source_service_pb2.UploadSourceRequest
QCOW2 = tiny_qcow2(MIB, salt=b"uploads")
HEADER = Header(folder_id="uploads", kind="DISK")


def send(api: Api, parts: list[Part]) -> source_service_pb2.Source:
    stub = api.channel.stream_unary(
        f"/{SOURCES}/Upload", Part.SerializeToString, source_service_pb2.Source.FromString
    )
    return stub(iter(parts), metadata=api.metadata(), timeout=30)


def incoming(server: Server) -> list[Path]:
    return list((server.data / "blobs" / "incoming").iterdir())


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds within ten seconds."""
    give_up = time.monotonic() + 10
    while not holds():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.005)
    return True


def blobs(api: Api) -> int:
    answer = api.call(STATUS, "Get", status_service_pb2.GetStatusRequest(), status_service_pb2.Status)
    return answer.blobs.count


# --- In ---


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(QCOW2, "qcow2", id="qcow2"),
        pytest.param(tiny_qcow2(MIB, version=2, salt=b"2"), "qcow2", id="qcow2-version-2"),
        pytest.param(tiny_vmdk(MIB, salt=b"uploads"), "vmdk", id="vmdk-stream"),
        pytest.param(tiny_vmdk(MIB, footer=True), "vmdk", id="vmdk-footer"),
        pytest.param(tiny_vmdk(MIB, kind="monolithicSparse"), "vmdk", id="vmdk-sparse"),
        pytest.param(tiny_raw(MIB, salt=b"uploads"), "raw", id="raw"),
        pytest.param(tiny_raw(MIB, partition_table=True), "raw", id="raw-with-partitions"),
    ],
)
def test_an_upload(api: Api, server: Server, data: bytes, found: str) -> None:
    header = Header(
        folder_id="uploads",
        kind="SNAPSHOT",
        name="root",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )

    source = api.upload(header, [data[:700], data[700:]])

    assert (source.format, source.size, source.storage_size) == (found, MIB, len(data))
    assert (source.sha256, source.name) == (header.sha256, "root")
    assert source.kind == source_service_pb2.SNAPSHOT
    assert source.created_at.nanos == 0
    assert source in api.sources("uploads").sources
    assert incoming(server) == []


@pytest.mark.parametrize("sizes", [[1] * 600, [0, 700, 0], [65_536, 1], [65_537], [1_000_000]])
def test_an_upload_in_pieces_of_any_size(api: Api, sizes: list[int]) -> None:
    data = tiny_raw(2 * MIB, salt=str(sizes).encode()[:500])
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces += [data[start : start + 900_000] for start in range(at, len(data), 900_000)]

    assert api.upload(HEADER, pieces).sha256 == hashlib.sha256(data).hexdigest()


QCOW2_PARTS = [Part(header=HEADER), Part(chunk=QCOW2)]


@pytest.mark.parametrize(
    ("parts", "broken"),
    [
        pytest.param([], "header", id="nothing"),
        pytest.param([Part(chunk=QCOW2)], "header", id="no-header"),
        pytest.param([Part()], "part", id="empty-message"),
        pytest.param([*QCOW2_PARTS, Part(header=HEADER)], "part", id="second-header"),
        pytest.param([*QCOW2_PARTS, Part()], "part", id="empty-message-later"),
        pytest.param([Part(header=Header(kind="DISK"))], "header.folder_id", id="no-folder"),
        pytest.param([Part(header=Header(folder_id="f"))], "header.kind", id="no-kind"),
        pytest.param([Part(header=Header(folder_id="f", kind=9))], "header.kind", id="unknown-kind"),
        pytest.param(
            [Part(header=Header(folder_id="f", kind="DISK", size_bytes=len(QCOW2) + 1)), QCOW2_PARTS[1]],
            "header.size_bytes",
            id="too-few-bytes",
        ),
        pytest.param(
            [Part(header=Header(folder_id="f", kind="DISK", size_bytes=len(QCOW2) - 1)), QCOW2_PARTS[1]],
            "header.size_bytes",
            id="too-many-bytes",
        ),
        pytest.param(
            [Part(header=Header(folder_id="f", kind="DISK", sha256="0" * 64)), QCOW2_PARTS[1]],
            "header.sha256",
            id="another-digest",
        ),
    ],
)
def test_an_upload_that_breaks_a_rule(api: Api, server: Server, parts: list[Part], broken: str) -> None:
    before = blobs(api)

    refusal = refused(lambda: send(api, parts))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, [broken])
    assert refusal.request_id == refusal.trailing["x-request-id"]
    assert incoming(server) == []
    assert blobs(api) == before


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(b"\x1f\x8b\x08" + bytes(600), "gzip", id="gzip"),
        pytest.param(b"\xfd7zXZ\x00" + bytes(600), "xz", id="xz"),
        pytest.param(b"PK\x03\x04" + bytes(600), "zip", id="zip"),
        pytest.param(bytes(257) + b"ustar" + bytes(600), "tar", id="tar"),
        pytest.param(b"vhdxfile" + bytes(600), "VHDX", id="vhdx"),
        pytest.param(b"conectix" + bytes(600), "VHD", id="vhd"),
        pytest.param(bytes(1024) + b"conectix" + bytes(504), "VHD", id="fixed-vhd"),
        pytest.param(bytes(32769) + b"CD001" + bytes(2042), "ISO", id="iso"),
        pytest.param(b"LUKS\xba\xbe" + bytes(600), "LUKS", id="luks"),
        pytest.param(b"<!DOCTYPE html><html>", "", id="html"),
        pytest.param(b'{"error": "no such key"}', "", id="json"),
        pytest.param(b"just some text", "text", id="text"),
        pytest.param(bytes(511), "512", id="half-a-sector"),
        pytest.param(patched(QCOW2, 8, ">QI", 112, 4), "backing file", id="backing-file"),
        pytest.param(patched(QCOW2, 32, ">I", 1), "encrypted", id="encrypted"),
        pytest.param(QCOW2[:600], "truncated", id="truncated"),
    ],
)
def test_a_format_that_is_refused(api: Api, server: Server, data: bytes, found: str) -> None:
    refusal = refused(lambda: api.upload(HEADER, [data] if data else []))

    assert refusal.code == Code.INVALID_ARGUMENT
    assert refusal.message.startswith("found ")
    assert found.lower() in refusal.message.lower()
    assert "supported are qcow2, VMDK (stream-optimised or monolithic sparse) and raw" in refusal.message
    assert incoming(server) == []


def test_a_refused_upload_leaves_no_event(api: Api, folder: str) -> None:
    refused(lambda: api.upload(Header(folder_id=folder, kind="DISK"), [b"text"]))

    assert not api.sources(folder).sources


@pytest.mark.parametrize("sent", [0, 1, 3])
def test_an_interrupted_upload_leaves_nothing(server: Server, api: Api, folder: str, sent: int) -> None:
    before = blobs(api)
    go_on = threading.Semaphore(0)

    def parts() -> Iterator[Part]:
        yield Part(header=Header(folder_id=folder, kind="DISK"))
        for _ in range(sent):
            yield Part(chunk=bytes([sent]) * 102_400)
        go_on.acquire()

    with Api(server.address) as client:
        stub = client.channel.stream_unary(f"/{SOURCES}/Upload", Part.SerializeToString, bytes)
        call = stub.future(parts(), metadata=client.metadata(), timeout=30)
        assert eventually(lambda: len(incoming(server)) == 1)
        call.cancel()
        go_on.release()
        assert eventually(lambda: not incoming(server))
    assert not api.sources(folder).sources
    assert blobs(api) == before


def test_uploads_that_break_off_at_any_moment(server: Server, folder: str) -> None:
    with Api(server.address) as client:
        stub = client.channel.stream_unary(f"/{SOURCES}/Upload", Part.SerializeToString, bytes)
        for number in range(40):
            parts = [Part(header=HEADER), *[Part(chunk=bytes(200_000))] * 4]
            call = stub.future(iter(parts), metadata=client.metadata(), timeout=30)
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.RpcError):
                call.result(timeout=number / 10_000)
            call.cancel()
        assert eventually(lambda: not incoming(server))
        assert client.source(QCOW2, folder_id=folder).id


def taken(parts: AsyncIterator[Part], *, window_s: float, clock: Callable[[], float]) -> list[Part]:
    """What is taken of an upload that has to bring 1000 bytes in each window."""

    async def take() -> list[Part]:
        return [part async for part in steady(parts, window_s=window_s, window_bytes_min=1000, clock=clock)]

    return asyncio.run(take())


def test_an_uploader_who_falls_silent_loses_its_place() -> None:
    async def silent() -> AsyncIterator[Part]:
        yield Part(header=HEADER)
        await asyncio.Event().wait()

    with pytest.raises(CallRefused) as refusal:
        taken(silent(), window_s=0.01, clock=time.monotonic)
    assert refusal.value.code == Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("chunks", "ends_after"),
    [
        # Each comes 10 s after the one before; 60 s may be spent, and are earned again by 1000 bytes.
        pytest.param([1] * 20, 7, id="a-byte-at-a-time"),
        pytest.param([150] * 60, 51, id="too-slow-by-a-little"),
        pytest.param([170] * 50, None, id="just-quick-enough"),
        pytest.param([0, 0, 0, 0, 1000] * 5, None, id="in-large-pieces"),
        pytest.param([10_000, *[1] * 20], 8, id="no-credit-for-more-than-a-window"),
    ],
)
def test_an_upload_has_a_rate_to_keep(chunks: list[int], ends_after: int | None) -> None:
    now = [0.0]

    async def slow() -> AsyncIterator[Part]:
        for size in chunks:
            now[0] += 10
            came.append(size)
            yield Part(chunk=bytes(size))

    came: list[int] = []
    if ends_after is None:
        assert len(taken(slow(), window_s=60, clock=lambda: now[0])) == len(chunks)
        return
    with pytest.raises(CallRefused) as refusal:
        taken(slow(), window_s=60, clock=lambda: now[0])
    assert refusal.value.reason == "UPLOAD_SLOW"
    assert len(came) == ends_after


def test_the_time_that_the_server_takes_is_not_the_uploaders() -> None:
    now = [0.0]

    async def quick() -> AsyncIterator[Part]:
        for _ in range(10):
            yield Part(chunk=b"x")

    async def take() -> int:
        number = 0
        async for _ in steady(quick(), window_s=60, window_bytes_min=1000, clock=lambda: now[0]):
            now[0] += 1000  # A disk that hangs.
            number += 1
        return number

    assert asyncio.run(take()) == 10


def test_a_message_over_one_mebibyte(api: Api, server: Server) -> None:
    refusal = refused(lambda: api.upload(HEADER, [bytes(MIB + 1)]))

    assert refusal.code in (Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT)
    assert eventually(lambda: not incoming(server))


# --- Out ---


@pytest.fixture(scope="module")
def data() -> bytes:
    """More than two of the server's chunks, no two of them alike."""
    return tiny_raw(600_064, salt=b"".join(n.to_bytes(4, "big") for n in range(150_000)))


@pytest.fixture
def image_id(api: Api, folder: str, data: bytes) -> str:
    return api.image(folder, disk_id=api.source(data).id).id


@pytest.mark.parametrize("offset", [0, 1, 511, 262_143, 262_144, 262_145, 600_063, 600_064])
def test_bytes_from_an_offset(api: Api, image_id: str, data: bytes, offset: int) -> None:
    info, read = api.read(image_id, offset=offset)

    assert (info.sha256, info.format) == (hashlib.sha256(data).hexdigest(), "raw")
    assert info.storage_size == len(data)
    assert read == data[offset:]


def blob(server: Server, data: bytes) -> Path:
    sha256 = hashlib.sha256(data).hexdigest()
    return server.data / "blobs" / sha256[:2] / sha256[2:4] / sha256


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1000)


def _replace_by_a_link(path: Path) -> None:
    moved = path.with_suffix(".moved")
    path.rename(moved)
    path.symlink_to(moved)


DAMAGES: list[Any] = [
    pytest.param(Path.unlink, id="missing"),
    pytest.param(_flip, id="flipped-bit"),
    pytest.param(_cut, id="cut"),
    pytest.param(_replace_by_a_link, id="link"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_blob_is_named_and_never_served_whole(
    api: Api, server: Server, folder: str, damage: Callable[[Path], None]
) -> None:
    data = tiny_raw(300_032, salt=folder.encode())
    image = api.image(folder, disk_id=api.source(data).id)
    damage(blob(server, data))

    refusal: Refusal = refused(lambda: api.read(image.id))

    assert refusal.code == Code.DATA_LOSS
    assert hashlib.sha256(data).hexdigest() in refusal.message
    assert refusal.request_id == refusal.trailing["x-request-id"]
    # Everything else goes on, and the same bytes heal it.
    assert api.get(image.id) == image
    api.source(data)
    assert api.read(image.id)[1] == data
