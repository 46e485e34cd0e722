"""A scrub beside a serving server: what it reads, what it finds, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from eventstore import database
from projections.files import ProjectionFiles
from server.gen.imageledger.v1 import scrub_service_pb2 as pb
from tests.conformance.api import MIB, Api, Code, as_of, refusal_of, refused
from tests.conformance.sites import until
from tests.harness import Server, serving

SCRUB = "/imageledger.v1.ScrubService/Scrub"
# So slow that it waits for minutes behind its first page.
CRAWL = 1024
BLOB_BYTES = 600 * 1024


class Scrubbed(NamedTuple):
    """What a scrub told: findings, what was checked, and the parts of which progress was told."""

    findings: list[pb.ScrubFinding]
    checked: pb.ScrubChecked
    parts: set[int]

    def said(self) -> list[tuple[str, int, int]]:
        """Kind, part and position of each finding."""
        return [(one.kind, one.part, one.position) for one in self.findings]


def scrubbing(api: Api, *, rate: int = 0, metadata: Any = ()) -> Any:
    """The call, whose messages come as it goes on."""
    stub = api.channel.unary_stream(SCRUB, pb.ScrubRequest.SerializeToString, pb.ScrubResponse.FromString)
    return stub(pb.ScrubRequest(bytes_per_second=rate), metadata=api.metadata(metadata), timeout=60)


def scrub(api: Api) -> Scrubbed:
    findings, parts, checked = [], set(), None
    for said in scrubbing(api, rate=1000 * MIB):
        assert checked is None, "something came behind the last message"
        match said.WhichOneof("said"):
            case "finding":
                findings.append(said.finding)
            case "progress":
                parts.add(said.progress.part)
            case "checked":
                checked = said.checked
    assert checked is not None
    return Scrubbed(findings, checked, parts)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a few hundred events, of which no test leaves anything damaged."""
    with serving(tmp_path_factory.mktemp("scrub") / "data") as running:
        with Api(running.address) as api:
            fill(api)
        yield running


def fill(api: Api) -> None:
    """Two disks of different bytes, images of both with updates, one of them deleted."""
    for number, name in enumerate(("web", "dbs")):
        disk = api.source(bytes([number]) * BLOB_BYTES, folder_id="scrub")
        images = [api.image("scrub", disk_id=disk.id, name=f"{name}-{n}", family=name) for n in range(20)]
        for n in range(60):
            api.update(images[n % 20].id, ["description"], description=f"text {n}")
        api.delete(images[19].id)


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with Api(server.address) as client:
        yield client


def execute(path: Path, *statements: str) -> None:
    with closing(database.connect(path, access="write", synchronous="OFF")) as connection:
        for statement in statements:
            connection.execute(statement)


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(database.connect(path, access="read", synchronous="OFF")) as connection:
        return connection.execute(sql).fetchall()


def projection(server: Server) -> Path:
    found = ProjectionFiles(server.data).current()
    assert found is not None
    return found


def blob_files(server: Server) -> list[Path]:
    return sorted(path for path in (server.data / "blobs").rglob("*") if len(path.name) == 64)


# What it reads.


def test_all_is_read_where_nothing_is_wrong(server: Server, api: Api) -> None:
    scrubbed = scrub(api)
    assert scrubbed.findings == []
    assert scrubbed.parts == {pb.LOG, pb.LOG_INDEXES, pb.PROJECTION, pb.PROJECTION_INDEXES, pb.BLOBS}
    checked = scrubbed.checked
    [(head, operations, resources)] = rows(
        server.data / "log.db", "SELECT max(position), count(operation_id), count(resource_id) FROM event"
    )
    assert checked.position == head > 200
    assert checked.log_entries == head + operations + resources
    assert checked.rows > 200
    assert (checked.blobs, checked.blob_bytes) == (2, 2 * BLOB_BYTES)
    assert (checked.unused_blobs, checked.gave_up) == (0, False)


def test_unused_blobs_are_counted_and_are_no_findings(api: Api) -> None:
    """A source that has just been removed has its blob until the grace time is over."""
    source = api.source(b"\7" * 1024, folder_id="unused")
    api.remove_source(source.id)
    scrubbed = scrub(api)
    assert scrubbed.findings == []
    assert (scrubbed.checked.unused_blobs, scrubbed.checked.unused_blob_bytes) == (1, 1024)


def test_it_asks_of_the_present(api: Api) -> None:
    told = refused(lambda: next(scrubbing(api, metadata=as_of(3))))
    assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "AS_OF_ON_WRITE")


@pytest.mark.parametrize("rate", [-1, 1, 1023])
def test_a_rate_has_a_least_value(api: Api, rate: int) -> None:
    told = refused(lambda: next(scrubbing(api, rate=rate)))
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, ["bytes_per_second"])


def test_it_needs_a_token(server: Server) -> None:
    with Api(server.address, token=None) as nobody:
        assert refused(lambda: next(scrubbing(nobody))).code == Code.UNAUTHENTICATED


# What it finds, in each of the parts. Reads of other things are answered all the time.


@contextmanager
def event_changed(log_path: Path, position: int, what: str) -> Iterator[None]:
    """An event is another one for a while. The trigger that forbids it is away for a moment."""
    [(sql,)] = rows(log_path, "SELECT sql FROM sqlite_schema WHERE name = 'event_update'")
    before = rows(log_path, f"SELECT body, hashes, type FROM event WHERE position = {position}")[0]

    def update(setting: str, *values: object) -> None:
        with closing(database.connect(log_path, access="write", synchronous="OFF")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DROP TRIGGER event_update")
            connection.execute(f"UPDATE event SET {setting} WHERE position = {position}", values)
            connection.execute(sql)
            connection.execute("COMMIT")

    update(what)
    yield
    update("body = ?, hashes = ?, type = ?", *before)


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("body = CAST(replace(body, 'text 4', 'text 5') AS BLOB)", "EDIT"),
        ("hashes = zeroblob(length(hashes))", "EDIT"),
        ("type = 'Other'", "COLUMN"),
    ],
)
def test_a_damaged_event_is_found(server: Server, api: Api, what: str, kind: str) -> None:
    log_path = server.data / "log.db"
    [(position,)] = rows(log_path, "SELECT position FROM event WHERE instr(body, 'text 4') LIMIT 1")
    with event_changed(log_path, position, what):
        scrubbed = scrub(api)
        assert api.list("scrub").images
    assert scrubbed.said() == [(kind, pb.LOG, position)]
    assert scrubbed.findings[0].remedy == "restore the log from a backup"
    assert scrub(api).findings == []


def test_a_damaged_row_is_found(server: Server, api: Api) -> None:
    path = projection(server)
    [(since, actor)] = rows(path, "SELECT since, actor FROM operation WHERE method LIKE '%/Delete' LIMIT 1")
    execute(path, f"UPDATE operation SET actor = 'mallory' WHERE since = {since}")
    try:
        scrubbed = scrub(api)
    finally:
        execute(path, f"UPDATE operation SET actor = '{actor}' WHERE since = {since}")
    kinds = {(kind, position) for kind, _, position in scrubbed.said()}
    assert kinds == {("PROJECTION", since)}
    assert "rebuild" in scrubbed.findings[0].remedy


def test_a_damaged_blob_is_found(server: Server, api: Api) -> None:
    file = blob_files(server)[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        scrubbed = scrub(api)
    finally:
        file.write_bytes(whole)
    [one] = scrubbed.findings
    assert (one.kind, one.part) == ("BLOB", pb.BLOBS)
    assert f"blob {file.name} is damaged: its bytes have another digest" in one.message
    assert one.remedy == "restore it from a backup or import it again"
    [(users,)] = rows(
        projection(server),
        f"SELECT group_concat(since) FROM image WHERE sha256 = '{file.name}' AND until IS NULL",
    )
    assert str(one.position) in users.split(",")


def test_a_blob_of_another_length_and_a_missing_one_are_found(server: Server, api: Api) -> None:
    short, gone = sorted(file for file in blob_files(server) if file.stat().st_size == BLOB_BYTES)
    whole = short.read_bytes()
    short.write_bytes(whole[:-512])
    hidden = gone.rename(server.data / "kept")
    try:
        scrubbed = scrub(api)
    finally:
        short.write_bytes(whole)
        hidden.rename(gone)
    messages = [one.message.partition(": ")[2] for one in scrubbed.findings]
    assert messages == [
        f"blob {short.name} is damaged: its file has {BLOB_BYTES - 512} bytes instead of {BLOB_BYTES}",
        f"blob {gone.name} is not in the store",
    ]


def test_each_finding_is_logged_once(server: Server, api: Api) -> None:
    file = blob_files(server)[0]
    whole = file.read_bytes()
    before = server.stderr_path.stat().st_size
    file.write_bytes(b"x")
    try:
        scrub(api)
    finally:
        file.write_bytes(whole)
    logged = server.stderr()[before:]
    assert logged.count(" ERROR ") == 1
    assert "kind=BLOB" in logged
    assert file.name in logged


# How it ends, and what it does to others.


def under_way(api: Api) -> Any:
    """A call whose scrub has read a page and will wait for long."""
    call = scrubbing(api, rate=CRAWL)
    assert next(call).progress.part == pb.LOG
    return call


def test_there_is_one_at_a_time_and_a_caller_who_hangs_up_ends_it(api: Api) -> None:
    call = under_way(api)
    told = refused(lambda: next(scrubbing(api)))
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "SCRUB_UNDER_WAY")
    call.cancel()
    until(lambda: _is_free(api))


def _is_free(api: Api) -> bool:
    try:
        call = scrubbing(api)
        next(call)
    except grpc.RpcError as error:
        if refusal_of(error).reason != "SCRUB_UNDER_WAY":
            raise
        return False
    call.cancel()
    return True


def test_writes_and_checkpoints_do_not_wait_for_it(server: Server, api: Api) -> None:
    """While it rests, no transaction of its own keeps anything in a write-ahead log."""
    call = under_way(api)
    api.image("busy", disk_id=api.source(b"\5" * 512, folder_id="busy").id, name="a")
    for path in (server.data / "log.db", projection(server)):
        with closing(database.connect(path, access="write", synchronous="OFF")) as connection:
            until(partial(database.checkpoint_truncate, connection))
        assert path.with_name(f"{path.name}-wal").stat().st_size == 0
    call.cancel()


def test_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server, Api(server.address) as api:
        fill(api)
        call = under_way(api)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        told = refused(lambda: list(call))
        stopping.join()
    assert (told.code, told.reason) == (Code.UNAVAILABLE, "STOPPING")
    # A connection of the scrub that were still open would have kept it.
    assert not (tmp_path / "data" / "log.db-wal").exists()
    assert "Traceback" not in server.stderr()
