"""Images from URIs: what a caller sees while the bytes come, when they have come, and when they do not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from eventstore.event import Event
from eventstore.reader import LogReader
from server.gen.google.rpc import error_details_pb2
from server.gen.imageledger.v1 import status_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2, operation_service_pb2
from tests.conformance.api import MIB, Api, Code, as_of, code_of, key, refused
from tests.conformance.sites import Held, Site, ended, until
from tests.harness import IMAGES, OPERATIONS, STATUS, Server, image_of, serving
from tests.unit.server.disk_images import tiny_qcow2, tiny_raw
from tests.unit.server.misbehaving import Answer, cut, head, redirect, rest, sending, silent, whole

DISK = 10 * MIB
READY, CREATING = image_pb2.Image.READY, image_pb2.Image.CREATING
SECRET = "X-Amz-Signature=5ecre7"


class Place(NamedTuple):
    """A server, what it may import from, and where its files are."""

    server: Server
    site: Site
    files: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("imports")
    files = root / "images"
    files.mkdir()
    with Site() as site:
        allowed = ("--allow-source", site.prefix, "--allow-source", files.as_uri() + "/")
        with serving(root / "data", *allowed, "--max-image-size", "4M", "--blob-grace", "1s") as server:
            yield Place(server, site, files)


@pytest.fixture
def api(place: Place) -> Iterator[Api]:
    """Calls to the server; what a test has left held is let go, and has ended when the next one begins."""
    with Api(place.server.address) as client:
        yield client
        place.site.let_go()
        until(lambda: not under_way(client))


@pytest.fixture
def site(place: Place) -> Site:
    return place.site


def path(name: str = "disk") -> str:
    """A path that no other test uses."""
    return f"/images/{uuid.uuid4().hex}/{name}"


def disk(salt: str = "") -> bytes:
    """A qcow2 that is unlike any other, of 10 MiB virtual and 8 KiB or more stored bytes."""
    return tiny_qcow2(DISK, salt=(salt or uuid.uuid4().hex).encode())


def raw(size_bytes: int = 256 * 1024) -> bytes:
    return tiny_raw(size_bytes, salt=uuid.uuid4().bytes)


def image_id_of(operation: operation_pb2.Operation) -> str:
    metadata = image_service_pb2.CreateImageMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata.image_id


def under_way(api: Api) -> list[status_service_pb2.Status.Import]:
    answer = api.call(STATUS, "Get", status_service_pb2.GetStatusRequest(), status_service_pb2.Status)
    return list(answer.imports)


def polled(api: Api, operation_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Initial and trailing metadata of OperationService.Get."""
    request = operation_service_pb2.GetOperationRequest(operation_id=operation_id)
    _, call = api.full_call(OPERATIONS, "Get", request, operation_pb2.Operation)
    return dict(call.initial_metadata()), dict(call.trailing_metadata())


def events_of(place: Place, operation_id: str) -> list[Event]:
    with LogReader.open(place.server.data / "log.db") as log:
        return log.events_of_operation(operation_id)


# From the first call to the image.


def test_a_creation_is_seen_from_its_beginning_to_its_end(place: Place, api: Api, folder: str) -> None:
    body = disk()
    uri, held = place.site.hold(path(), body, sent_bytes=4096)
    operation = api.create(folder, uri=uri, name="web", product_ids=["p2", "p1"], labels={"a": "b"})

    assert not operation.done
    assert operation.WhichOneof("result") is None
    assert operation.description == "Create image"
    image_id = image_id_of(operation)
    held.come.wait()
    begun = api.get(image_id)
    assert (begun.status, begun.name, begun.size, begun.storage_size) == (CREATING, "web", 0, 0)
    assert list(api.list(folder).images) == [begun]
    assert api.list(folder, filter='status = "CREATING"').images
    until(lambda: polled(api, operation.id)[1]["x-operation-progress"] == f"4096/{len(body)}")
    initial, _ = polled(api, operation.id)
    assert int(initial["x-operation-poll-interval"]) >= 1
    assert api.operation(operation.id) == operation

    held.go.set()
    done = ended(api, operation.id)
    initial, trailing = polled(api, operation.id)
    assert "x-operation-poll-interval" not in initial
    assert "x-operation-progress" not in trailing
    image = image_of(done)
    assert image == api.get(image_id) == api.list(folder).images[0]
    assert (image.status, image.size, image.storage_size) == (READY, DISK, len(body))
    assert image.min_disk_size == 12 * MIB
    assert image.os.type == image_pb2.Os.LINUX
    assert image.hardware_generation.legacy_features.pci_topology == 1
    assert list(image.product_ids) == ["p2", "p1"]
    assert not image.pooled
    assert (image.created_at, image.labels) == (begun.created_at, {"a": "b"})
    assert done.modified_at.ToNanoseconds() > operation.modified_at.ToNanoseconds()
    assert api.read(image_id)[1] == body


def test_a_file_of_this_machine(place: Place, api: Api, folder: str) -> None:
    (place.files / "a disk").write_bytes(body := raw())
    done = ended(api, api.create(folder, uri=place.files.as_uri() + "/a%20disk").id)
    image = image_of(done)
    assert (image.size, image.storage_size, image.min_disk_size) == (len(body), len(body), 4 * MIB)
    assert api.read(image.id)[1] == body


def test_a_connection_that_breaks_is_gone_on_with(site: Site, api: Api, folder: str) -> None:
    body, where = raw(), path()
    etag = {"ETag": '"one"'}
    answers: list[Answer] = [cut(body, 100_000, etag), rest(body, etag)]
    uri = site.put(where, lambda request, connection: answers.pop(0)(request, connection))
    image = image_of(ended(api, api.create(folder, uri=uri).id))
    assert api.read(image.id)[1] == body
    assert [request.headers.get("range") for request in site.requests_of(where)] == [None, "bytes=100000-"]


@pytest.mark.parametrize("asked", [12 * MIB + 1, 12 * MIB - 512, DISK])
def test_a_given_disk_size_is_kept_as_it_is(site: Site, api: Api, folder: str, asked: int) -> None:
    operation = api.create(folder, uri=site.put(path(), disk()), min_disk_size=asked)
    assert image_of(ended(api, operation.id)).min_disk_size == asked


def test_a_disk_size_below_the_virtual_one_fails_the_operation(site: Site, api: Api, folder: str) -> None:
    operation = api.create(folder, uri=site.put(path(), disk()), min_disk_size=DISK - 1, name="web")
    done = ended(api, operation.id)
    assert done.error.message == f"Minimal disk size should be greater or equal than {DISK}"
    assert done.error.code == Code.INVALID_ARGUMENT.value[0]
    assert not api.names(folder)


def test_what_is_given_is_not_replaced_by_defaults(site: Site, api: Api, folder: str) -> None:
    given = image_pb2.Os(type="WINDOWS", nvidia={"driver": "d"})
    hardware: Any = {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V2"}}
    operation = api.create(
        folder, uri=site.put(path(), disk()), os=given, hardware_generation=hardware, pooled=True
    )
    image = image_of(ended(api, operation.id))
    assert (image.os, image.pooled) == (given, True)
    assert image.hardware_generation.legacy_features.pci_topology == 2


# While it is being created.


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda api, image_id, folder: api.update(image_id, ["name"], name="x"), id="update"),
        pytest.param(lambda api, image_id, folder: api.delete(image_id), id="delete"),
        pytest.param(lambda api, image_id, folder: api.create(folder, image_id=image_id), id="source"),
        pytest.param(lambda api, image_id, folder: api.read(image_id), id="read"),
    ],
)
def test_an_image_being_created_is_not_used(site: Site, api: Api, folder: str, use: Any) -> None:
    uri, _ = site.hold(path(), disk())
    operation = api.create(folder, uri=uri)
    told = refused(lambda: use(api, image_id_of(operation), folder))
    assert told.code is Code.FAILED_PRECONDITION
    assert f'"{operation.id}"' in told.message


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_a_name_is_taken_meanwhile_and_free_after_a_bad_end(
    site: Site, api: Api, folder: str, end: str
) -> None:
    uri, held = site.hold(path(), disk() if end == "cancel" else bytes(700))
    operation = api.create(folder, uri=uri, name="web")
    assert code_of(lambda: api.create(folder, uri=uri, name="web")) is Code.ALREADY_EXISTS
    if end == "cancel":
        api.cancel(operation.id)
    else:
        held.go.set()
        assert ended(api, operation.id).HasField("error")
    again = api.create(folder, uri=site.put(path(), disk()), name="web")
    assert image_of(ended(api, again.id)).name == "web"


def test_latest_of_a_family_is_the_one_that_began_last_not_the_one_that_ended_last(
    site: Site, api: Api, folder: str
) -> None:
    ready = image_of(ended(api, api.create(folder, uri=site.put(path(), disk())).id))
    uri, held = site.hold(path(), disk())
    first = api.create(folder, uri=uri, family="web")
    assert code_of(lambda: api.latest(folder, "web")) is Code.NOT_FOUND
    second = api.image(folder, image_id=ready.id, family="web")
    assert api.latest(folder, "web").id == second.id
    held.go.set()
    assert image_of(ended(api, first.id)).status == READY
    assert api.latest(folder, "web").id == second.id
    api.delete(second.id)
    assert api.latest(folder, "web").id == image_id_of(first)


def test_the_same_key_answers_the_running_operation_and_fetches_once(
    site: Site, api: Api, folder: str
) -> None:
    where = path()
    uri, held = site.hold(where, disk(), sent_bytes=10)
    again = key(str(uuid.uuid4()))
    first = api.create(folder, again, uri=uri)
    held.come.wait()
    assert api.create(folder, again, uri=uri) == first
    held.go.set()
    done = ended(api, first.id)
    assert api.create(folder, again, uri=uri) == done
    assert len(site.requests_of(where)) == 1


def test_a_caller_who_hangs_up_leaves_nothing_hanging(site: Site, api: Api, folder: str) -> None:
    """Whenever that is: before the command is written, between that and its import, or after it."""
    uri = site.put(path(), disk())
    request = image_service_pb2.CreateImageRequest(folder_id=folder, uri=uri)
    create = api.channel.unary_unary(
        f"/{IMAGES}/Create",
        image_service_pb2.CreateImageRequest.SerializeToString,
        operation_pb2.Operation.FromString,
    )
    for tenths_of_ms in range(60):
        call = create.future(request, metadata=api.metadata())
        # Not a wait for something: the moment is what this test is about.
        time.sleep(tenths_of_ms / 10_000)
        call.cancel()
    images = until(lambda: api.list(folder, page_size=1000).images)
    assert images
    until(lambda: all(image.status == READY for image in api.list(folder, page_size=1000).images))


# Failure.


@pytest.mark.parametrize(
    ("answer", "cause", "remedy"),
    [
        pytest.param(whole(b"", status=404), "answered 404", "check the address", id="not-found"),
        pytest.param(whole(b"", status=403), "answered 403", "presigned URL", id="denied"),
        pytest.param(whole(b"<html>" + bytes(506)), "HTML", "", id="a-web-page"),
        pytest.param(whole(bytes(700)), "700", "512", id="not-in-sectors"),
        pytest.param(whole(b""), "an empty file", "at least 512 bytes", id="empty"),
        pytest.param(whole(disk()[:600]), "truncated", "", id="truncated"),
        pytest.param(whole(bytes(5 * MIB)), "more than 4194304 bytes", "--max-image-size", id="too-long"),
        pytest.param(
            sending(head(200), bytes(5 * MIB)), "more than 4194304 bytes", "--max-image-size", id="endless"
        ),
        pytest.param(sending(b"SSH-2.0\r\n"), "no valid HTTP", "check the address", id="no-http"),
    ],
)
def test_a_failure_is_told_and_the_image_is_gone(
    place: Place, api: Api, folder: str, answer: Answer, cause: str, remedy: str
) -> None:
    uri = place.site.put(path(), answer)
    operation, call = api.created(
        folder, [("x-client-request-id", "first-request")], uri=uri, name="web", family="web"
    )
    image_id = image_id_of(operation)
    began_at = int(dict(call.trailing_metadata())["x-log-position"])
    done = ended(api, operation.id)

    assert done.error.code == Code.FAILED_PRECONDITION.value[0]
    assert cause in done.error.message
    assert remedy in done.error.message
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert done.error.details[0].Unpack(info)
    assert done.error.details[1].Unpack(request)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "IMPORT_FAILED",
        "imageledger",
        {"image_id": image_id},
    )
    assert request.request_id == "first-request"
    assert code_of(lambda: api.get(image_id)) is Code.NOT_FOUND
    assert code_of(lambda: api.latest(folder, "web")) is Code.NOT_FOUND
    assert not api.names(folder)
    assert list(api.operations(image_id).operations) == [done]
    assert api.get(image_id, as_of(began_at)).status == CREATING
    assert api.names(folder, as_of(began_at)) == ["web"]
    assert code_of(lambda: api.get(image_id, as_of(began_at + 1))) is Code.NOT_FOUND


def test_the_server_ends_an_operation_in_the_name_of_the_first_caller(
    place: Place, api: Api, folder: str
) -> None:
    ids = [("x-client-request-id", "first-request"), ("x-change-reason", "because")]
    for answer, ending in ((disk(), "ImageCreated"), (b"", "ImageCreationFailed")):
        operation = api.create(folder, ids, uri=place.site.put(path(), answer))
        ended(api, operation.id)
        began, end = events_of(place, operation.id)
        assert (began.type, end.type) == ("ImageCreationStarted", ending)
        assert (began.auth, end.auth) == ("dev", "system")
        assert (
            (began.actor, began.request_id)
            == (end.actor, end.request_id)
            == (operation.created_by, ids[0][1])
        )
        assert (began.method, end.method) == (f"{IMAGES}/Create", None)
        assert (began.reason, end.reason) == ("because", None)


# Cancel.


def test_a_cancelled_import_stops_and_is_gone(place: Place, api: Api, folder: str) -> None:
    uri, held = place.site.hold(path(), raw(), sent_bytes=100_000)
    operation = api.create(folder, uri=uri, name="web")
    held.come.wait()
    with Api(place.server.address, token="somebody-else") as other:
        cancelled = other.cancel(
            operation.id, [("x-client-request-id", "cancel-request"), ("x-change-reason", "wrong file")]
        )
    assert cancelled.done
    assert cancelled.error.code == Code.CANCELLED.value[0]
    assert cancelled == api.operation(operation.id) == api.cancel(operation.id)
    assert held.gone.wait(3)
    assert code_of(lambda: api.get(image_id_of(operation))) is Code.NOT_FOUND
    assert not api.names(folder)
    until(lambda: not list((place.server.data / "blobs" / "incoming").iterdir()))
    began, end = events_of(place, operation.id)
    assert end.type == "ImageCreationCancelled"
    assert end.actor not in ("", began.actor)
    assert (end.auth, end.request_id, end.reason) == ("dev", "cancel-request", "wrong file")


def test_a_queued_import_is_cancelled_before_it_begins(site: Site, api: Api, folder: str) -> None:
    uri, held = site.hold(path(), disk())
    running = api.create(folder, uri=uri)
    where = path()
    queued = api.create(folder, uri=site.put(where, disk()))
    held.come.wait()
    assert api.cancel(queued.id).error.code == Code.CANCELLED.value[0]
    assert [entry.operation_id for entry in under_way(api)] == [running.id]
    held.go.set()
    assert image_of(ended(api, running.id)).status == READY
    # The next one of the folder would come after it.
    assert image_of(ended(api, api.create(folder, uri=site.put(path(), disk())).id)).status == READY
    assert not site.requests_of(where)


def test_a_source_that_is_silent_holds_up_no_cancellation(site: Site, api: Api, folder: str) -> None:
    operation = api.create(folder, uri=site.put(path(), silent()))
    until(lambda: under_way(api)[0].running)
    api.cancel(operation.id)
    until(lambda: not under_way(api), seconds=3)


def test_cancel_races_with_the_end(place: Place, api: Api, folder: str) -> None:
    """Whoever comes first: there is one end, and the image is there unless it was the cancellation."""
    ends, wait_s = set(), 0.0
    for _ in range(40):
        uri, held = place.site.hold(path(), disk(), sent_bytes=1)
        operation = api.create(folder, uri=uri)
        held.come.wait()
        held.go.set()
        # Not a wait for something: it comes closer and closer to the moment at which both end it.
        time.sleep(wait_s)
        told = api.cancel(operation.id)
        assert told.done
        _, end = events_of(place, operation.id)
        ends.add(end.type)
        assert told == api.operation(operation.id)
        there = [image.id for image in api.list(folder).images].count(image_id_of(operation))
        assert there == (end.type == "ImageCreated") == told.HasField("response")
        wait_s = wait_s * 0.8 if there else wait_s + 0.003
    assert ends == {"ImageCreated", "ImageCreationCancelled"}
    until(lambda: stored(place) == referenced(place))


def stored(place: Place) -> set[str]:
    """The digests in the store."""
    found = (place.server.data / "blobs").glob("??/??/*")
    return {entry.name for entry in found}


def referenced(place: Place) -> set[str]:
    """The digests of images that are there, by the log alone."""
    blobs: dict[str, str] = {}
    with LogReader.open(place.server.data / "log.db") as log:
        for event in log.events():
            if event.type == "ImageCreated":
                blobs[str(event.resource_id)] = event.data["blob"]["sha256"]  # type: ignore[call-overload,index]
            elif event.type == "ImageDeleted":
                del blobs[str(event.resource_id)]
    return set(blobs.values())


# At once and in turn.


def test_four_at_once_one_a_folder_and_the_others_in_their_order(place: Place, api: Api) -> None:
    folders = [f"folder-{uuid.uuid4().hex}" for _ in range(6)]
    asked = [folders[0], folders[0], *folders[1:]]
    held: list[Held] = []
    operations = []
    for folder_id in asked:
        uri, one = place.site.hold(path(), raw(), sent_bytes=1024)
        held.append(one)
        operations.append(api.create(folder_id, uri=uri))
    # The second one waits for its folder, the last two for a place.
    for number in (0, 2, 3, 4):
        assert held[number].come.wait(10)
    until(lambda: sum(entry.bytes for entry in under_way(api)) == 4 * 1024)
    entries = under_way(api)
    assert [entry.operation_id for entry in entries] == [operation.id for operation in operations]
    assert [entry.running for entry in entries] == [True, False, True, True, True, False, False]
    assert [polled(api, operation.id)[1]["x-operation-progress"] for operation in operations[:3]] == [
        f"1024/{256 * 1024}",
        "0/?",
        f"1024/{256 * 1024}",
    ]
    assert "x-operation-poll-interval" in polled(api, operations[1].id)[0]
    check_status(place, operations)

    held[2].go.set()
    assert held[5].come.wait(10)
    assert not held[1].come.is_set()
    assert not held[6].come.is_set()
    held[0].go.set()
    # Its folder is free now, and it waits for longer than the last one.
    assert held[1].come.wait(10)
    assert not held[6].come.is_set()
    held[1].go.set()
    assert held[6].come.wait(10)
    place.site.let_go()
    assert all(image_of(ended(api, operation.id)).status == READY for operation in operations)


def check_status(place: Place, operations: list[operation_pb2.Operation]) -> None:
    command = [sys.executable, "-m", "tools.cli", "status", "--endpoint", place.server.address]
    told = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True).stdout)
    assert [entry["operation_id"] for entry in told["imports"]] == [one.id for one in operations]
    assert [entry["running"] for entry in told["imports"]].count(True) == 4
    assert [entry["bytes"] for entry in told["imports"]][:2] == ["1024", "0"]
    assert told["imports"][0]["total_bytes"] == str(256 * 1024)
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "7 under way" in text
    assert text.count("queued") == 3
    assert all(one.id in text for one in operations)


# Secrets.


def test_a_query_is_seen_by_the_source_and_by_nobody_else(place: Place, api: Api, folder: str) -> None:
    site, query = place.site, f"?{SECRET}&X-Amz-Expires=600"
    body, etag = raw(), {"ETag": '"one"'}
    broken: list[Answer] = [cut(body, 1000, etag), rest(body, etag)]
    where = [path() for _ in range(6)]
    uris = [
        site.put(where[0], body),
        site.put(where[1], lambda request, connection: broken.pop(0)(request, connection)),
        site.put(where[2], whole(b"", status=403)),
        site.put(where[3], redirect(site.uri("/elsewhere") + query)),
        site.put(where[4], redirect(site.uri("/images/%2e%2e/") + query)),
        site.put(where[5], b"no image"),
    ]
    told = []
    for uri in uris:
        told.append(api.create(folder, uri=uri + query))
        told.append(ended(api, told[-1].id))
    held_uri, held = site.hold(path(), raw(), sent_bytes=1024)
    told.append(api.create(folder, uri=held_uri + query))
    held.come.wait()
    [entry] = under_way(api)
    assert entry.uri == held_uri
    check_nothing_of_it(place, str(entry))
    told.append(api.cancel(told[-1].id))
    for uri in (f"http://127.0.0.1:1/images/x{query}", f"{uris[0]}{query} x", f"http://u:{SECRET}@h/{query}"):
        check_nothing_of_it(place, repr(refused(lambda uri=uri: api.create(folder, uri=uri))))  # type: ignore[misc]

    assert site.requests_of(where[0])[0].target == where[0] + query
    assert all(SECRET in request.target for request in site.requests_of(where[1]))
    assert [operation.HasField("error") for operation in told[1::2]] == [
        False,
        False,
        True,
        True,
        True,
        True,
        True,
    ]
    for operation in told:
        check_nothing_of_it(place, str(operation))
        assert events_of(place, operation.id)[0].data["uri_had_query"] is True
    started = events_of(place, told[0].id)[0]
    assert started.data["source"] == {"uri": uris[0]}
    for file in place.server.data.parent.rglob("*"):
        if file.is_file() and "images" not in file.parts:
            assert SECRET.encode() not in file.read_bytes(), file
    check_nothing_of_it(place, place.server.stderr())


def check_nothing_of_it(place: Place, text: str) -> None:
    assert SECRET not in text
    assert "5ecre7" not in text
    assert "X-Amz" not in text


def test_no_query_is_no_secret(place: Place, api: Api, folder: str) -> None:
    operation = api.create(folder, uri=place.site.put(path(), disk()))
    ended(api, operation.id)
    assert "uri_had_query" not in events_of(place, operation.id)[0].data


def test_a_repeat_with_another_query_is_a_repeat(site: Site, api: Api, folder: str) -> None:
    """A presigned URL is made anew for each try."""
    uri, again = site.put(path(), disk()), key(str(uuid.uuid4()))
    first = api.create(folder, again, uri=f"{uri}?a=1")
    assert api.create(folder, again, uri=f"{uri}?a=2").id == first.id
    assert code_of(lambda: api.create(folder, again, uri=f"{uri}x?a=1")) is Code.INVALID_ARGUMENT


def test_the_uri_is_kept_as_it_was_understood(place: Place, api: Api, folder: str) -> None:
    site = place.site
    where = path("a disk~")
    site.put(where.replace(" ", "%20"), disk())
    asked = f"HTTP://127.0.0.1:{site.port}{where.replace(' ', '%20').replace('~', '%7e')}"
    operation = api.create(folder, uri=asked)
    assert image_of(ended(api, operation.id)).status == READY
    stored_uri = events_of(place, operation.id)[0].data["source"]["uri"]  # type: ignore[call-overload,index]
    assert stored_uri == f"http://127.0.0.1:{site.port}{where.replace(' ', '%20')}"


@pytest.mark.usefixtures("server_is_quiet")
def test_an_empty_uri_is_no_source(api: Api, folder: str) -> None:
    told = refused(lambda: api.create(folder, uri=""))
    assert told.code is Code.INVALID_ARGUMENT
    assert not api.names(folder)


@pytest.fixture
def server_is_quiet(place: Place) -> Iterator[None]:
    yield
    assert " ERROR " not in place.server.stderr()
    assert "Traceback" not in place.server.stderr()


def test_nothing_was_logged_as_an_error(server_is_quiet: None, api: Api) -> None:
    """Last in this file, so that it speaks of all that came before."""
    assert isinstance(api.channel, grpc.Channel)
