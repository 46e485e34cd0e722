"""A copy of a data directory, served: every read and history call, no write, and nothing in it changes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from eventstore import database
from server.gen.imageledger.v1 import (
    history_service_pb2,
    source_service_pb2,
    status_service_pb2,
)
from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.gen.yandex.cloud.iam.v1 import iam_token_service_pb2 as iam_pb
from server.gen.yandex.cloud.operation import operation_pb2
from server.gen.yandex.cloud.operation import operation_service_pb2 as operations_pb
from tests.conformance.api import IAM
from tests.harness import IMAGES, OPERATIONS, SOURCES, Client, Server, image_of, serving

HISTORY = "imageledger.v1.HistoryService"


class Copy:
    """A server's data, copied while it was stopped, and an image in it that has two versions."""

    def __init__(self, directory: Path) -> None:
        self.original, self.data = directory / "original", directory / "copy"
        with serving(self.original) as server, Client(server.address) as client:
            request = pb.CreateImageRequest(folder_id="f", name="web", family="web", disk_id=client.disk("f"))
            image = image_of(client.call(IMAGES, "Create", request, operation_pb2.Operation))
            self.created = image
            update = pb.UpdateImageRequest(image_id=image.id, description="new")
            update.update_mask.paths.append("description")
            self.image = image_of(client.call(IMAGES, "Update", update, operation_pb2.Operation))
            status = status_service_pb2.GetStatusRequest()
            self.head = client.call(
                "imageledger.v1.StatusService", "Get", status, status_service_pb2.Status
            ).head
        shutil.copytree(self.original, self.data)

    def contents(self) -> dict[str, bytes]:
        """What SQLite does not make anew for each reader."""
        return {
            str(path.relative_to(self.data)): path.read_bytes()
            for path in sorted(self.data.rglob("*"))
            if path.is_file() and not path.name.endswith(("-shm", "-wal"))
        }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copied"))


@pytest.fixture(scope="module")
def client(copy: Copy) -> Iterator[Client]:
    before = copy.contents()
    with serving(copy.data, "--read-only") as server, Client(server.address) as client:
        yield client
    assert copy.contents() == before


def get(client: Client, copy: Copy, **metadata: str) -> image_pb2.Image:
    extra = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    return client.call(IMAGES, "Get", pb.GetImageRequest(image_id=copy.image.id), image_pb2.Image, extra)


def test_reads(client: Client, copy: Copy) -> None:
    assert get(client, copy) == copy.image
    latest = pb.GetImageLatestByFamilyRequest(folder_id="f", family="web")
    assert client.call(IMAGES, "GetLatestByFamily", latest, image_pb2.Image) == copy.image
    listed = client.call(IMAGES, "List", pb.ListImagesRequest(folder_id="f"), pb.ListImagesResponse)
    assert list(listed.images) == [copy.image]


def test_as_of_a_position_and_of_any_time_since_the_last_event(client: Client, copy: Copy) -> None:
    assert get(client, copy, x_as_of=str(copy.head - 1)) == copy.created
    now = subprocess.run(["date", "-u", "+%Y-%m-%dT%H:%M:%SZ"], capture_output=True, text=True, check=True)
    assert get(client, copy, x_as_of=now.stdout.strip()) == copy.image
    with pytest.raises(grpc.RpcError) as refused:
        get(client, copy, x_as_of="2999-01-01T00:00:00Z")
    assert refused.value.code() == grpc.StatusCode.OUT_OF_RANGE


def test_history(client: Client, copy: Copy) -> None:
    call = client.channel.unary_stream(f"/{HISTORY}/ImageHistory")
    request = history_service_pb2.ImageHistoryRequest(image_id=copy.image.id)
    assert list(call(request.SerializeToString(), metadata=client.metadata()))


def test_status_says_so(client: Client, copy: Copy) -> None:
    status = client.call(
        "imageledger.v1.StatusService",
        "Get",
        status_service_pb2.GetStatusRequest(),
        status_service_pb2.Status,
    )
    assert (status.read_only, status.head) == (True, copy.head)


@pytest.mark.parametrize(
    ("service", "method", "request_"),
    [
        pytest.param(IMAGES, "Create", pb.CreateImageRequest(folder_id="f", image_id="fd8x"), id="create"),
        pytest.param(IMAGES, "Create", pb.CreateImageRequest(folder_id="f", uri="file:///x"), id="import"),
        pytest.param(IMAGES, "Update", pb.UpdateImageRequest(image_id="fd8x"), id="update"),
        pytest.param(IMAGES, "Delete", pb.DeleteImageRequest(image_id="fd8x"), id="delete"),
        pytest.param(SOURCES, "Remove", source_service_pb2.RemoveSourceRequest(source_id="x"), id="remove"),
        pytest.param(IAM, "Revoke", iam_pb.RevokeIamTokenRequest(iam_token="il1.x.x"), id="revoke"),
        pytest.param(
            OPERATIONS, "Cancel", operations_pb.CancelOperationRequest(operation_id="x"), id="cancel"
        ),
    ],
)
def test_a_write_is_refused(client: Client, service: str, method: str, request_: Message) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        client.call(service, method, request_, operation_pb2.Operation)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "serves a copy" in (refused.value.details() or "")


def test_an_upload_is_refused(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        client.disk("f")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_a_directory_that_is_written_is_no_copy(copy: Copy) -> None:
    with serving(copy.original):
        assert "imageledger serve" in refusal(copy.original)


def test_nobody_writes_in_a_copy_that_is_served(copy: Copy, client: Client) -> None:
    with pytest.raises(AssertionError, match="did not start"):
        Server(copy.data).start()


def test_there_must_be_a_log(tmp_path: Path) -> None:
    assert "NOT_FOUND" in refusal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_projection_is_kept_where_it_is_told(copy: Copy, tmp_path: Path) -> None:
    kept = tmp_path / "projections"
    for _ in range(2):
        options = ("--read-only", "--projection-dir", str(kept))
        with serving(copy.data, *options) as server, Client(server.address) as client:
            assert get(client, copy) == copy.image
        assert [path.name for path in kept.glob("projections-*.db")] == ["projections-1.db"]


def refusal(data: Path) -> str:
    """What a start says on stderr."""
    command = [sys.executable, "-m", "tools.cli", "serve", "--read-only", "--data", str(data)]
    command += ["--listen", "127.0.0.1:0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    return ended.stderr


# A folder that cannot be written, to somebody who may write everything, is a mount.


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode, **_: False)


def test_a_file_in_a_folder_that_cannot_be_written_is_read_as_it_stands(
    copy: Copy, tmp_path: Path, unwritable: None
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(copy.original / "log.db", data)
    connection = database.connect(data / "log.db", access="read", synchronous="FULL")
    assert connection.execute("SELECT max(position) FROM event").fetchone()[0] >= copy.head
    connection.close()
    assert [path.name for path in data.iterdir()] == ["log.db"]


def test_a_log_that_was_not_merged_is_not_read_there(copy: Copy, tmp_path: Path, unwritable: None) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(copy.original / "log.db", data)
    (data / "log.db-wal").write_bytes(b"x")
    with pytest.raises(database.UnmergedWal, match=r"log.db-wal holds what is not in log.db yet.*copy both"):
        database.connect(data / "log.db", access="read", synchronous="FULL")
