"""`rebuild --online`: calls are answered, nobody sees an older state, and a kill at any step is harmless."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from eventstore import database
from eventstore.event import Position
from eventstore.reader import LogReader
from projections.build import build
from projections.opening import check, digest_beside, digest_of
from projections.store import ProjectionFiles
from server.encode import image_frame
from server.gen.imageledger.v1 import rebuild_service_pb2, status_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.gen.yandex.cloud.operation import operation_pb2
from tests.bench.generate import generate
from tests.conformance import rebuilding
from tests.conformance.api import Code, Image, Refusal, refusal_of
from tests.harness import IMAGES, STATUS, Client, Server, image_of

EVENTS = 1500
REBUILDS = "imageledger.v1.RebuildService"
FOLDER = "rebuilt"
WAIT_S = 60


class Hooked(Server):
    """A server whose rebuilds meet a hook of rebuilding.py."""

    def start_with(self, hook: str) -> Hooked:
        self.program = (sys.executable, rebuilding.__file__, hook)
        self.start()
        return self


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generated") / "log.db"
    generate(path, events=EVENTS)
    return path


@pytest.fixture
def server(tmp_path: Path, log: Path) -> Iterator[Hooked]:
    """Not started yet; a log of some hundred images."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(log, data / "log.db")
    os.mkfifo(tmp_path / "go")
    os.mkfifo(tmp_path / "read")
    server = Hooked(data)
    yield server
    server.kill()


def rebuild(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.cli", "rebuild", "--json", *arguments]
    if not arguments:
        command += ["--online", "--endpoint", server.address]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)


def made_by(ran: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    """What a rebuild printed."""
    assert ran.returncode == code, ran.stderr
    return json.loads(ran.stdout)


def begin(client: Client) -> Any:
    """The answers of Rebuild, which can be cancelled."""
    stub = client.channel.unary_stream(
        f"/{REBUILDS}/Rebuild",
        rebuild_service_pb2.RebuildRequest.SerializeToString,
        rebuild_service_pb2.RebuildProgress.FromString,
    )
    return stub(rebuild_service_pb2.RebuildRequest(), metadata=client.metadata(), timeout=WAIT_S)


def refusal_at_the_end_of(answers: Any) -> Refusal:
    with pytest.raises(grpc.RpcError) as raised:
        list(answers)
    return refusal_of(raised.value)


def projections(server: Server) -> list[str]:
    return sorted(entry.name for entry in server.data.glob("projections-*.db"))


def live(server: Server) -> Path:
    path = ProjectionFiles(server.data).current()
    assert path is not None
    return path


def digest_beside_and_anew(server: Server, scratch: Path) -> tuple[str, str]:
    """The digest of what is served, and that of a projection built of the same events elsewhere."""
    with LogReader.open(server.data / "log.db") as log:
        head = log.head()
        scratch.mkdir(exist_ok=True)
        fresh = build(ProjectionFiles(scratch), log, encode=image_frame)
        return digest_beside(live(server), head, encode=image_frame), digest_of(fresh, encode=image_frame)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what another process does and tells nobody."""
    ticks = threading.Event()
    for _ in range(WAIT_S * 100):
        if holds():
            return
        ticks.wait(0.01)
    raise AssertionError("it never came")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# What it does.


def test_it_takes_over_with_the_digest_of_the_file_before(server: Hooked) -> None:
    server.start()
    ran = rebuild(server)
    made = made_by(ran)
    assert ran.stderr == ""
    assert list(made) == ["events", "seconds", "digest_before", "digest_after"]
    assert made["digest_before"] == made["digest_after"]
    eventually(lambda: projections(server) == ["projections-2.db"])
    assert live(server).name == "projections-2.db"
    with Client(server.address) as client:
        status = client.call(STATUS, "Get", status_service_pb2.GetStatusRequest(), status_service_pb2.Status)
    assert status.applied_position == status.head == made["events"]
    assert server.stop() == 0
    offline = made_by(rebuild(server, "--data", str(server.data)))
    assert offline == {**made, "seconds": offline["seconds"]}


class Load:
    """Writers and readers; each read is compared with what was acknowledged before it was asked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_over = threading.Event()
        self.acknowledged = 0
        self.writes = 0
        self.reads = 0
        self.older: list[str] = []
        self.lock = threading.Lock()
        self.work: list[Future[None]] = []
        with Client(address) as client:
            self.disk = client.disk(FOLDER)
            first = pb.CreateImageRequest(folder_id=FOLDER, disk_id=self.disk, family="web")
            self.told(client, "Create", first)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(5) as threads:
            self.work += [threads.submit(self.write, number) for number in range(2)]
            self.work += [threads.submit(self.read, number) for number in range(3)]
            try:
                yield
            finally:
                self.is_over.set()
            for one in self.work:
                one.result(WAIT_S)

    def wait_for_more(self) -> None:
        """Until there is load, or was load again."""
        reads, writes = self.reads + 20, self.writes + 20
        eventually(
            lambda: (self.reads > reads and self.writes > writes) or any(one.done() for one in self.work)
        )

    def write(self, number: int) -> None:
        choices = random.Random(number)
        own: list[str] = []
        with Client(self.address) as client:
            for count in itertools.count():
                if self.is_over.is_set():
                    return
                if len(own) < 5 or choices.random() < 0.2:
                    create = pb.CreateImageRequest(
                        folder_id=FOLDER, disk_id=self.disk, family="web", name=f"w{number}-{count}"
                    )
                    own.append(image_of(self.told(client, "Create", create)).id)
                elif choices.random() < 0.3:
                    self.told(client, "Delete", pb.DeleteImageRequest(image_id=own.pop(0)))
                else:
                    update = pb.UpdateImageRequest(image_id=choices.choice(own), description=str(count))
                    update.update_mask.paths.append("description")
                    self.told(client, "Update", update)

    def told(self, client: Client, method: str, request: Any) -> operation_pb2.Operation:
        operation, call = client.full_call(IMAGES, method, request, operation_pb2.Operation)
        with self.lock:
            self.acknowledged = max(self.acknowledged, position(call))
            self.writes += 1
        return operation

    def read(self, number: int) -> None:
        asks: list[tuple[str, Any, Any]] = [
            ("GetLatestByFamily", pb.GetImageLatestByFamilyRequest(folder_id=FOLDER, family="web"), Image),
            ("List", pb.ListImagesRequest(folder_id=FOLDER, page_size=3), pb.ListImagesResponse),
            # These two are answered by the readers' threads, and not by the event loop.
            ("List", pb.ListImagesRequest(folder_id=FOLDER, order_by="name desc"), pb.ListImagesResponse),
            ("List", pb.ListImagesRequest(folder_id=FOLDER, filter='name = "none"'), pb.ListImagesResponse),
        ]
        with Client(self.address) as client:
            for ask in itertools.cycle(asks[number:] + asks[:number]):
                if self.is_over.is_set():
                    return
                floor = self.acknowledged
                _, call = client.full_call(IMAGES, *ask)
                if position(call) < floor:
                    self.older.append(f"{ask[0]} at {position(call)} after {floor}")
                self.reads += 1


def position(call: Any) -> int:
    return int(dict(call.trailing_metadata())["x-log-position"])


def test_nobody_sees_an_older_state_while_it_takes_over(server: Hooked, tmp_path: Path) -> None:
    server.start()
    load = Load(server.address)
    with load.running():
        for _ in range(2):
            load.wait_for_more()
            made = made_by(rebuild(server))
            assert made["digest_before"] == made["digest_after"]
        load.wait_for_more()
    assert load.older == []
    assert made["events"] < load.acknowledged
    eventually(lambda: projections(server) == ["projections-3.db"])
    beside, anew = digest_beside_and_anew(server, tmp_path / "scratch")
    assert beside == anew
    assert server.stop() == 0
    offline = made_by(rebuild(server, "--data", str(server.data)))
    assert offline["digest_before"] == offline["digest_after"] == anew
    assert " ERROR " not in server.stderr()


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        pytest.param(
            "DELETE FROM image_life WHERE born = (SELECT min(born) FROM image_life)", 1, id="digest"
        ),
        pytest.param("UPDATE operation SET actor = 'bob' WHERE since = 3", 0, id="damage"),
    ],
)
def test_a_wrong_file_is_replaced_and_kept(server: Hooked, sql: str, code: int) -> None:
    server.start()
    connection = database.connect(live(server), access="write", synchronous="NORMAL")
    assert connection.execute(sql).rowcount == 1
    connection.close()
    ran = rebuild(server)
    made = made_by(ran, code)
    assert made["digest_before"] != made["digest_after"]
    assert made["kept"] == str(server.data / "projections-1.db")
    assert made["kept"] in ran.stderr
    assert live(server).name == "projections-2.db"
    assert projections(server) == ["projections-1.db", "projections-2.db"]
    with Client(server.address) as client:
        again = list(begin(client))[-1].rebuilt
    assert again.digest_before == again.digest_after == made["digest_after"]
    eventually(lambda: projections(server) == ["projections-1.db", "projections-3.db"])


# One at a time, and given up.


def child_of(server: Server) -> int:
    """The pid of the child that waits now; another one may be asked for afterwards."""
    told = server.data.parent / "child"
    eventually(lambda: told.exists() and told.read_text().endswith("\n"))
    pid = int(told.read_text())
    told.unlink()
    return pid


def nothing_left_of_it(server: Server, child: int) -> None:
    eventually(lambda: not is_running(child) and not list(server.data.glob("projections-[!1]*")))


def test_a_second_one_is_refused_and_the_first_one_can_be_given_up(server: Hooked) -> None:
    server.start_with("wait")
    with Client(server.address) as client:
        first = begin(client)
        child = child_of(server)
        assert os.getpriority(os.PRIO_PROCESS, child) >= 10
        second = refusal_at_the_end_of(begin(client))
        assert (second.code, second.reason) == (Code.FAILED_PRECONDITION, "REBUILD_UNDER_WAY")
        assert (server.data / "projections-2.db").exists()
        first.cancel()
        nothing_left_of_it(server, child)
        third = begin(client)
        child = child_of(server)
        os.kill(child, signal.SIGKILL)
        ended = refusal_at_the_end_of(third)
        assert (ended.code, ended.reason) == (Code.UNAVAILABLE, "REBUILD_ENDED")
        nothing_left_of_it(server, child)
        fourth = begin(client)
        child_of(server)
        (server.data.parent / "go").write_text("go")
        assert list(fourth)[-1].rebuilt.digest_after
        assert live(server).name == "projections-4.db"


def test_a_file_that_is_still_read_goes_later_and_alone(server: Hooked) -> None:
    server.start_with("slow")
    with Client(server.address) as client, ThreadPoolExecutor(1) as threads:
        ask = pb.ListImagesRequest(folder_id="slow", order_by="name desc")
        reading = threads.submit(client.call, IMAGES, "List", ask, pb.ListImagesResponse)
        # The readers' thread has opened the FIFO, which is when this comes back.
        with (server.data.parent / "read").open("w") as let_it_end:
            made_by(rebuild(server))
            assert projections(server) == ["projections-1.db", "projections-2.db"]
            (server.data.parent / "hold").touch()
            second = begin(client)
            child_of(server)
            let_it_end.write("go")
        assert not reading.result(WAIT_S).images
        eventually(lambda: projections(server) == ["projections-2.db", "projections-3.db"])
        (server.data.parent / "go").write_text("go")
        assert list(second)[-1].rebuilt.digest_after
        eventually(lambda: projections(server) == ["projections-3.db"])


def test_a_stop_ends_it_and_is_not_held_up(server: Hooked) -> None:
    server.start_with("wait")
    with Client(server.address) as client:
        answers = begin(client)
        child = child_of(server)
        assert server.stop() == 0
        ended = refusal_at_the_end_of(answers)
    assert (ended.code, ended.reason) == (Code.UNAVAILABLE, "STOPPING")
    nothing_left_of_it(server, child)


@pytest.mark.parametrize(
    ("hook", "code", "reason"),
    [
        pytest.param("short", Code.UNAVAILABLE, "PROJECTION_NOT_WRITTEN", id="a-file-that-cannot-grow"),
        pytest.param("other", Code.FAILED_PRECONDITION, "OTHER_SOFTWARE", id="other-software-by-now"),
        pytest.param("broken", Code.INTERNAL, "INTERNAL", id="a-defect"),
        pytest.param("rename-fails", Code.UNAVAILABLE, "PROJECTION_NOT_WRITTEN", id="before-current-is-new"),
        pytest.param("sync-fails", Code.UNAVAILABLE, "PROJECTION_NOT_WRITTEN", id="after-current-is-new"),
    ],
)
def test_one_that_fails_leaves_the_server_as_it_was(
    server: Hooked, tmp_path: Path, hook: str, code: grpc.StatusCode, reason: str
) -> None:
    server.start_with(hook)
    with Client(server.address) as client:
        ended = refusal_at_the_end_of(begin(client))
        assert (ended.code, ended.reason) == (code, reason), ended.message
        create(client)
    assert live(server).name == "projections-1.db"
    eventually(lambda: projections(server) == ["projections-1.db"])
    beside, anew = digest_beside_and_anew(server, tmp_path / "scratch")
    assert beside == anew


# Killed at every step.


def create(client: Client) -> Image:
    request = pb.CreateImageRequest(folder_id=FOLDER, disk_id=client.disk(FOLDER))
    return image_of(client.call(IMAGES, "Create", request, operation_pb2.Operation))


def get(client: Client, image_id: str) -> Image:
    return client.call(IMAGES, "Get", pb.GetImageRequest(image_id=image_id), Image)


KILLED_BEFORE = ("reserved", "compared", "caught-up", "before-rename")
KILLED_AFTER = ("after-rename", "named", "moved", "removing")


def test_a_kill_at_any_step_leaves_one_right_file(server: Hooked, tmp_path: Path) -> None:
    images: list[Image] = []
    server.start_with("wait")
    with Client(server.address) as client:
        images.append(create(client))
        answers = begin(client)
        child = child_of(server)
        assert (server.data / "projections-2.db").exists()
        server.kill()
        assert refusal_at_the_end_of(answers).code is Code.UNAVAILABLE
        eventually(lambda: not is_running(child))
    for step in (*KILLED_BEFORE, *KILLED_AFTER):
        server.start_with(step)
        before = live(server)
        check_served(server, images, tmp_path / "scratch")
        with Client(server.address) as client:
            images.append(create(client))
            assert refusal_at_the_end_of(begin(client)).code is Code.UNAVAILABLE
        assert server.kill() == -signal.SIGKILL
        assert (live(server) == before) == (step in KILLED_BEFORE), step
    server.start_with("none")
    check_served(server, images, tmp_path / "scratch")
    assert rebuild(server).returncode == 0


def check_served(server: Server, images: list[Image], scratch: Path) -> None:
    """What was acknowledged is there, the rows are right, and nothing else is left of any rebuild."""
    assert projections(server) == [live(server).name]
    with Client(server.address) as client:
        assert [get(client, image.id) for image in images] == images
    beside, anew = digest_beside_and_anew(server, scratch)
    assert beside == anew
    with LogReader.open(server.data / "log.db") as log:
        assert check(live(server), log) == log.head() > Position(EVENTS)
