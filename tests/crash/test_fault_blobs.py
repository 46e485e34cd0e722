"""A disk that fails under the blobs, or under the log while bytes wait for their event."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from server.gen.yandex.cloud.compute.v1 import image_pb2
from tests.conformance.api import Code
from tests.conformance.sites import Site, ended, until
from tests.crash.faults import FOLDER, Service, check_refusal, done, some_bytes
from tests.failing_disk import EIO, ENOSPC, Fault, compiled
from tests.harness import image_of

INCOMING = "*/blobs/incoming/*"
FOLDERS = ("*/blobs/??/??", "*/blobs/??", "*/blobs")
LOG_WAL, PROJECTION_WAL = "*/data/log.db-wal", "*/data/projections-*.db-wal"


class Place(NamedTuple):
    service: Service
    site: Site


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("blobs")
    with Site() as site:
        options = ("--allow-source", site.prefix)
        with Service(root / "data", root, compiled(root), *options) as service:
            yield Place(service, site)
            service.check_end()


# What a new blob asks of the disk, in this order.
STEPS = [
    pytest.param(Fault("create", INCOMING, ENOSPC), id="create"),
    pytest.param(Fault("write", INCOMING, ENOSPC), id="write-full"),
    pytest.param(Fault("write", INCOMING, EIO, "half"), id="write-half"),
    pytest.param(Fault("fsync", INCOMING, EIO), id="fsync"),
    pytest.param(Fault("fsync", INCOMING, ENOSPC), id="fsync-full"),
    pytest.param(Fault("mkdir", FOLDERS[1], ENOSPC), id="mkdir"),
    pytest.param(Fault("mkdir", FOLDERS[0], ENOSPC, "after"), id="mkdir-after"),
    pytest.param(Fault("rename", INCOMING, EIO), id="rename"),
    pytest.param(Fault("rename", INCOMING, EIO, "after"), id="rename-after"),
    *(
        pytest.param(Fault("fsync", folder, error, when), id=f"fsync-folder-{level}-{when}")
        for level, (folder, error) in enumerate(zip(FOLDERS, (EIO, ENOSPC, EIO), strict=True))
        for when in ("before", "after")
    ),
]


@pytest.mark.parametrize("fault", STEPS)
def test_an_upload_that_cannot_be_stored_is_refused_and_leaves_nothing(place: Place, fault: Fault) -> None:
    service, body = place.service, some_bytes()
    with service.disk.failing(fault):
        attempt = service.attempt(service.upload(body))
        service.check_reads()
        done(service.attempt(service.update))
    assert attempt.refusal is not None
    full = ("DISK_FULL", Code.RESOURCE_EXHAUSTED)
    expected = full if fault.error == ENOSPC else ("BLOB_STORE_UNAVAILABLE", Code.UNAVAILABLE)
    assert (attempt.refusal.reason, attempt.refusal.code) == expected
    check_refusal(attempt.refusal)
    check_nothing_is_left(service, body)
    service.again([attempt])
    service.check_files()
    check_gone_after_its_last_use(service, body)


# The store is the same; what differs is who is told.
OF_AN_IMPORT = ("create", "write-full", "write-half", "fsync", "rename", "fsync-folder-0-before")


@pytest.mark.parametrize("fault", [step for step in STEPS if step.id in OF_AN_IMPORT])
def test_an_import_that_cannot_be_stored_fails_visibly_and_leaves_nothing(place: Place, fault: Fault) -> None:
    service, body = place.service, some_bytes()
    uri = place.site.put(f"/images/{hashlib.sha256(body).hexdigest()}", body)
    with service.disk.failing(fault):
        operation = ended(service.api, service.api.create(FOLDER, uri=uri, name="imported").id)
    is_full = fault.error == ENOSPC
    code = Code.RESOURCE_EXHAUSTED if is_full else Code.UNAVAILABLE
    assert operation.error.code == code.value[0]
    assert ("free some space" if is_full else "look at the blobs' disk") in operation.error.message
    check_nothing_is_left(service, body)
    # Its name is free again.
    image = image_of(ended(service.api, service.api.create(FOLDER, uri=uri, name="imported").id))
    assert service.api.read(image.id)[1] == body
    service.check_files()
    service.api.delete(image.id)
    until(lambda: not file_of(service, body).exists())


def test_what_cannot_be_dropped_waits_for_the_sweep(place: Place) -> None:
    """Two things fail, and the first is what the caller is told."""
    service, body = place.service, some_bytes()
    with service.disk.failing(Fault("write", INCOMING, ENOSPC), Fault("unlink", INCOMING, EIO)):
        attempt = service.attempt(service.upload(body))
    assert attempt.refusal is not None
    assert attempt.refusal.reason == "DISK_FULL"
    assert len(incoming(service)) == 1
    service.kill()
    service.start()
    until(lambda: not incoming(service))
    service.again([attempt])


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("fsync", LOG_WAL, EIO), id="log-fsync"),
        pytest.param(Fault("write", LOG_WAL, ENOSPC), id="log-full"),
        pytest.param(Fault("write", PROJECTION_WAL, EIO), id="projection"),
    ],
)
def test_bytes_that_are_stored_wait_for_a_log_that_fails(place: Place, fault: Fault) -> None:
    """An import and an upload whose bytes are there; then the log, or the projection, fails for a while."""
    service, imported, uploaded = place.service, some_bytes(), some_bytes()
    uri, held = place.site.hold(f"/images/{hashlib.sha256(imported).hexdigest()}", imported, sent_bytes=512)
    operation = service.api.create(FOLDER, uri=uri)
    held.come.wait()
    hits = len(service.disk.hits())
    with service.disk.failing(fault):
        held.go.set()
        service.wait_for_a_hit(hits)
        [upload] = service.begin(service.upload(uploaded))
        until(upload.done)
        service.check_reads()
    image = image_of(ended(service.api, operation.id))
    assert image.status == image_pb2.Image.READY
    assert service.api.read(image.id)[1] == imported
    service.again([upload.result()])
    service.check_files()
    # No pin is left: what loses its last use goes.
    service.api.delete(image.id)
    until(lambda: not file_of(service, imported).exists())
    check_gone_after_its_last_use(service, uploaded)


@pytest.mark.parametrize("path", [LOG_WAL, PROJECTION_WAL])
def test_a_blob_goes_whose_last_use_ended_while_a_commit_failed(place: Place, path: str) -> None:
    service, body = place.service, some_bytes()
    source_id = done(service.attempt(service.upload(body))).id
    # The end of its upload had the reaper look at it; nothing but the end of its use does now.
    other = some_bytes()
    done(service.attempt(service.upload(other)))
    check_gone_after_its_last_use(service, other)
    with service.disk.failing(Fault("write", path, EIO, times=1)):
        attempt = service.attempt(service.remove(source_id))
    # The log had it, or had not.
    assert (attempt.refusal is None) == (path == PROJECTION_WAL)
    if attempt.refusal is not None:
        assert file_of(service, body).exists()
        service.again([attempt])
    until(lambda: not file_of(service, body).exists())
    service.check_files()


def file_of(service: Service, body: bytes) -> Path:
    sha256 = hashlib.sha256(body).hexdigest()
    return service.data / "blobs" / sha256[:2] / sha256[2:4] / sha256


def incoming(service: Service) -> list[Path]:
    return list((service.data / "blobs" / "incoming").iterdir())


def check_nothing_is_left(service: Service, body: bytes) -> None:
    assert not file_of(service, body).exists()
    assert not incoming(service)


def check_gone_after_its_last_use(service: Service, body: bytes) -> None:
    """The blob of an uploaded source goes with the source: no pin keeps it."""
    sha256 = hashlib.sha256(body).hexdigest()
    listed = service.api.sources(FOLDER, page_size=1000).sources
    [source_id] = [source.id for source in listed if source.sha256 == sha256]
    done(service.attempt(service.remove(source_id)))
    until(lambda: not file_of(service, body).exists())
