"""Imports that a stop or a kill comes between: each begins again or fails, and nothing is left hanging."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore.event import Event
from eventstore.reader import LogReader
from server.gen.imageledger.v1 import status_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2
from tests.conformance.api import Api, Code
from tests.conformance.sites import Site, ended, until
from tests.harness import STATUS, Server, image_of
from tests.unit.server.disk_images import tiny_raw

GRACE_S = 0.2
QUERY = "?X-Amz-Signature=5ecre7"


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        yield running


@pytest.fixture
def server(tmp_path: Path, site: Site) -> Iterator[Server]:
    server = Server(tmp_path / "data", "--allow-source", site.prefix, "--blob-grace", f"{GRACE_S}s")
    yield server.start()
    server.stop()


def raw() -> bytes:
    return tiny_raw(256 * 1024, salt=uuid.uuid4().bytes)


def path() -> str:
    return f"/images/{uuid.uuid4().hex}"


def end(server: Server, how: str) -> None:
    if how == "SIGKILL":
        server.kill()
    else:
        assert server.stop() == 0


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_what_was_running_or_queued_begins_again(server: Server, site: Site, how: str) -> None:
    """Three in one folder: one runs, two wait. After the restart each is read from its start, in order."""
    bodies = [raw() for _ in range(3)]
    paths = [path() for _ in bodies]
    uri, held = site.hold(paths[0], bodies[0], sent_bytes=100_000)
    with Api(server.address) as api:
        operations = [api.create("f", uri=uri, name="n-0", family="web")]
        for number in (1, 2):
            uri = site.put(paths[number], bodies[number])
            operations.append(api.create("f", uri=uri, name=f"n-{number}", family="web"))
        held.come.wait()
        until(lambda: written(api) == [100_000, 0, 0])
    end(server, how)
    assert held.gone.wait(5)
    site.put(paths[0], bodies[0])
    server.start()
    with Api(server.address) as api:
        done = [ended(api, operation.id) for operation in operations]
        for operation, body in zip(done, bodies, strict=True):
            image = image_of(operation)
            assert (image.status, api.read(image.id)[1]) == (image_pb2.Image.READY, body)
        assert api.latest("f", "web").id == image_of(done[2]).id
        check_nothing_is_left(server, bodies)
    assert [len(site.requests_of(one)) for one in paths] == [2, 1, 1]
    assert not [request for request in site.requests if "range" in request.headers]
    assert [request.target for request in site.requests[1:]] == paths
    started, created = events_of(server, operations[0].id)
    assert (created.type, created.auth) == ("ImageCreated", "system")
    assert (created.actor, created.request_id) == (started.actor, started.request_id)


def written(api: Api) -> list[int]:
    answer = api.call(STATUS, "Get", status_service_pb2.GetStatusRequest(), status_service_pb2.Status)
    return [entry.bytes for entry in answer.imports]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_what_cannot_begin_again_fails_and_says_why(server: Server, site: Site, how: str) -> None:
    """One had a query, which is nowhere now; the prefix of the other is not allowed any more."""
    elsewhere = site.uri("/others/")
    server.stop()
    allowed = server.options
    server.options = (*allowed, "--allow-source", elsewhere)
    server.start()
    signed, _ = site.hold(path(), raw(), sent_bytes=1024)
    outside, held = site.hold(f"/others/{uuid.uuid4().hex}", raw(), sent_bytes=1024)
    with Api(server.address) as api:
        operations = [
            api.create("f", [("x-client-request-id", "first-request")], uri=signed + QUERY, name="web"),
            api.create("f", uri=signed + QUERY),  # It waits, behind that one.
            api.create("g", uri=outside),
        ]
        held.come.wait()
    end(server, how)
    requests = len(site.requests)
    server.options = allowed
    server.start()
    with Api(server.address) as api:
        done = [ended(api, operation.id) for operation in operations]
        assert [operation.error.code for operation in done] == [Code.FAILED_PRECONDITION.value[0]] * 3
        for operation in done[:2]:
            assert "query" in operation.error.message
            assert "create the image again" in operation.error.message
            assert "5ecre7" not in str(operation)
        assert "no allowed prefix covers it" in done[2].error.message
        assert not api.list("f").images
        assert not api.list("g").images
        assert api.create("f", uri=site.put(path(), raw()), name="web")
        started, failed = events_of(server, done[0].id)
        assert (failed.type, failed.auth) == ("ImageCreationFailed", "system")
        assert (failed.actor, failed.request_id) == (started.actor, "first-request")
    assert len(site.requests) <= requests + 1
    assert "5ecre7" not in server.stderr()


def test_what_was_cancelled_does_not_begin_again(server: Server, site: Site) -> None:
    where = path()
    uri, held = site.hold(where, raw(), sent_bytes=1024)
    with Api(server.address) as api:
        operation = api.create("f", uri=uri)
        held.come.wait()
        cancelled = api.cancel(operation.id)
    server.kill()
    server.start()
    with Api(server.address) as api:
        assert api.operation(operation.id) == cancelled
        assert ended(api, api.create("f", uri=site.put(path(), raw())).id).HasField("response")
    assert len(site.requests_of(where)) == 1


def events_of(server: Server, operation_id: str) -> list[Event]:
    with LogReader.open(server.data / "log.db") as log:
        return log.events_of_operation(operation_id)


def check_nothing_is_left(server: Server, used: list[bytes]) -> None:
    """No incoming file, and no blob but those of images."""
    blobs = server.data / "blobs"
    expected = {hashlib.sha256(body).hexdigest() for body in used}
    until(lambda: {file.name for file in blobs.glob("??/??/*")} == expected)
    until(lambda: not list((blobs / "incoming").iterdir()))
