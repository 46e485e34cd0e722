"""How long bytes are kept, who shares them, and what a caller is told when they are lost."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.gen.imageledger.v1 import blob_service_pb2, source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2
from tests.conformance.api import MIB, Api, Code, key, refused
from tests.conformance.sites import Site, ended, until
from tests.conformance.test_imports import Place, disk, path, raw
from tests.harness import BLOBS, Server, image_of, serving

GRACE_S = 0.4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("blobs")
    with Site() as site:
        allowed = ("--allow-source", site.prefix, "--blob-grace", f"{GRACE_S}s")
        with serving(root / "data", *allowed, "--max-image-size", "2M") as server:
            yield Place(server, site, root)


@pytest.fixture
def api(place: Place) -> Iterator[Api]:
    with Api(place.server.address) as client:
        yield client


def file_of(place: Place | Server, body: bytes) -> Path:
    """Where the store keeps these bytes."""
    data = place.data if isinstance(place, Server) else place.server.data
    sha256 = hashlib.sha256(body).hexdigest()
    return data / "blobs" / sha256[:2] / sha256[2:4] / sha256


def imported(place: Place, api: Api, folder: str, body: bytes, **fields: object) -> image_pb2.Image:
    return image_of(ended(api, api.create(folder, uri=place.site.put(path(), body), **fields).id))


def wait_for_the_reaper(place: Place, api: Api) -> None:
    """Returns once a blob that is freed now is gone: so is, then, whatever was due before it."""
    body = disk()
    api.remove_source(api.source(body).id)
    until(lambda: not file_of(place, body).exists())


# Who shares what, and for how long.


def test_the_same_bytes_are_one_blob_until_the_last_use_is_gone(place: Place, api: Api, folder: str) -> None:
    body = disk()
    first, second = imported(place, api, folder, body), imported(place, api, folder, body)
    source = api.source(body)
    third = api.image(folder, disk_id=source.id)
    child = api.image(folder, image_id=first.id)
    for image_id in (first.id, third.id, second.id):
        api.delete(image_id)
        wait_for_the_reaper(place, api)
        assert file_of(place, body).exists()
    assert api.read(child.id)[1] == body
    api.delete(child.id)
    wait_for_the_reaper(place, api)
    assert file_of(place, body).exists()
    api.remove_source(source.id)
    until(lambda: not file_of(place, body).exists())


def test_unused_bytes_are_kept_for_the_grace_time_and_no_longer(place: Place, api: Api, folder: str) -> None:
    body = disk()
    image = imported(place, api, folder, body)
    wait_for_the_reaper(place, api)
    before = time.monotonic()
    api.delete(image.id)
    until(lambda: not file_of(place, body).exists())
    assert time.monotonic() - before >= GRACE_S


def test_bytes_used_again_within_the_grace_time_stay(place: Place, api: Api, folder: str) -> None:
    body = disk()
    api.delete(imported(place, api, folder, body).id)
    again = imported(place, api, folder, body)
    wait_for_the_reaper(place, api)
    assert file_of(place, body).exists()
    assert api.read(again.id)[1] == body


def test_bytes_freed_again_have_their_whole_grace_time(place: Place, api: Api, folder: str) -> None:
    body = disk()
    api.remove_source(api.source(body).id)
    # Not a wait for something: so much of the first grace time is over when the second one begins.
    time.sleep(GRACE_S * 0.7)
    source = api.source(body)
    before = time.monotonic()
    api.remove_source(source.id)
    until(lambda: not file_of(place, body).exists())
    assert time.monotonic() - before >= GRACE_S


def test_bytes_that_no_image_came_of_are_removed(place: Place, api: Api, folder: str) -> None:
    """The first import is stored, and then its size is found to be too large for the disk asked for."""
    body = disk()
    uri = place.site.put(path(), body)
    operation = api.create(folder, uri=uri, min_disk_size=4 * MIB)
    until(file_of(place, body).exists)
    assert "Minimal disk size" in ended(api, operation.id).error.message
    until(lambda: not file_of(place, body).exists())


def test_bytes_of_a_refused_upload_are_removed(place: Place, api: Api, folder: str) -> None:
    first, second, again = disk(), disk(), key(str(uuid.uuid4()))
    header = source_service_pb2.SourceHeader(folder_id=folder, kind=source_service_pb2.DISK)

    def upload(body: bytes) -> source_service_pb2.Source:
        return api.upload(header, [body], again)

    source = upload(first)
    assert refused(lambda: upload(second)).code is Code.INVALID_ARGUMENT
    until(lambda: not file_of(place, second).exists())
    assert upload(first).id == source.id
    wait_for_the_reaper(place, api)
    assert file_of(place, first).exists()


def test_a_start_sweeps_what_a_crash_left_and_nothing_else(tmp_path: Path, folder: str) -> None:
    with Site() as site:
        server = Server(tmp_path / "data", "--allow-source", site.prefix, "--blob-grace", f"{GRACE_S}s")
        place = Place(server.start(), site, tmp_path)
        with Api(server.address) as api:
            used, kept, orphan = disk(), disk(), disk()
            image = imported(place, api, folder, used)
            api.source(kept)
        server.stop()
        file_of(place, orphan).parent.mkdir(parents=True, exist_ok=True)
        file_of(place, orphan).write_bytes(orphan)
        stranger = tmp_path / "data" / "blobs" / "README"
        stranger.write_text("not a blob")
        left = tmp_path / "data" / "blobs" / "incoming" / "0123456789abcdef"
        left.write_bytes(b"half of it")
        before = time.monotonic()
        server.start()
        with contextlib.ExitStack() as stack, Api(server.address) as api:
            stack.callback(server.stop)
            until(lambda: not left.exists())
            until(lambda: not file_of(place, orphan).exists())
            assert time.monotonic() - before >= GRACE_S
            wait_for_the_reaper(place, api)
            assert file_of(place, used).exists()
            assert file_of(place, kept).exists()
            assert stranger.exists()
            assert api.read(image.id)[1] == used


# How much is taken.


def test_more_bytes_than_are_allowed(place: Place, api: Api, folder: str) -> None:
    body = raw(2 * MIB + 512)
    done = ended(api, api.create(folder, uri=place.site.put(path(), body)).id)
    assert done.error.code == Code.FAILED_PRECONDITION.value[0]
    assert "--max-image-size" in done.error.message
    header = source_service_pb2.SourceHeader(folder_id=folder, kind=source_service_pb2.DISK)
    parts = [body[start : start + MIB // 2] for start in range(0, len(body), MIB // 2)]
    told = refused(lambda: api.upload(header, parts))
    assert told.code is Code.INVALID_ARGUMENT
    assert "--max-image-size" in told.message
    assert imported(place, api, folder, raw(2 * MIB)).storage_size == 2 * MIB
    until(lambda: not list((place.server.data / "blobs" / "incoming").iterdir()))


def test_with_too_little_free_space_only_bytes_are_refused(tmp_path: Path, folder: str) -> None:
    with Site() as site:
        server = Server(tmp_path / "data", "--allow-source", site.prefix, "--min-free", "0%")
        place = Place(server.start(), site, tmp_path)
        with Api(server.address) as api:
            image = imported(place, api, folder, disk())
        server.stop()
        # More than can be free, as the system itself is on that disk.
        server.options = ("--allow-source", site.prefix, "--min-free", "99.999%")
        server.start()
        with contextlib.ExitStack() as stack, Api(server.address) as api:
            stack.callback(server.stop)
            done = ended(api, api.create(folder, uri=site.put(path(), disk()), name="web").id)
            assert done.error.code == Code.RESOURCE_EXHAUSTED.value[0]
            assert "--min-free" in done.error.message
            told = refused(lambda: api.source(disk()))
            assert told.code is Code.RESOURCE_EXHAUSTED
            assert "--min-free" in told.message
            assert api.image(folder, image_id=image.id, name="web").status == image_pb2.Image.READY
            api.update(image.id, ["name"], name="db")


# What is lost.


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-512])


def changed(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)


def linked(file: Path) -> None:
    elsewhere = file.with_suffix(".elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


@pytest.mark.parametrize("lose", [Path.unlink, cut_short, changed, linked])
def test_lost_bytes_are_told_with_the_image_and_the_server_goes_on(
    place: Place, api: Api, folder: str, lose: Callable[[Path], None], tmp_path: Path
) -> None:
    body, whole = disk(), disk()
    image, other = imported(place, api, folder, body), imported(place, api, folder, whole)
    child = api.image(folder, image_id=image.id)
    lose(file_of(place, body))
    for image_id in (image.id, child.id):
        for ask in (lambda i=image_id: api.read(i), lambda i=image_id: verify(api, i)):  # type: ignore[misc]
            told = refused(ask)
            assert told.code is Code.DATA_LOSS
            assert f'Image "{image_id}"' in told.message
            assert told.reason == "BLOB_LOST"
            assert "restore it" in told.message
    check_commands(place, image.id, tmp_path)
    assert api.get(image.id) == image
    assert api.read(other.id)[1] == whole
    assert verify(api, other.id).info.storage_size == len(whole)
    assert " ERROR " not in place.server.stderr()
    # The same bytes, imported again, mend it.
    imported(place, api, folder, body)
    assert api.read(child.id)[1] == body


def verify(api: Api, image_id: str) -> blob_service_pb2.VerifyBlobResponse:
    request = blob_service_pb2.VerifyBlobRequest(image_id=image_id)
    return api.call(BLOBS, "Verify", request, blob_service_pb2.VerifyBlobResponse)


def check_commands(place: Place, image_id: str, folder: Path) -> None:
    for arguments in (("verify", image_id), ("download", image_id, "--to", str(folder / "disk"))):
        command = [sys.executable, "-m", "tools.cli", "image", *arguments]
        told = subprocess.run(
            [*command, "--endpoint", place.server.address], capture_output=True, text=True, check=False
        )
        assert told.returncode == 1
        assert told.stderr.startswith("error: DATA_LOSS: ")
        assert image_id in told.stderr
        assert not list(folder.iterdir())
