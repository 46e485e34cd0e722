"""The client commands against a real server: exit codes, stdout and stderr, as they are seen."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
import trustme

from server.gen.google.protobuf import any_pb2
from server.gen.imageledger.v1 import blob_service_pb2, source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.harness import BLOBS, IMAGES, OPERATIONS, Client, Server, image_of, serving
from tests.unit.tools.conftest import Ended, Run, Spawn
from tests.unit.tools.scripted import scripted
from tools.cli import cli
from tools.output import shown, size_text
from tools.progress import Progress

MIB = 1024 * 1024
TYPES = "type.googleapis.com/"


def lines(ended: Ended) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.out.splitlines()]


def document(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    made: dict[str, Any] = json.loads(ended.out)
    return made


def first_line(ended: Ended) -> str:
    return ended.err.splitlines()[0]


@pytest.fixture
def folder() -> str:
    """A folder that no other test uses."""
    return f"folder-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def image(caller: Client, folder: str) -> str:
    """The id of an image `web` of 1 MiB of zeros, in the folder."""
    return make_image(caller, folder, "web")


def make_image(caller: Client, folder: str, name: str, *, content: bytes = bytes(MIB)) -> str:
    header = source_service_pb2.SourceHeader(folder_id=folder, kind=source_service_pb2.DISK)
    disk = caller.upload(header, [content[at : at + 65536] for at in range(0, len(content), 65536)])
    request = image_service_pb2.CreateImageRequest(
        folder_id=folder, name=name, family="web", disk_id=disk.id, labels={"env": "prod", "a": "1"}
    )
    made = caller.call(IMAGES, "Create", request, operation_pb2.Operation)
    return image_of(made).id


# status


def test_status_of_a_server(imageledger: Run) -> None:
    found = document(imageledger("status", "--json"))
    assert found["log_id"].startswith("imageledger-")
    assert int(found["applied_position"]) == int(found["head"]) >= 2
    assert found["newest_event"]["position"] == found["head"]
    assert found["newest_event"]["at"].endswith("Z")
    assert len(found["newest_event"]["at"]) == len("2026-11-23T10:00:00.000000000Z")
    assert set(found["blobs"]) == {"count", "bytes"}
    assert int(found["total_bytes"]) > int(found["free_bytes"]) > 0
    assert found["software"].startswith("imageledger ")


def test_status_of_files_says_the_same_beside_the_server(
    imageledger: Run, server: Server, image: str
) -> None:
    of_server = document(imageledger("status", "--json"))
    of_files = document(imageledger("status", "--json", IMAGELEDGER_DATA=str(server.data)))
    same = ("log_id", "head", "applied_position", "newest_event", "blobs", "total_bytes", "software")
    assert {key: of_files[key] for key in same} == {key: of_server[key] for key in same}


def test_status_for_people(imageledger: Run, server: Server) -> None:
    for arguments in ((), ("--data", str(server.data))):
        ended = imageledger("status", *arguments)
        names = [line.split("  ")[0] for line in ended.out.splitlines()]
        assert names[:6] == ["log", "head", "applied", "newest event", "blobs", "free space"]
        assert (ended.code, ended.err) == (0, "")


def test_an_endpoint_on_the_command_line_wins_over_data_in_the_environment(
    imageledger: Run, server: Server, tmp_path: Path
) -> None:
    ended = imageledger("status", "--endpoint", server.address, IMAGELEDGER_DATA=str(tmp_path))
    assert ended.code == 0, ended.err


def test_status_of_no_log(imageledger: Run, tmp_path: Path) -> None:
    ended = imageledger("status", "--data", str(tmp_path))
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith("error: NOT_FOUND: ")
    assert list(tmp_path.iterdir()) == []


def test_status_of_a_projection_of_another_log(imageledger: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with serving(tmp_path / name):
            pass
    for path in (tmp_path / "two").glob("projections-*"):
        path.replace(tmp_path / "one" / path.name)
    ended = imageledger("status", "--data", str(tmp_path / "one"), "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["applied_position"] == "0"
    assert first_line(ended).startswith("error: FAILED_PRECONDITION: projections-")
    assert "rebuild" in ended.err


# source


def test_source_add_prints_the_id_alone(imageledger: Run, folder: str, working_folder: Path) -> None:
    (working_folder / "disk.raw").write_bytes(bytes(MIB))
    ended = imageledger("source", "add", "disk.raw", "--kind", "disk", "--folder", folder, "--name", "d1")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == ended.out.strip() + "\n"
    (listed,) = lines(imageledger("source", "list", "--folder", folder, "--json"))
    assert listed["id"] == ended.out.strip()
    assert listed["name"] == "d1"
    assert listed["kind"] == "DISK"
    assert listed["size"] == str(MIB)
    assert listed["sha256"] == hashlib.sha256(bytes(MIB)).hexdigest()


def test_source_add_reads_stdin(spawn: Spawn, folder: str) -> None:
    command = spawn(
        "source", "add", "-", "--kind", "snapshot", "--folder", folder, "--json", stdin=subprocess.PIPE
    )
    out, err = command.communicate(bytes(MIB + 512))
    assert (command.returncode, err) == (0, b"")
    made = json.loads(out)
    assert made["kind"] == "SNAPSHOT"
    assert made["storage_size"] == str(MIB + 512)


def test_source_add_of_what_is_no_disk(imageledger: Run, folder: str, working_folder: Path) -> None:
    (working_folder / "disk.raw").write_bytes(b"x" * 100)
    ended = imageledger("source", "add", "disk.raw", "--kind", "disk", "--folder", folder)
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith("error: INVALID_ARGUMENT: ")


def test_source_add_fails_with_the_file_that_fails(
    imageledger: Run, folder: str, monkeypatch: pytest.MonkeyPatch, working_folder: Path
) -> None:
    (working_folder / "disk.raw").write_bytes(bytes(MIB))

    def broken(*_: object) -> Iterator[source_service_pb2.UploadSourceRequest]:
        yield source_service_pb2.UploadSourceRequest(
            header=source_service_pb2.SourceHeader(folder_id=folder, kind="DISK")
        )
        raise OSError(5, "Input/output error", "disk.raw")

    monkeypatch.setattr("tools.source._parts", broken)
    ended = imageledger("source", "add", "disk.raw", "--kind", "disk", "--folder", folder)
    assert (ended.code, ended.err) == (1, "error: UNAVAILABLE: disk.raw: Input/output error\n")


def test_source_list_and_remove(imageledger: Run, caller: Client, folder: str) -> None:
    disk = caller.disk(folder, name="d1")
    table = imageledger("source", "list", "--folder", folder).out.splitlines()
    assert table[0].split() == ["ID", "KIND", "NAME", "FORMAT", "SIZE", "CREATED_AT"]
    assert table[1].split()[:4] == [disk, "DISK", "d1", "raw"]
    removed = document(imageledger("source", "remove", disk, "--json"))
    assert removed["metadata"]["source_id"] == disk
    assert removed["done"] is True
    assert removed["response"] == {"@type": f"{TYPES}google.protobuf.Empty"}
    empty = imageledger("source", "list", "--folder", folder)
    assert (empty.code, empty.out, empty.err) == (0, "", f"no sources in folder {folder}\n")


# image


def test_image_create_prints_the_image(imageledger: Run, caller: Client, folder: str) -> None:
    made = document(
        imageledger(
            *("image", "create", "--folder", folder, "--disk-id", caller.disk(folder), "--json"),
            *("--name", "web-1", "--description", "Привет\x1b[2J", "--family", "web"),
            *("--label", "b=2", "--label", "a=1", "--min-disk-size", "1G"),
            *("--os", "windows", "--product-id", "p1", "--product-id", "p2", "--pooled"),
        )
    )
    assert made["status"] == "READY"
    assert made["description"] == "Привет\x1b[2J"
    assert list(made["labels"].items()) == [("a", "1"), ("b", "2")]
    assert made["min_disk_size"] == str(1 << 30)
    assert made["os"] == {"type": "WINDOWS"}
    assert made["product_ids"] == ["p1", "p2"]
    assert made["pooled"] is True
    text = imageledger("image", "get", made["id"])
    assert "\x1b" not in text.out
    pairs = dict(line.split(maxsplit=1) for line in text.out.splitlines())
    assert pairs["labels"] == "a=1, b=2"
    assert pairs["min_disk_size"] == "1.0 GiB (1073741824)"
    assert pairs["description"] == "Привет\\x1b[2J"


@pytest.mark.parametrize("option", ["--image-id", "--disk-id", "--snapshot-id"])
def test_image_create_from_each_source(
    imageledger: Run, caller: Client, folder: str, image: str, option: str
) -> None:
    header = source_service_pb2.SourceHeader(folder_id=folder, kind=source_service_pb2.SNAPSHOT)
    sources = {
        "--image-id": image,
        "--disk-id": caller.disk(folder),
        "--snapshot-id": caller.upload(header, [bytes(4096)]).id,
    }
    made = imageledger("image", "create", "--folder", folder, option, sources[option])
    assert made.code == 0, made.err
    assert "status" in made.out


def test_image_create_async_prints_the_operation(imageledger: Run, caller: Client, folder: str) -> None:
    disk = caller.disk(folder)
    made = document(
        imageledger("image", "create", "--folder", folder, "--disk-id", disk, "--async", "--json")
    )
    assert made["description"] == "Create image"
    assert made["response"]["@type"] == f"{TYPES}yandex.cloud.compute.v1.Image"
    assert made["response"]["id"] == made["metadata"]["image_id"]


def test_image_latest(imageledger: Run, folder: str, image: str) -> None:
    assert document(imageledger("image", "latest", "web", "--folder", folder, "--json"))["id"] == image
    missing = imageledger("image", "latest", "database", "--folder", folder)
    assert (missing.code, first_line(missing)) == (1, 'error: NOT_FOUND: Image "database" not found')


def test_reads_as_of_a_moment(imageledger: Run, caller: Client, folder: str, image: str) -> None:
    before = document(imageledger("status", "--json"))
    old = document(imageledger("image", "get", image, "--json"))
    document(imageledger("image", "update", image, "--name", "web-new", "--json"))
    document(imageledger("image", "delete", image, "--json"))
    for moment in (before["head"], before["newest_event"]["at"]):
        assert document(imageledger("image", "get", image, "--as-of", moment, "--json")) == old
        listed = lines(imageledger("image", "list", "--folder", folder, "--as-of", moment, "--json"))
        assert listed == [old]
        latest = imageledger("image", "latest", "web", "--folder", folder, "--as-of", moment, "--json")
        assert document(latest) == old
    gone = imageledger("image", "get", image, "--as-of", "head")
    assert (gone.code, first_line(gone)) == (1, f'error: NOT_FOUND: Image "{image}" not found')


def test_image_list(imageledger: Run, caller: Client, folder: str) -> None:
    made = [make_image(caller, folder, name) for name in ("web-1", "web-2", "web-3")]
    listed = lines(imageledger("image", "list", "--folder", folder, "--json"))
    assert [found["id"] for found in listed] == sorted(made)
    newest = imageledger("image", "list", "--folder", folder, "--order-by", "name desc", "--limit", "2")
    assert [line.split()[1] for line in newest.out.splitlines()] == ["NAME", "web-3", "web-2"]
    one = lines(imageledger("image", "list", "--folder", folder, "--filter", 'name = "web-2"', "--json"))
    assert [found["name"] for found in one] == ["web-2"]
    none = imageledger("image", "list", "--folder", folder, "--filter", 'name = "x"')
    assert (none.code, none.out) == (0, "")


def test_image_list_follows_pages(
    imageledger: Run, caller: Client, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {make_image(caller, folder, f"web-{number}") for number in range(5)}
    monkeypatch.setattr("tools.client.PAGE_SIZE_MAX", 2)
    listed = lines(imageledger("image", "list", "--folder", folder, "--json"))
    assert len(listed) == 5
    assert {found["id"] for found in listed} == made
    assert len(imageledger("image", "list", "--folder", folder, "--limit", "3").out.splitlines()) == 4


UPDATES = [
    pytest.param(("--name", ""), {"name": None}, id="an empty name clears"),
    pytest.param(("--description", "new"), {"description": "new", "name": "web"}, id="description"),
    pytest.param(("--label", "x=y"), {"labels": {"x": "y"}}, id="labels are replaced whole"),
    pytest.param(("--clear-labels",), {"labels": None, "name": "web"}, id="no labels"),
    pytest.param(("--min-disk-size", "20MiB"), {"min_disk_size": "20971520"}, id="size"),
]


@pytest.mark.parametrize(("options", "expected"), UPDATES)
def test_image_update(
    imageledger: Run, image: str, options: tuple[str, ...], expected: dict[str, Any]
) -> None:
    updated = document(imageledger("image", "update", image, *options, "--json"))
    assert {key: updated.get(key) for key in expected} == expected


def test_reason_and_idempotency_key(imageledger: Run, image: str) -> None:
    key = str(uuid.uuid4())
    once = document(imageledger("image", "delete", image, "--idempotency-key", key, "--json"))
    again = document(imageledger("image", "delete", image, "--idempotency-key", key.upper(), "--json"))
    assert again == once
    refused = imageledger("image", "delete", image, "--reason", "я" * 257)
    assert refused.code == 1
    assert first_line(refused).startswith("error: INVALID_ARGUMENT: ")
    assert "257 characters" in first_line(refused)
    accepted = imageledger("image", "delete", image, "--reason", "я" * 256)
    assert first_line(accepted).startswith("error: NOT_FOUND: ")


def test_image_operations(imageledger: Run, image: str) -> None:
    document(imageledger("image", "update", image, "--name", "web-2", "--json"))
    listed = lines(imageledger("image", "operations", image, "--json"))
    assert [found["description"] for found in listed] == ["Update image", "Create image"]
    table = imageledger("image", "operations", image).out.splitlines()
    assert table[0].split() == ["ID", "DESCRIPTION", "CREATED_AT", "CREATED_BY", "STATE"]
    assert len(table) == 3


# download


@pytest.fixture
def content() -> bytes:
    return bytes(MIB) + os.urandom(MIB)


@pytest.fixture
def downloadable(caller: Client, folder: str, content: bytes) -> str:
    return make_image(caller, folder, "web", content=content)


PARTS: list[Any] = [
    pytest.param(lambda whole: None, False, id="none"),
    pytest.param(lambda whole: whole[:700_000], False, id="the beginning"),
    pytest.param(lambda whole: whole, False, id="all of it"),
    pytest.param(lambda whole: b"x" + whole[1:700_000], True, id="a damaged byte"),
    pytest.param(lambda whole: whole + b"x", True, id="too long"),
    pytest.param(lambda whole: b"", False, id="empty"),
]


@pytest.mark.parametrize(("part", "begins_anew"), PARTS)
def test_download_goes_on_from_a_part(
    imageledger: Run,
    downloadable: str,
    content: bytes,
    working_folder: Path,
    part: Callable[[bytes], bytes | None],
    begins_anew: bool,
) -> None:
    left = part(content)
    if left is not None:
        (working_folder / "web.raw.part").write_bytes(left)
    info = document(imageledger("image", "download", downloadable, "--to", "web.raw", "--json"))
    assert info == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "format": "raw",
        "storage_size": str(len(content)),
    }
    assert (working_folder / "web.raw").read_bytes() == content
    assert [path.name for path in working_folder.iterdir()] == ["web.raw"]


def test_download_says_that_a_part_is_of_other_bytes(
    imageledger: Run, downloadable: str, working_folder: Path
) -> None:
    (working_folder / "web.raw.part").write_bytes(b"other bytes")
    ended = imageledger("image", "download", downloadable, "--to", "web.raw")
    assert ended.code == 0
    assert ended.err == "web.raw.part does not belong to this image: it is downloaded from the start\n"
    assert ended.out.startswith("web.raw: 2.0 MiB (2097152) raw, SHA-256 ")


def test_download_keeps_the_part_when_only_the_moment_is_wrong(
    imageledger: Run, downloadable: str, content: bytes, working_folder: Path
) -> None:
    (working_folder / "web.raw.part").write_bytes(content[:1000])
    ended = imageledger("image", "download", downloadable, "--to", "web.raw", "--as-of", "999999999")
    assert ended.code == 1
    assert "error: OUT_OF_RANGE: " in ended.err
    assert (working_folder / "web.raw.part").read_bytes() == content[:1000]


def test_download_replaces_no_file_unasked(
    imageledger: Run, downloadable: str, content: bytes, working_folder: Path
) -> None:
    (working_folder / "web.raw").write_text("mine")
    refused = imageledger("image", "download", downloadable, "--to", "web.raw")
    assert (refused.code, first_line(refused)) == (1, "error: ALREADY_EXISTS: web.raw is there already")
    assert (working_folder / "web.raw").read_text() == "mine"
    assert imageledger("image", "download", downloadable, "--to", "web.raw", "--overwrite").code == 0
    assert (working_folder / "web.raw").read_bytes() == content


def test_download_of_no_image_leaves_nothing(imageledger: Run, working_folder: Path) -> None:
    ended = imageledger("image", "download", "nope", "--to", "web.raw")
    assert (ended.code, first_line(ended)) == (1, 'error: NOT_FOUND: Image "nope" not found')
    assert list(working_folder.iterdir()) == []


def test_download_to_stdout(spawn: Spawn, downloadable: str, content: bytes) -> None:
    command = spawn("image", "download", downloadable, "--to", "-")
    out, err = command.communicate()
    assert (command.returncode, err) == (0, b"")
    assert out == content


def blob(content: bytes, *, sha256: str | None = None) -> blob_service_pb2.ReadBlobResponse:
    info = blob_service_pb2.BlobInfo(
        sha256=sha256 or hashlib.sha256(content).hexdigest(), format="raw", storage_size=len(content)
    )
    return blob_service_pb2.ReadBlobResponse(info=info)


def test_download_that_breaks_is_kept_and_goes_on(imageledger: Run, working_folder: Path) -> None:
    content = os.urandom(5000)
    offsets: list[int] = []

    def read(raw: bytes, context: Any) -> Iterator[blob_service_pb2.ReadBlobResponse]:
        offset = blob_service_pb2.ReadBlobRequest.FromString(raw).offset
        offsets.append(offset)
        yield blob(content)
        if offset == 0:
            yield blob_service_pb2.ReadBlobResponse(chunk=content[:2000])
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        yield blob_service_pb2.ReadBlobResponse(chunk=content[offset:])

    with scripted(stream={f"{BLOBS}/Read": read}) as address:
        broken = imageledger("image", "download", "x", "--to", "web.raw", endpoint=address)
        assert broken.code == 1
        assert "web.raw.part keeps 2.0 KiB: the same command goes on from there" in broken.err
        assert "error: UNAVAILABLE: " in broken.err
        assert not (working_folder / "web.raw").exists()
        assert imageledger("image", "download", "x", "--to", "web.raw", endpoint=address).code == 0
    assert offsets == [0, 2000]
    assert (working_folder / "web.raw").read_bytes() == content


def test_ctrl_c_keeps_what_was_downloaded(spawn: Spawn, working_folder: Path) -> None:
    under_way, ended = threading.Event(), threading.Event()

    def read(raw: bytes, context: Any) -> Iterator[blob_service_pb2.ReadBlobResponse]:
        yield blob(bytes(MIB))
        for number in itertools.count():
            # gRPC takes some ahead, and never so many: by then the first ones are written.
            if number == 40:
                under_way.set()
                ended.wait(30)
                return
            yield blob_service_pb2.ReadBlobResponse(chunk=bytes(MIB))

    with scripted(stream={f"{BLOBS}/Read": read}) as address:
        command = spawn("image", "download", "x", "--to", "web.raw", endpoint=address)
        assert under_way.wait(30)
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=30)
        ended.set()
    kept = (working_folder / "web.raw.part").stat().st_size
    assert command.returncode == 130
    assert err.decode().strip() == (
        f"web.raw.part keeps {size_text(kept)}: the same command goes on from there"
    )
    assert not (working_folder / "web.raw").exists()


@pytest.mark.parametrize("to", ["web.raw", "-"])
def test_download_of_wrong_bytes_is_refused(spawn: Spawn, working_folder: Path, to: str) -> None:
    def read(raw: bytes, context: Any) -> Iterator[blob_service_pb2.ReadBlobResponse]:
        yield blob(b"right", sha256="0" * 64)
        yield blob_service_pb2.ReadBlobResponse(chunk=b"right")

    with scripted(stream={f"{BLOBS}/Read": read}) as address:
        command = spawn("image", "download", "x", "--to", to, endpoint=address)
        _, err = command.communicate()
    assert command.returncode == 1
    assert err.startswith(b"error: DATA_LOSS: the bytes of image x arrived damaged: SHA-256 ")
    assert list(working_folder.iterdir()) == []


# operation, and waiting


def test_operation_get_wait_and_cancel_of_a_finished_one(imageledger: Run, image: str) -> None:
    deleted = document(imageledger("image", "delete", image, "--json"))
    for command in ("get", "wait", "cancel"):
        assert document(imageledger("operation", command, deleted["id"], "--json")) == deleted
        text = imageledger("operation", command, deleted["id"])
        pairs = dict(line.split(maxsplit=1) for line in text.out.splitlines())
        assert pairs["image_id"] == image
        assert pairs["state"] == "done"


def running(operation_id: str = "op1") -> operation_pb2.Operation:
    return operation_pb2.Operation(id=operation_id, description="Create image")


def succeeded() -> operation_pb2.Operation:
    made = running()
    made.done = True
    packed = any_pb2.Any(type_url=f"{TYPES}yandex.cloud.compute.v1.Image")
    packed.value = image_pb2.Image(id="fd8x", status=image_pb2.Image.READY).SerializeToString()
    made.response.CopyFrom(packed)
    return made


def failed(code: int, message: str) -> operation_pb2.Operation:
    made = running()
    made.done = True
    made.error.code, made.error.message = code, message
    return made


def answering(*answers: operation_pb2.Operation | grpc.StatusCode) -> Callable[[bytes, Any], Any]:
    """OperationService.Get that answers these one after the other, and the last one for ever."""
    left = list(answers)

    def get(raw: bytes, context: Any) -> operation_pb2.Operation:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "not now")
            raise AssertionError("abort raises")
        context.send_initial_metadata((("x-operation-poll-interval", "1"),))
        context.set_trailing_metadata((("x-operation-progress", "10/100"),))
        return answer

    return get


def test_image_create_waits_also_through_a_restart(imageledger: Run) -> None:
    methods = {
        f"{IMAGES}/Create": lambda raw, context: running(),
        f"{OPERATIONS}/Get": answering(running(), grpc.StatusCode.UNAVAILABLE, succeeded()),
    }
    with scripted(unary=methods) as address:
        made = imageledger(
            "image", "create", "--folder", "f", "--uri", "https://x/y", "--json", endpoint=address
        )
    assert document(made)["id"] == "fd8x"
    assert made.err == ""


def test_image_create_that_fails_while_it_is_waited_for(imageledger: Run) -> None:
    methods = {
        f"{IMAGES}/Create": lambda raw, context: running(),
        f"{OPERATIONS}/Get": answering(failed(9, "an ISO\nis no disk")),
    }
    with scripted(unary=methods) as address:
        ended = imageledger("image", "create", "--folder", "f", "--uri", "https://x/y", endpoint=address)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "error: FAILED_PRECONDITION: an ISO\\nis no disk\noperation: op1\n"


OUTCOMES = [
    pytest.param((succeeded(),), 0, "", id="succeeded"),
    pytest.param((running(), failed(1, "cancelled")), 1, "error: CANCELLED: cancelled\n", id="cancelled"),
    pytest.param((failed(9, "no"),), 1, "error: FAILED_PRECONDITION: no\n", id="failed"),
]


@pytest.mark.parametrize(("answers", "code", "error"), OUTCOMES)
def test_operation_wait_tells_how_it_ended(
    imageledger: Run, answers: tuple[operation_pb2.Operation, ...], code: int, error: str
) -> None:
    with scripted(unary={f"{OPERATIONS}/Get": answering(*answers)}) as address:
        ended = imageledger("operation", "wait", "op1", "--json", endpoint=address)
    assert ended.code == code
    assert ended.err.startswith(error)
    assert json.loads(ended.out)["done"] is True


@pytest.mark.parametrize("timeout", ["0", "0.1"])
def test_operation_wait_gives_up(imageledger: Run, timeout: str) -> None:
    with scripted(unary={f"{OPERATIONS}/Get": answering(running())}) as address:
        ended = imageledger("operation", "wait", "op1", "--timeout", timeout, endpoint=address)
    assert (ended.code, ended.out) == (1, "")
    note, error = ended.err.splitlines()
    assert note.startswith("operation op1 goes on: `imageledger operation wait op1` waits for it")
    assert error == "error: DEADLINE_EXCEEDED: operation op1 is not done within --timeout"


def test_ctrl_c_while_waiting_says_that_the_operation_goes_on(spawn: Spawn) -> None:
    polled = threading.Event()

    def get(raw: bytes, context: Any) -> operation_pb2.Operation:
        polled.set()
        return running()

    methods = {f"{IMAGES}/Create": lambda raw, context: running(), f"{OPERATIONS}/Get": get}
    with scripted(unary=methods) as address:
        command = spawn("image", "create", "--folder", "f", "--uri", "https://x/y", endpoint=address)
        assert polled.wait(30)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)
    assert (command.returncode, out) == (130, b"")
    assert err.decode().startswith("operation op1 goes on: `imageledger operation wait op1`")
    assert b"Traceback" not in err


def test_ctrl_c_ends_an_upload(spawn: Spawn, folder: str) -> None:
    command = spawn("source", "add", "-", "--kind", "disk", "--folder", folder, stdin=subprocess.PIPE)
    # More than all buffers on the way hold: once it is written, the upload is under way.
    command.stdin.write(bytes(8 * MIB))
    command.stdin.flush()
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=30) == 130
    assert b"Traceback" not in command.stderr.read()


# what is the same everywhere

WRONG_USAGE = [
    ("image",),
    ("image", "nope"),
    ("image", "get"),
    ("image", "get", "x", "--as-of", "yesterday"),
    ("image", "get", "x", "--as-of", "2026-11-23T10:00:00"),
    ("image", "get", "x", "--as-of", "-1"),
    ("image", "get", "x", "--endpoint", "nowhere"),
    ("image", "get", "x", "--token", ""),
    ("image", "get", "x", "--token", "ключ"),
    ("image", "get", "x", "--ca-cert", "nope.pem"),
    ("image", "get", "x", "--reason", "reads have none"),
    ("image", "latest", "web"),
    ("image", "list"),
    ("image", "list", "--folder", "f", "--limit", "0"),
    ("image", "create", "--disk-id", "x"),
    ("image", "create", "--folder", "f"),
    ("image", "create", "--folder", "f", "--disk-id", "x", "--image-id", "y"),
    ("image", "create", "--folder", "f", "--disk-id", "x", "--label", "env"),
    ("image", "create", "--folder", "f", "--disk-id", "x", "--label", "=prod"),
    ("image", "create", "--folder", "f", "--disk-id", "x", "--label", "a=1", "--label", "a=2"),
    ("image", "create", "--folder", "f", "--disk-id", "x", "--min-disk-size", "big"),
    ("image", "create", "--folder", "f", "--disk-id", "x", "--min-disk-size", "-1"),
    ("image", "create", "--folder", "f", "--disk-id", "x", "--min-disk-size", "9999999T"),
    ("image", "create", "--folder", "f", "--disk-id", "x", "--os", "beos"),
    ("image", "update", "x"),
    ("image", "update", "x", "--label", "a=1", "--clear-labels"),
    ("image", "delete", "x", "--idempotency-key", "17"),
    ("image", "download", "x"),
    ("image", "download", "x", "--to", "."),
    ("image", "download", "x", "--to", "-", "--json"),
    ("operation", "wait", "x", "--timeout", "-1"),
    ("source", "add", "nope.raw", "--kind", "disk", "--folder", "f"),
    ("source", "add", "-", "--kind", "tape", "--folder", "f"),
    ("source", "add", "-", "--folder", "f"),
    ("source", "remove"),
    ("status", "--data", "nope"),
    ("status", "--data", ".", "--endpoint", "127.0.0.1:1"),
]


@pytest.mark.parametrize("arguments", WRONG_USAGE, ids=" ".join)
def test_wrong_usage(imageledger: Run, working_folder: Path, arguments: tuple[str, ...]) -> None:
    ended = imageledger(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: ")
    assert "Traceback" not in ended.err


REFUSED = [
    (("image", "get", "nope"), "NOT_FOUND", 'Image "nope" not found'),
    (("image", "get", ""), "INVALID_ARGUMENT", "Request validation error: ImageId: is required"),
    (("image", "delete", "nope"), "NOT_FOUND", 'Image "nope" not found'),
    (("image", "update", "nope", "--name", "a"), "NOT_FOUND", 'Image "nope" not found'),
    (("image", "operations", "nope"), "NOT_FOUND", 'Image "nope" not found'),
    (("image", "list", "--folder", "f", "--filter", "bad"), "INVALID_ARGUMENT", "Request validation"),
    (("image", "list", "--folder", "f", "--as-of", "999999999"), "OUT_OF_RANGE", "Position 999999999"),
    (("image", "create", "--folder", "f", "--disk-id", "nope"), "FAILED_PRECONDITION", 'Disk "nope"'),
    (("image", "create", "--folder", "f", "--uri", "http://127.0.0.1:1/"), "FAILED_PRECONDITION", ""),
    (("operation", "get", "nope"), "NOT_FOUND", 'Operation "nope" not found'),
    (("operation", "wait", "nope"), "NOT_FOUND", 'Operation "nope" not found'),
    (("operation", "cancel", "nope"), "NOT_FOUND", 'Operation "nope" not found'),
    (("source", "remove", "nope"), "NOT_FOUND", ""),
]


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED)
def test_refusals(imageledger: Run, arguments: tuple[str, ...], code: str, message: str) -> None:
    ended = imageledger(*arguments, "--json")
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith(f"error: {code}: {message}")
    assert ended.err.splitlines()[-1].startswith("request id: ")


def test_a_refusal_lists_every_broken_rule(imageledger: Run) -> None:
    ended = imageledger("image", "create", "--folder", "", "--name", "Web", "--disk-id", "x")
    assert ended.code == 1
    first, *rules, request_id = ended.err.splitlines()
    assert first.startswith("error: INVALID_ARGUMENT: Request validation error: FolderId: ")
    assert rules == ["  folder_id: is required", "  name: invalid resource name"]
    assert request_id.startswith("request id: ")


def test_a_revoked_or_wrong_token_is_told_with_the_option(imageledger: Run) -> None:
    def get(raw: bytes, context: Any) -> image_pb2.Image:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "The token is invalid")
        raise AssertionError("abort raises")

    with scripted(unary={f"{IMAGES}/Get": get}) as address:
        ended = imageledger("image", "get", "x", "--token", "s3cret", endpoint=address)
    assert ended.code == 1
    assert first_line(ended) == "error: UNAUTHENTICATED: The token is invalid"
    assert "--token" in ended.err
    assert "s3cret" not in ended.err


def test_no_server(imageledger: Run) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        ended = imageledger("image", "get", "x", endpoint=address)
    assert (ended.code, ended.out) == (1, "")
    first, *remedy = ended.err.splitlines()
    assert first.startswith(f"error: UNAVAILABLE: cannot reach {address}: Failed to connect")
    assert "--endpoint" in remedy[0]
    assert "--ca-cert" in remedy[1]


def test_another_server(imageledger: Run) -> None:
    with scripted() as address:
        ended = imageledger("status", endpoint=address)
    assert ended.code == 1
    assert first_line(ended).startswith("error: UNIMPLEMENTED: ")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "cert.pem", append=True)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    options = ("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))
    with serving(folder / "data", *options) as served:
        yield served


def test_tls(imageledger: Run, spawn: Spawn, tls: Server) -> None:
    folder = tls.data.parent
    good = imageledger("status", "--ca-cert", str(folder / "ca.pem"), endpoint=tls.address)
    assert (good.code, good.err) == (0, "")
    by_variable = imageledger("status", endpoint=tls.address, IMAGELEDGER_CA_CERT=str(folder / "ca.pem"))
    assert by_variable.code == 0
    plain = imageledger("status", endpoint=tls.address)
    assert plain.code == 1
    assert "--ca-cert" in plain.err
    no_certificate = imageledger("status", "--ca-cert", str(folder / "key.pem"), endpoint=tls.address)
    assert (no_certificate.code, first_line(no_certificate)) == (
        1,
        f"error: INVALID_ARGUMENT: {folder / 'key.pem'} holds no certificate",
    )
    # What gRPC itself writes to stderr shows only in a process of its own.
    foreign = spawn("status", "--ca-cert", str(folder / "other.pem"), endpoint=tls.address)
    _, err = foreign.communicate()
    assert foreign.returncode == 1
    assert err.startswith(b"error: UNAVAILABLE: cannot reach ")
    assert b"CERTIFICATE_VERIFY_FAILED" in err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_quietly(
    spawn: Spawn, image: str, folder: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)
    command = spawn("image", "list", "--folder", folder, "--json", stdout=writing)
    os.close(writing)
    _, err = command.communicate()
    assert (command.returncode, err) == (0, b"")


def test_a_full_disk_under_stdout_is_told_once(spawn: Spawn) -> None:
    with Path("/dev/full").open("wb") as full:
        command = spawn("status", stdout=full)
        _, err = command.communicate()
    assert (command.returncode, err) == (1, b"error: UNAVAILABLE: No space left on device\n")


def test_text_that_is_no_utf8(spawn: Spawn, image: str) -> None:
    for arguments in (("image", "get", b"\xff"), ("image", "delete", image, "--reason", b"\xff")):
        command = spawn(*arguments)
        _, err = command.communicate()
        assert (command.returncode, err) == (1, b"error: INVALID_ARGUMENT: not UTF-8 text: '\\udcff'\n")


def test_a_locale_without_the_characters(
    spawn: Spawn, image: str, imageledger: Run, monkeypatch: Any
) -> None:
    document(imageledger("image", "update", image, "--description", "Привет", "--json"))
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    out, err = spawn("image", "get", image, "--json").communicate()
    assert json.loads(out)["description"] == "Привет"
    out, err = spawn("image", "get", image).communicate()
    assert (b"\\u041f\\u0440" in out, err) == (True, b"")


def client_commands() -> Iterator[tuple[str, click.Command]]:
    for name in ("status", "image", "operation", "source"):
        command = cli.commands[name]
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", found) for inner, found in command.commands.items())
        else:
            yield name, command


@pytest.mark.parametrize(("name", "command"), [pytest.param(*row, id=row[0]) for row in client_commands()])
def test_help_teaches_and_every_option_has_its_variable(
    imageledger: Run, name: str, command: click.Command
) -> None:
    ended = imageledger(*name.split(), "--help")
    assert ended.code == 0
    assert f"imageledger {name}" in ended.out.partition("Example")[2]
    options = {found.opts[0]: found for found in command.params if isinstance(found, click.Option)}
    assert {"--endpoint", "--token", "--ca-cert", "--json"} <= set(options)
    for spelled, found in options.items():
        assert found.envvar == "IMAGELEDGER_" + spelled[2:].replace("-", "_").upper()
        assert found.help


def test_options_from_variables(imageledger: Run, image: str, folder: str) -> None:
    listed = imageledger("image", "list", IMAGELEDGER_FOLDER=folder, IMAGELEDGER_JSON="1")
    assert [found["id"] for found in lines(listed)] == [image]
    updated = imageledger(
        *("image", "update", image, "--json"), IMAGELEDGER_LABEL="a=1 b=2", IMAGELEDGER_REASON="из среды"
    )
    assert document(updated)["labels"] == {"a": "1", "b": "2"}
    bad = imageledger("image", "list", IMAGELEDGER_FOLDER=folder, IMAGELEDGER_AS_OF="never")
    assert bad.code == 2


# what is printed


SIZES = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (MIB - 1, "1.0 MiB"), (1536 * MIB, "1.5 GiB")]


@pytest.mark.parametrize(("size", "text"), [*SIZES, (5 << 50, "5120.0 TiB")])
def test_size_text(size: int, text: str) -> None:
    assert size_text(size) == text


def test_shown_leaves_a_terminal_alone() -> None:
    assert shown("a\nb\x1b[1mя\u202e") == "a\\nb\\x1b[1mя\\u202e"


class Terminal:
    def __init__(self) -> None:
        self.written = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("total", "expected"), [(100, "[######"), (0, "25 B  ")])
def test_progress_is_drawn_on_a_terminal_and_wiped(
    monkeypatch: pytest.MonkeyPatch, total: int, expected: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("uploading", total_bytes=total) as progress:
        progress.show(25)
    assert expected in terminal.written
    assert terminal.written.endswith("\r\x1b[K")
