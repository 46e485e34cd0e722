"""`rebuild --prepare`: an upgrade whose downtime is a restart; the newer software has worked ahead."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from projections.store import ProjectionFiles
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.gen.yandex.cloud.operation import operation_pb2
from tests.bench.generate import generate
from tests.conformance import newer
from tests.conformance.api import Image
from tests.harness import IMAGES, Client, Server, image_of

EVENTS = 1500
FOLDER = "prepared"
OTHERS = re.compile(r"prepared|projections-[^2]")
NEWER = (sys.executable, newer.__file__)


class Versions(Server):
    """A server that is started as one version, and then as another."""

    def start_as(self, program: Sequence[str]) -> Versions:
        self.program = program
        self.start()
        return self

    def write(self, count: int) -> list[Image]:
        with Client(self.address) as client:
            request = pb.CreateImageRequest(folder_id=FOLDER, disk_id=client.disk(FOLDER))
            made = (client.call(IMAGES, "Create", request, operation_pb2.Operation) for _ in range(count))
            return [image_of(operation) for operation in made]

    def read(self, images: Sequence[Image]) -> list[Image]:
        with Client(self.address) as client:
            requests = (pb.GetImageRequest(image_id=image.id) for image in images)
            return [client.call(IMAGES, "Get", request, Image) for request in requests]


@pytest.fixture
def server(tmp_path: Path) -> Any:
    data = tmp_path / "data"
    data.mkdir()
    generate(data / "log.db", events=EVENTS)
    server = Versions(data)
    yield server
    server.kill()


def rebuild(program: Sequence[str], server: Server, *options: str) -> Any:
    command = [*program, "rebuild", "--data", str(server.data), "--json", *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def live(server: Server) -> str:
    path = ProjectionFiles(server.data).current()
    assert path is not None
    return path.name


def test_the_newer_server_starts_with_what_was_prepared(server: Versions) -> None:
    older = Server.program
    images = server.start_as(older).write(20)
    made = rebuild(NEWER, server, "--prepare")
    assert (made["digest_before"], live(server)) == (None, "projections-1.db")
    # The older one goes on, ends badly, and starts again: it leaves alone what is not its own.
    images += server.write(20)
    assert server.kill() == -signal.SIGKILL
    images += server.start_as(older).write(20)
    assert live(server) == "projections-1.db"
    assert server.stop() == 0
    server.start_as(NEWER)
    assert server.read(images) == images
    assert live(server) == "projections-2.db"
    left = [entry.name for entry in server.data.iterdir() if OTHERS.match(entry.name)]
    assert left == []
    images += server.write(1)
    assert server.read(images) == images
    assert server.stop() == 0
    # Not that of the older version only by its number: a rebuild finds the same rows.
    anew = rebuild(NEWER, server)
    assert anew["digest_before"] == anew["digest_after"] != made["digest_after"]


def test_without_it_the_newer_server_reads_the_whole_log(server: Versions) -> None:
    """What the other test's server refuses to do."""
    server.start_as(Server.program)
    assert server.stop() == 0
    with pytest.raises(AssertionError, match="the server did not start"):
        server.start_as(NEWER)
    assert "the projection is being built of the whole log" in server.stderr()
