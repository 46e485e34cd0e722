"""Bit rot: whatever a disk makes of a data directory, nothing wrong is served in silence.

A real server fills a directory and stops. Then one of its files is damaged, and the server's own opening code
and its reads are held against what they answered before. Of each damage one of these must be true:

- the start is refused, and what is printed names a file or position, and a remedy;
- every answer is the same as before, so the damage was in bytes that nothing depends on;
- the answers that are not the same are refusals (DATA_LOSS), or lack something, which no read can notice
  where the way to a row is what is damaged; and then a scrub finds it.

A failing case prints its seed, which IMAGELEDGER_TEST_SEED takes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from eventstore import database
from eventstore.errors import NoSuchPosition
from eventstore.event import Position, Version
from eventstore.finding import Finding
from eventstore.log import EventLog
from eventstore.reader import LogReader
from eventstore.schema import DISK_FORMAT
from projections.domain.refusals import NotFound
from projections.filters import Order, parse_filter
from projections.pages import Page
from projections.queries import Queries
from projections.store import open_queries
from server.config import Config
from server.encode import image_frame
from server.gen.yandex.cloud.compute.v1.image_service_pb2 import ListImagesResponse
from server.pace import Pace
from server.scrub import Part, Scrub
from server.start import Stores, open_stores
from server.status import refusal_of
from tests.conformance.api import Api, key, refused
from tests.harness import Server, image_of, serving
from tools.errors import explain

FLIPS = 110
FOLDER = "rotten"
FAMILIES = ("web", "dbs")
BY_ID = Order("id", descending=False)
BY_NAME = Order("name", descending=False)
REFUSALS = (StatusCode.DATA_LOSS, StatusCode.UNAVAILABLE, StatusCode.FAILED_PRECONDITION)

Ask = Callable[["Opened"], Any]


@dataclass(frozen=True, slots=True)
class Opened:
    """A directory as a server has it open."""

    stores: Stores
    queries: Queries
    log: LogReader


# What is asked.


def asks(opened: Opened) -> dict[str, Ask]:
    """Questions to a whole directory, by name: of everything that there is, now and as of the past."""
    head = opened.log.head()
    events = list(opened.log.events())
    moments = (head // 3, head // 2, head - 5)
    ids = sorted({event.resource_id for event in events if event.type == "ImageCreationStarted"})
    made: dict[str, Ask] = {
        "applied": lambda o: o.queries.applied(),
        "unfinished": lambda o: o.queries.unfinished(),
        "events": lambda o: list(o.log.events()),
        "list": lambda o: pages(o.queries, BY_ID),
        "list by name": lambda o: pages(o.queries, BY_NAME),
        "sources": lambda o: o.queries.sources(FOLDER, limit=100)[0],
        "stream": lambda o: o.log.events_of_stream(f"folder/{FOLDER}"),
    }
    for at in moments:
        made[f"list at {at}"] = lambda o, at=at: pages(o.queries, BY_ID, at=at)
    for family in FAMILIES:
        made[f"latest {family}"] = lambda o, f=family: o.queries.latest(FOLDER, f).wire
        made[f"answers {family}"] = lambda o, f=family: o.queries.family_answers(
            FOLDER, f, at=head, after=0, limit=1000
        )
        made[f"filter {family}"] = lambda o, f=family: images(
            o.queries.images(FOLDER, limit=100, order=BY_ID, conditions=parse_filter(f'family = "{f}"')).wire
        )
        for at in moments:
            made[f"latest {family} at {at}"] = lambda o, f=family, at=at: o.queries.latest(FOLDER, f, at=at)
    for image_id in ids:
        made[f"image {image_id}"] = lambda o, i=image_id: o.queries.image(i).wire
        made[f"operations {image_id}"] = lambda o, i=image_id: o.queries.operations(i, limit=100)[0]
        made[f"history {image_id}"] = lambda o, i=image_id: o.log.events_of_resource(i)
        for at in moments:
            made[f"image {image_id} at {at}"] = lambda o, i=image_id, at=at: o.queries.image(i, at=at)
    for event in events:
        made[f"event {event.position}"] = lambda o, p=event.position: o.log.body(Position(p))
        if event.operation_id is not None:
            made[f"operation {event.operation_id}"] = lambda o, i=event.operation_id: o.queries.operation(i)[
                0
            ]
        if "blob" in event.data:
            sha256 = str(event.data["blob"]["sha256"])  # type: ignore[call-overload, index]
            made[f"blob {sha256}"] = lambda o, s=sha256: b"".join(o.stores.blobs.read(s, offset=0))
            made[f"blob {sha256} is used"] = lambda o, s=sha256: o.queries.is_blob_used(s)
    return made


def pages(queries: Queries, order: Order, *, at: int | None = None) -> list[bytes]:
    """The images of a whole list, page by page."""
    found: list[bytes] = []
    page: Page | None = None
    while True:
        listing = queries.images(FOLDER, limit=7, order=order, page=page, at=at if page is None else None)
        found += images(listing.wire)
        if listing.next_page is None:
            return found
        page = listing.next_page


def images(wire: bytes) -> list[bytes]:
    return [image.SerializeToString() for image in ListImagesResponse.FromString(wire).images]


# What becomes of the answers.

SAME, REFUSED, LACKS = "same", "refused", "lacks"


def answer(opened: Opened, ask: Ask) -> Any:
    """That there is nothing is an answer, too."""
    try:
        return ask(opened)
    except (NotFound, NoSuchPosition):
        return None


def compared(opened: Opened, ask: Ask, right: Any) -> str:
    """How an answer stands to the one before the damage. Raises AssertionError for one that is wrong."""
    try:
        found = answer(opened, ask)
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None or refusal.code not in REFUSALS:
            raise AssertionError(f"a defect and no refusal: {error!r}") from error
        return REFUSED
    if found == right:
        return SAME
    if found is None:
        return LACKS
    assert isinstance(found, list), f"another answer: {found!r} instead of {right!r}"
    rest = iter(right)
    assert all(one in rest for one in found), f"more than a part: {found!r} of {right!r}"
    return LACKS


@contextmanager
def opened(directory: Path) -> Iterator[Opened]:
    """As a server does it. Raises what it raises."""
    with ExitStack() as stack:
        stores = open_stores(Config(data=directory, listen="127.0.0.1:0"), stack)
        log = stack.enter_context(LogReader.open(stores.log_path))
        queries = stack.enter_context(closing(open_queries(stores.projection, encode=image_frame)))
        yield Opened(stores, queries, log)


class Template:
    """A whole directory, and what it answers. Each case takes a copy."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        copy = directory.with_name(f"{directory.name}-asked")
        shutil.copytree(directory, copy)
        with opened(copy) as whole:
            self.asks = asks(whole)
            self.right = {name: answer(whole, ask) for name, ask in self.asks.items()}
            assert findings(whole) == []

    def copy(self, target: Path) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.directory, target))

    def examine(self, directory: Path) -> str:
        """What became of a damaged copy: `start`, if that was refused, else the worst of the answers.

        Raises AssertionError for a wrong answer, an unhelpful refusal, and damage that a scrub does not find.
        """
        try:
            with opened(directory) as damaged:
                found = Counter(compared(damaged, ask, self.right[name]) for name, ask in self.asks.items())
                if set(found) != {SAME}:
                    assert findings(damaged), f"a scrub finds nothing, and the answers are {dict(found)}"
        except AssertionError:
            raise
        except Exception as error:
            assert_helpful(error)
            return "start"
        return next(kind for kind in (LACKS, REFUSED, SAME) if kind in found)


def findings(whole: Opened) -> list[Finding]:
    """What a scrub finds, told as it should be."""
    heard = Heard()
    scrub = Scrub(
        log_path=whole.stores.log_path,
        live=lambda: whole.stores.projection,
        blobs=whole.stores.blobs,
        pace=Pace(10**12, wait=lambda seconds: None),
        listener=heard,
    )
    scrub.check_checkpoints()
    scrub.run()
    for found in heard.findings:
        assert found.remedy
        assert found.position is not None or any(name in found.message for name in NAMED), found
    return heard.findings


class Heard:
    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def progress(self, part: Part, done: int, total: int) -> None:
        pass

    def finding(self, part: Part, found: Finding) -> None:
        self.findings.append(found)


NAMED = ("log.db", "the log", "projections-", "CURRENT", "token.key", "tokens.revoked", "position", "blobs")
NAMED += ("checkpoint.key", "checkpoint.vkey", "its checkpoint of", "kept checkpoint")


def assert_helpful(error: Exception) -> None:
    """A start that is refused says what is wrong with what, and what to do."""
    told = explain(error)
    assert told is not None, f"a defect and no refusal: {error!r}"
    code, message, remedy = told
    assert code not in ("INTERNAL", "OK")
    assert any(name in message for name in NAMED), message
    assert remedy, message


# The directories.


def fill(api: Api) -> None:
    """A few hundred events: sources that stay and go, images with updates and without, some deleted."""
    disks = [api.source(bytes([number]) * 4096, folder_id=FOLDER) for number in (1, 2, 3)]
    made = []
    for number in range(30):
        disk, family = disks[number % 3], FAMILIES[number % 2]
        metadata = key(f"00000000-0000-4000-8000-{number:012}") if number % 5 == 0 else ()
        operation = api.create(FOLDER, metadata, disk_id=disk.id, name=f"image-{number}", family=family)
        made.append(image_of(operation).id)
    for number in range(100):
        api.update(
            made[number % 27], ["description", "labels"], description=f"text {number}", labels={"n": "1"}
        )
    for image_id in made[24:]:
        api.delete(image_id)
    api.remove_source(disks[2].id)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Of a server that was stopped."""
    directory = tmp_path_factory.mktemp("rot") / "data"
    with serving(directory) as server, Api(server.address) as api:
        fill(api)
    return Template(directory)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Of a server that was killed, so that its newest events are in write-ahead logs alone."""
    directory = tmp_path_factory.mktemp("rot") / "killed"
    server = Server(directory).start()
    with Api(server.address) as api:
        fill(api)
    server.kill()
    assert (directory / "log.db-wal").stat().st_size > 100_000
    return Template(directory)


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("IMAGELEDGER_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"IMAGELEDGER_TEST_SEED={seed}")
    return random.Random(seed)


# Flipped bits.


def flip(path: Path, chance: random.Random) -> str:
    """One bit of a file, most often where there is something."""
    whole = bytearray(path.read_bytes())
    used = [index for index, byte in enumerate(whole) if byte]
    index = chance.choice(used) if used and chance.random() < 0.8 else chance.randrange(len(whole))
    bit = chance.randrange(8)
    whole[index] ^= 1 << bit
    path.write_bytes(whole)
    return f"bit {bit} of byte {index} of {path.name}"


def examine_each(template: Template, folder: Path, damages: Iterator[Callable[[Path], str]]) -> Counter[str]:
    """What became of a copy for each damage."""
    counts: Counter[str] = Counter()
    for damage in damages:
        copy = template.copy(folder / "copy")
        what = damage(copy)
        try:
            counts[template.examine(copy)] += 1
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from error
    print(dict(counts))
    return counts


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("log.db", FLIPS),
        ("projections-1.db", FLIPS),
        ("CURRENT", 10),
        ("token.key", 5),
        ("checkpoint.key", 10),
        ("checkpoint.vkey", 5),
    ],
)
def test_flipped_bits(
    template: Template, tmp_path: Path, chance: random.Random, name: str, count: int
) -> None:
    counts = examine_each(template, tmp_path, iter([lambda copy: flip(copy / name, chance)] * count))
    if name.endswith(".db"):
        # Otherwise nothing was tested.
        assert counts["start"] + counts[REFUSED]


def test_flipped_bits_of_blobs(template: Template, tmp_path: Path, chance: random.Random) -> None:
    """Every byte of a blob matters."""

    def damage(copy: Path) -> str:
        blobs = sorted(path for path in (copy / "blobs").rglob("*") if path.is_file())
        return flip(chance.choice(blobs), chance)

    assert examine_each(template, tmp_path, iter([damage] * 10)) == {REFUSED: 10}


# Cut tails.


def cut(path: Path, size: int) -> str:
    os.truncate(path, size)
    return f"{path.name} cut to {size} bytes"


def test_cut_tails(template: Template, tmp_path: Path, chance: random.Random) -> None:
    """At the end of a page and inside of one, to nothing and by a byte."""

    def damages(name: str) -> Iterator[Callable[[Path], str]]:
        whole = (template.directory / name).stat().st_size
        pages = [page * 4096 for page in range(whole // 4096)]
        for size in (0, 1, 100, *chance.sample(pages, 6), *chance.sample(range(whole - 4096), 6)):
            yield lambda copy, size=size: cut(copy / name, size)

    # SQLite compares the size in the header with that of the file.
    assert set(examine_each(template, tmp_path, damages("log.db"))) == {"start"}
    # With a write-ahead log beside it, the size is what that says.
    assert examine_each(template, tmp_path, damages("projections-1.db"))["start"]


@pytest.mark.parametrize("name", ["CURRENT", "token.key", "checkpoint.key", "checkpoint.vkey"])
def test_cut_tails_of_small_files(template: Template, tmp_path: Path, name: str) -> None:
    whole = (template.directory / name).stat().st_size
    sizes = range(0, whole, max(whole // 8, 1))
    examine_each(template, tmp_path, iter([lambda copy, size=size: cut(copy / name, size) for size in sizes]))


def test_cut_tails_of_blobs(template: Template, tmp_path: Path) -> None:
    def damage(copy: Path, size: int) -> str:
        return cut(min(path for path in (copy / "blobs").rglob("*") if path.is_file()), size)

    sizes = (0, 1, 2048, 4095)
    cuts = iter([lambda copy, size=size: damage(copy, size) for size in sizes])
    assert examine_each(template, tmp_path, cuts) == {REFUSED: len(sizes)}


# Write-ahead logs: SQLite takes what it finds damaged in one, and all behind it, for never written.


@pytest.mark.parametrize("kind", ["cut", "flip"])
def test_a_damaged_write_ahead_log_of_the_log(
    killed: Template, tmp_path: Path, chance: random.Random, kind: str
) -> None:
    """Events that are lost so were applied, and the projection says how far: the start is refused."""
    name = "log.db-wal"
    size = (killed.directory / name).stat().st_size

    def damage(copy: Path) -> str:
        return cut(copy / name, chance.randrange(size)) if kind == "cut" else flip(copy / name, chance)

    counts = examine_each(killed, tmp_path, iter([damage] * 15))
    assert set(counts) <= {"start", SAME}
    assert counts["start"] > 10


@pytest.mark.parametrize("kind", ["cut", "flip"])
def test_a_damaged_write_ahead_log_of_the_projection(
    killed: Template, tmp_path: Path, chance: random.Random, kind: str
) -> None:
    """What is lost so is made again of the log."""
    name = "projections-1.db-wal"
    size = (killed.directory / name).stat().st_size

    def damage(copy: Path) -> str:
        return cut(copy / name, chance.randrange(size)) if kind == "cut" else flip(copy / name, chance)

    counts = examine_each(killed, tmp_path, iter([damage] * 8))
    assert counts == {SAME: 8}


# Events that are whole, in the wrong place.


@contextmanager
def behind_its_back(path: Path) -> Iterator[database.Connection]:
    """A log, without the triggers that forbid it to be changed; they are back at the end."""
    with closing(database.connect(path, access="write", synchronous="OFF")) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        for _, sql in triggers:
            connection.execute(sql)


@pytest.mark.parametrize("what", ["body", "body, hashes", "the row"])
def test_two_events_that_changed_places(
    template: Template, tmp_path: Path, chance: random.Random, what: str
) -> None:
    """Reads refuse both, and a scrub says that it is a reorder, where."""
    copy = template.copy(tmp_path / "copy")
    head = len(template.right["events"])
    one, other = sorted(chance.sample(range(2, head - 5), 2))
    with behind_its_back(copy / "log.db") as connection:
        if what == "the row":
            for before, after in ((one, -1), (other, one), (-1, other)):
                connection.execute("UPDATE event SET position = ? WHERE position = ?", (after, before))
        else:
            select = f"SELECT {what} FROM event WHERE position = ?"
            cells = [connection.execute(select, (position,)).fetchone() for position in (other, one)]
            setting = ", ".join(f"{name} = ?" for name in what.split(", "))
            for position, values in zip((one, other), cells, strict=True):
                connection.execute(f"UPDATE event SET {setting} WHERE position = ?", (*values, position))
    if template.examine(copy) != REFUSED:
        return  # A hash that a start looks at is in one of the two rows: it has refused.
    with opened(copy) as damaged:
        told = {(found.kind, found.position) for found in findings(damaged) if found.kind == "REORDER"}
        for position in (one, other):
            assert compared(damaged, template.asks[f"event {position}"], template.right) == REFUSED
    assert told == {("REORDER", one), ("REORDER", other)}


@pytest.mark.parametrize(
    ("setting", "kind"), [("note = replace(note, '=', 'A')", "SIGNATURE"), ("note = 'no note'", "SIGNATURE")]
)
def test_an_older_checkpoint_that_is_not_what_was_signed(
    template: Template, tmp_path: Path, setting: str, kind: str
) -> None:
    """A start looks at the newest one alone."""
    copy = template.copy(tmp_path / "copy")
    with serving(copy):
        pass
    with behind_its_back(copy / "log.db") as connection:
        [(oldest, newest)] = connection.execute("SELECT min(size), max(size) FROM checkpoint").fetchall()
        assert oldest < newest
        connection.execute(f"UPDATE checkpoint SET {setting} WHERE size = {oldest}")
    with opened(copy) as damaged:
        [one] = findings(damaged)
    assert one.kind == kind
    assert f"the kept checkpoint of size {oldest}" in one.message


# Files of others.


def refused_start(directory: Path) -> tuple[str, str, str]:
    """Code, message and remedy of a start that must be refused."""
    with pytest.raises(Exception) as raised, opened(directory):  # noqa: PT011
        pass
    assert_helpful(raised.value)
    told = explain(raised.value)
    assert told is not None
    code, message, remedy = told
    return code, message, remedy or ""


def log_id(directory: Path) -> str:
    with LogReader.open(directory / "log.db") as log:
        return log.log_id


def replace_file(name: str, *, of: Path, into: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        (into / (name + ending)).unlink(missing_ok=True)
        if (of / (name + ending)).exists():
            shutil.copyfile(of / (name + ending), into / (name + ending))


@pytest.mark.parametrize("name", ["log.db", "projections-1.db"])
def test_a_file_of_another_server(template: Template, killed: Template, tmp_path: Path, name: str) -> None:
    """Whole, and of another log: both are named, by their ids."""
    copy = template.copy(tmp_path / "copy")
    replace_file(name, of=killed.directory, into=copy)
    code, message, remedy = refused_start(copy)
    assert code == "FAILED_PRECONDITION"
    assert log_id(template.directory) in message
    assert log_id(killed.directory) in message
    assert "rebuild" in remedy or "key of this log" in remedy


@pytest.mark.parametrize("name", ["log.db", "projections-1.db"])
def test_an_older_copy_of_a_file(template: Template, tmp_path: Path, name: str) -> None:
    """A log that lacks what was applied is refused, with both positions; a projection catches up."""
    older = template.copy(tmp_path / "older")
    newer = template.copy(tmp_path / "newer")
    with serving(newer):
        pass
    replace_file(name, of=older, into=newer)
    if name == "log.db":
        _, message, _ = refused_start(newer)
        head = len(template.right["events"])
        assert f"position {head + 1}" in message
        assert f"ends at {head}" in message
        return
    with opened(newer) as caught_up:
        head = caught_up.log.head()
        assert caught_up.queries.applied()[1] == head > len(template.right["events"])
        assert findings(caught_up) == []


@pytest.mark.parametrize("name", ["log.db", "projections-1.db"])
def test_two_histories_of_one_log(template: Template, tmp_path: Path, name: str) -> None:
    """Two servers that went on from the same copy: as long as each other, and with another last event."""
    one, other = (template.copy(tmp_path / directory) for directory in ("one", "other"))
    for directory in (one, other):
        with serving(directory):
            pass
    replace_file(name, of=other, into=one)
    _, message, remedy = refused_start(one)
    assert f"position {len(template.right['events']) + 1}" in message
    assert "rebuild" in remedy


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8192, b"no database " * 1000], ids=["empty", "zeros", "text"]
)
@pytest.mark.parametrize("name", ["log.db", "projections-1.db", "CURRENT", "token.key"])
def test_a_file_that_is_none_of_ours(template: Template, tmp_path: Path, name: str, content: bytes) -> None:
    """It is refused, and left as it is: somebody may want it back."""
    copy = template.copy(tmp_path / "copy")
    (copy / name).write_bytes(content)
    code, message, _ = refused_start(copy)
    assert code != "UNAVAILABLE"
    if (name, content) == ("log.db", b""):
        # It is what a crash leaves of a log that is being made, but for the key of another one beside it.
        assert "checkpoint.key" in message
        return
    assert name in message
    assert (copy / name).read_bytes() == content


def test_a_database_of_another_application(template: Template, tmp_path: Path) -> None:
    for name in ("log.db", "projections-1.db"):
        copy = template.copy(tmp_path / "copy")
        (copy / name).unlink()
        with closing(database.connect(copy / name, access="create", synchronous="OFF")) as connection:
            connection.execute("CREATE TABLE place (name TEXT)")
        _, message, _ = refused_start(copy)
        assert name in message


# Newer software was here.


def test_a_log_of_a_newer_format(template: Template, tmp_path: Path) -> None:
    copy = template.copy(tmp_path / "copy")
    with closing(database.connect(copy / "log.db", access="write", synchronous="OFF")) as connection:
        connection.execute(f"PRAGMA user_version = {DISK_FORMAT + 1}")
    code, message, remedy = refused_start(copy)
    assert code == "FAILED_PRECONDITION"
    assert f"log.db has disk format {DISK_FORMAT + 1}, this software reads up to {DISK_FORMAT}" in message
    assert "run the version that wrote it" in remedy


def test_a_projection_of_a_newer_version_is_not_read_and_not_lost(template: Template, tmp_path: Path) -> None:
    """Another one is built, with the same answers; it has a name of its own."""
    copy = template.copy(tmp_path / "copy")
    with closing(
        database.connect(copy / "projections-1.db", access="write", synchronous="OFF")
    ) as connection:
        connection.execute("UPDATE applied SET projector_version = projector_version + 1")
        connection.execute("UPDATE image SET wire = x'00', name = 'newer-' || name")
    assert template.examine(copy) == SAME
    assert (copy / "CURRENT").read_text() != "projections-1.db\n"


@pytest.mark.parametrize("what", ["type", "schema"])
def test_an_event_of_newer_software(template: Template, tmp_path: Path, what: str) -> None:
    """A projection that has not come to it yet stops there, and names its position."""
    copy = template.copy(tmp_path / "copy")
    with closing(EventLog.open(copy / "log.db")) as log:
        position = Position(log.head() + 1)
        last = log.event(log.head())
        version = Version(log.stream_version("log") + 1)
        newer = last._replace(position=position, stream="log", version=version, at=last.at + 1)
        newer = newer._replace(type="ImageSigned") if what == "type" else newer._replace(schema=99)
        log.append([newer], expected_head=Position(position - 1))
    code, message, _ = refused_start(copy)
    assert code == "FAILED_PRECONDITION"
    assert f"position {position}" in message


# The same by a real server and the command line.


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


def imageledger(*arguments: str) -> Ended:
    ended = subprocess.run(
        [sys.executable, "-m", "tools.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def serve(directory: Path) -> Ended:
    return imageledger("serve", "--data", str(directory), "--listen", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("name", "code"), [("log.db", "DATA_LOSS"), ("projections-1.db", "FAILED_PRECONDITION")]
)
def test_a_server_that_does_not_start_says_why(
    template: Template, tmp_path: Path, name: str, code: str
) -> None:
    """One line with code and file, one with what to do, exit code 1, and nothing on stdout."""
    copy = template.copy(tmp_path / "copy")
    cut(copy / name, 8192)
    ended = serve(copy)
    assert (ended.code, ended.out) == (1, "")
    first, remedy = ended.err.splitlines()
    assert first.startswith(f"error: {code}: ")
    assert name in first
    assert remedy


def test_a_server_with_damage_serves_the_rest_and_scrub_names_it(template: Template, tmp_path: Path) -> None:
    """An event, a row and a blob: each is DATA_LOSS where it is asked for, and found where it is not."""
    copy = template.copy(tmp_path / "copy")
    with behind_its_back(copy / "log.db") as connection:
        connection.execute("UPDATE event SET body = zeroblob(length(body)) WHERE position = 50")
    with closing(
        database.connect(copy / "projections-1.db", access="write", synchronous="OFF")
    ) as connection:
        [(damaged, since)] = connection.execute("SELECT id, since FROM image WHERE until IS NULL LIMIT 1")
        connection.execute("UPDATE image SET wire = zeroblob(length(wire)) WHERE since = ?", (since,))
        [(whole,)] = connection.execute(
            "SELECT id FROM image WHERE until IS NULL AND id != ? LIMIT 1", (damaged,)
        )
    blob = min(path for path in (copy / "blobs").rglob("*") if path.is_file())
    blob.write_bytes(b"\xff" + blob.read_bytes()[1:])
    with serving(copy) as server, Api(server.address) as api:
        assert api.get(whole).id == whole
        assert refused(lambda: api.get(damaged)).code == StatusCode.DATA_LOSS
        ended = imageledger("scrub", "--endpoint", server.address, "--json")
    assert ended.code == 1
    made = json.loads(ended.out)
    assert made["ok"] is False
    told = {(found["kind"], found["position"]) for found in made["findings"]}
    assert {("EDIT", 50), ("PROJECTION", since)} <= told
    assert [found["kind"] for found in made["findings"]].count("BLOB") == 1
    lines = ended.err.splitlines()
    assert [line for line in lines if line.startswith("error: EDIT: position 50: ")]
    assert "restore the log from a backup" in lines
    assert "restore it from a backup or import it again" in lines
