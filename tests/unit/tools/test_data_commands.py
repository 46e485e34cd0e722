"""rebuild, replay and export over real logs, beside a real server and without one."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf import json_format

from eventstore import database
from eventstore.event import Position
from eventstore.lock import DirectoryLock
from eventstore.reader import LogReader
from projections.exported import rows_of_log, state_digest
from projections.moments import AtTime, format_time
from projections.store import ProjectionFiles, digest_of, open_live
from server.encode import image_frame
from server.gen.pool import POOL
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from tests.harness import IMAGES, Client, serving
from tests.unit.projections.image_log import LOG_ID, START_NS, STEP_NS, ImageLog, write_everything
from tools.cli import run
from tools.errors import CommandFailed
from tools.export_folder import MANIFEST, ExportFolder
from tools.moments import resolve

FOLDERS = ("f1", "f2")
FULL_DISK = Path("/dev/full")


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in [name for name in os.environ if name.startswith("IMAGELEDGER_")]:
        monkeypatch.delenv(name)

    def ran(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return ran


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as a stopped server leaves it, with everything that can happen to images."""
    directory = tmp_path / "data"
    write_everything(directory)
    with LogReader.open(directory / "log.db") as log:
        open_live(ProjectionFiles(directory), log, encode=image_frame)
    return directory


@pytest.fixture
def reader(data: Path) -> Iterator[LogReader]:
    with LogReader.open(data / "log.db") as log:
        yield log


def assert_refused(ran: Ran, code: str, *words: str) -> None:
    assert ran.code == 1
    first, *rest = ran.err.splitlines()
    assert first.startswith(f"error: {code}: ")
    assert len(rest) == 1, f"one line of remedy, not {rest}"
    for word in words:
        assert word in ran.err


def damage(data: Path, sql: str) -> None:
    path = ProjectionFiles(data).current()
    if path is None:
        raise AssertionError("there is no projection")
    connection = database.connect(path, access="write", synchronous="NORMAL")
    assert connection.execute(sql).rowcount == 1
    connection.close()


# rebuild


def test_rebuild_gives_the_same_digest_twice(cli: Run, data: Path, reader: LogReader) -> None:
    ran = cli("rebuild", "--data", data, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert list(ran.json) == ["events", "seconds", "digest_before", "digest_after"]
    assert ran.json["events"] == reader.head()
    assert ran.json["digest_before"] == ran.json["digest_after"]
    live = ProjectionFiles(data).current()
    assert live is not None
    assert live.name == "projections-2.db"
    assert digest_of(live) == ran.json["digest_after"]


def test_rebuild_without_an_old_projection_has_no_digest_before(cli: Run, tmp_path: Path) -> None:
    write_everything(tmp_path / "data")
    ran = cli("rebuild", "--data", tmp_path / "data", "--json")
    assert (ran.code, ran.json["digest_before"]) == (0, None)
    ran = cli("rebuild", "--data", tmp_path / "data")
    assert ran.code == 0
    assert ran.out.startswith("events")


def test_rebuild_tells_of_a_digest_that_differs_and_mends_it(cli: Run, data: Path) -> None:
    damage(data, "DELETE FROM image_life WHERE id = 'img-a'")
    ran = cli("rebuild", "--data", data, "--json")
    assert_refused(ran, "DATA_LOSS", "The new projection is live now", str(data / "projections-1.db"))
    assert ran.json["digest_before"] != ran.json["digest_after"]
    again = cli("rebuild", "--data", data, "--json")
    assert (again.code, again.err) == (0, "")
    assert again.json["digest_before"] == ran.json["digest_after"]


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        pytest.param(
            "UPDATE image SET state = x'80' WHERE id = 'img-i' AND until IS NULL", "image", id="image"
        ),
        pytest.param(
            "UPDATE family_latest SET image_id = 'img-x' WHERE until IS NULL AND folder_id = 'f1'",
            "family_latest",
            id="family",
        ),
    ],
)
def test_rebuild_warns_of_a_damaged_row_and_keeps_it(cli: Run, data: Path, sql: str, table: str) -> None:
    damage(data, sql)
    ran = cli("rebuild", "--data", data, "--json")
    assert (ran.code, ran.json["digest_before"]) == (0, None)
    kept = data / "projections-1.db"
    assert ran.err.startswith(
        f"warning: the old projection is damaged: the projection's row of table {table} "
    )
    assert f"It is kept as {kept}" in ran.err
    assert kept.exists()
    assert ran.json["kept"] == str(kept)
    again = cli("rebuild", "--data", data, "--json")
    assert (again.code, again.json["digest_before"], again.err) == (0, ran.json["digest_after"], "")


def test_rebuild_of_a_projection_that_is_no_database(cli: Run, data: Path) -> None:
    live = ProjectionFiles(data).current()
    assert live is not None
    live.write_bytes(b"not a database at all" * 100)
    ran = cli("rebuild", "--data", data, "--json")
    assert (ran.code, ran.json["digest_before"]) == (0, None)


def test_rebuild_names_who_holds_the_directory(cli: Run, data: Path) -> None:
    with DirectoryLock(data, command="imageledger serve", since="today"):
        ran = cli("rebuild", "--data", data)
    assert_refused(ran, "FAILED_PRECONDITION", f"pid {os.getpid()}, imageledger serve", "stop that one")
    assert ran.out == ""


@pytest.mark.parametrize("command", ["rebuild", "replay", "export"])
def test_a_folder_without_a_log_is_left_as_it_is(cli: Run, tmp_path: Path, command: str) -> None:
    arguments = ["--format", "jsonl", "--to", str(tmp_path / "out")] if command == "export" else []
    assert_refused(cli(command, "--data", tmp_path, *arguments), "NOT_FOUND", "no such file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--online", "--prepare"], id="two-ways"),
        pytest.param(["--online", "--data", "."], id="whose-data"),
    ],
)
def test_rebuild_refuses_options_that_contradict_each_other(cli: Run, arguments: list[str]) -> None:
    assert cli("rebuild", *arguments).code == 2


def test_rebuild_prepare_makes_a_projection_beside_the_live_one(
    cli: Run, data: Path, reader: LogReader
) -> None:
    live = ProjectionFiles(data).current()
    assert live is not None
    with DirectoryLock(data, command="imageledger serve", since="today"):
        ran = cli("rebuild", "--prepare", "--data", data, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert list(ran.json) == ["events", "seconds", "digest_before", "digest_after"]
    assert ran.json["events"] == reader.head()
    # This one is of the same version as the live one, so that there is something to compare.
    assert ran.json["digest_before"] == ran.json["digest_after"] == digest_of(live)
    assert ProjectionFiles(data).current() == live


def test_rebuild_prepare_tells_of_a_live_projection_that_is_wrong(cli: Run, data: Path) -> None:
    damage(data, "DELETE FROM image_life WHERE id = 'img-a'")
    ran = cli("rebuild", "--prepare", "--data", data, "--json")
    assert_refused(ran, "DATA_LOSS", "The live projection may answer wrongly", "--online")


def test_rebuild_prepare_warns_of_a_damaged_live_projection(cli: Run, data: Path) -> None:
    damage(data, "UPDATE image SET state = x'80' WHERE id = 'img-i' AND until IS NULL")
    ran = cli("rebuild", "--prepare", "--data", data, "--json")
    assert (ran.code, ran.json["digest_before"]) == (0, None)
    assert "warning: the old projection is damaged" in ran.err
    assert "--online" in ran.err


# replay


def test_replay_tells_every_event_with_what_it_changed(cli: Run, data: Path, reader: LogReader) -> None:
    lines = cli("replay", "--data", data, "--json").lines
    assert [line["position"] for line in lines] == list(range(1, reader.head() + 1))
    update = next(line for line in lines if line["type"] == "ImageUpdated")
    position = update["position"]
    assert list(update.items()) == [
        ("v", 1),
        ("position", position),
        ("stream", "folder/f1"),
        ("version", update["version"]),
        ("type", "ImageUpdated"),
        ("schema", 1),
        ("at", format_time(reader.at(Position(position)))),
        ("operation_id", update["operation_id"]),
        ("resource_id", "img-b"),
        ("actor", "alice"),
        ("auth", "dev"),
        ("request_id", f"request-{update['operation_id']}"),
        ("method", "yandex.cloud.compute.v1.ImageService/Update"),
        ("key", "0b9dcb1c-8a52-4c6e-9a4e-6f1c2d3e4f50"),
        ("request", "ab" * 32),
        ("reason", "назвать иначе"),
        ("data", {"labels": {}, "name": "web-one", "update_mask": ["labels", "name"]}),
        (
            "changes",
            [
                {"field": "name", "old": "web-1", "new": "web-one"},
                {"field": "labels", "old": {"env": "prod", "я": "да"}, "new": None},
            ],
        ),
    ]


def test_replay_from_the_middle_knows_what_was_before(cli: Run, data: Path, reader: LogReader) -> None:
    whole = cli("replay", "--data", data, "--json").lines
    for first in range(1, reader.head() + 1):
        part = cli("replay", "--data", data, "--json", "--from", first, "--until", reader.head() - 1)
        assert part.lines == whole[first - 1 : -1] if first < reader.head() else part.code == 1


@pytest.mark.parametrize("option", ["--resource", "--image"])
@pytest.mark.parametrize("resource", ["img-b", "img-g", "snap1"])
def test_replay_of_one_resource(cli: Run, data: Path, option: str, resource: str) -> None:
    whole = cli("replay", "--data", data, "--json").lines
    expected = [line for line in whole if line.get("resource_id") == resource]
    assert cli("replay", "--data", data, "--json", option, resource).lines == expected
    middle = expected[len(expected) // 2]["position"]
    part = cli("replay", "--data", data, "--json", option, resource, "--from", middle)
    assert part.lines == [line for line in expected if line["position"] >= middle]


def test_replay_of_a_resource_in_pages(cli: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cli("replay", "--data", data, "--json", "--image", "img-b")
    monkeypatch.setattr("projections.replay.CHUNK_EVENTS", 2)
    assert cli("replay", "--data", data, "--json", "--image", "img-b") == whole


def test_replay_of_an_id_never_seen_says_so(cli: Run, data: Path) -> None:
    ran = cli("replay", "--data", data, "--json", "--image", "nothing")
    assert (ran.code, ran.out) == (0, "")
    assert "nothing" in ran.err


def test_replay_for_people_shows_no_control_characters(cli: Run, data: Path) -> None:
    ran = cli("replay", "--data", data)
    assert ran.code == 0
    assert '    name: "web-1" → "web-one"\n' in ran.out
    assert "    reason: назвать иначе\n" in ran.out
    assert "\x1b" not in ran.out
    state = cli("replay", "--data", data, "--state")
    assert state.out.splitlines()[1].split()[:2] == ["ID", "STATUS"]
    assert "img-i" in state.out


def test_replay_state_of_one_image(cli: Run, data: Path) -> None:
    ran = cli("replay", "--data", data, "--state", "--json", "--image", "img-i")
    assert [image["id"] for image in ran.json["images"]] == ["img-i"]


def test_replay_and_export_agree_with_a_server_as_of_every_position(
    cli: Run, data: Path, tmp_path: Path
) -> None:
    with serving(data) as server, Client(server.address) as client:
        head = cli("replay", "--data", data, "--state", "--json").json["position"]
        for at in range(1, head + 1):
            state = cli("replay", "--data", data, "--state", "--until", at, "--json")
            assert state.json == {"position": at, "images": answers_as_of(client, at)}
            manifest = cli(*export_command(data, tmp_path / "out"), "--at", at, "--overwrite", "--json").json
            assert manifest["position"] == at
            assert_files_are_as_named(tmp_path / "out", manifest)
            rows = rows_in(tmp_path / "out" / "images.jsonl")
            assert [row["id"] for row in rows] == [image["id"] for image in state.json["images"]]
            with LogReader.open(data / "log.db") as log:
                assert manifest["projection_digest"] == state_digest(rows_of_log(log, at=at))
                assert manifest["at"] == format_time(log.at(Position(at)))


def answers_as_of(client: Client, at: int) -> list[Any]:
    images = []
    as_of = [("x-as-of", str(at))]
    for folder_id in FOLDERS:
        request = image_service_pb2.ListImagesRequest(folder_id=folder_id, page_size=1000)
        listed = client.call(IMAGES, "List", request, image_service_pb2.ListImagesResponse, as_of)
        for image in listed.images:
            got = client.call(
                IMAGES, "Get", image_service_pb2.GetImageRequest(image_id=image.id), image_pb2.Image, as_of
            )
            assert got == image
            images.append(
                json_format.MessageToDict(got, preserving_proto_field_name=True, descriptor_pool=POOL)
            )
    return sorted(images, key=lambda image: str(image["id"]))


# moments


@pytest.mark.parametrize("arguments", [["replay", "--until"], ["replay", "--from"], ["export", "--at"]])
@pytest.mark.parametrize(
    ("moment", "words"),
    [
        pytest.param("9999", "position 9999 is beyond the head of the log", id="beyond"),
        pytest.param("2001-01-01T00:00:00Z", "begins at 2023-11-14T22:13:20.000000000Z", id="before"),
        pytest.param("2200-01-01T00:00:00Z", "is in the future", id="future"),
    ],
)
def test_moments_out_of_range(
    cli: Run, data: Path, tmp_path: Path, arguments: list[str], moment: str, words: str
) -> None:
    command, option = arguments
    more = ["--format", "jsonl", "--to", tmp_path / "out"] if command == "export" else []
    assert_refused(cli(command, "--data", data, *more, option, moment), "OUT_OF_RANGE", words)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["replay", "--until", "yesterday"], id="no-moment"),
        pytest.param(["replay", "--until", "2026-11-23"], id="no-time"),
        pytest.param(["replay", "--from", "01"], id="leading-zero"),
        pytest.param(["replay", "--state", "--from", "1"], id="from-with-state"),
        pytest.param(["replay", "--state", "--events"], id="two-answers"),
        pytest.param(["export", "--format", "jsonl"], id="no-target"),
        pytest.param(["export", "--to", "x"], id="no-format"),
        pytest.param(["export", "--to", "x", "--format", "xml"], id="unknown-format"),
        pytest.param(["export", "--to", "x", "--format", "jsonl", "--from", "1"], id="from-without-events"),
        pytest.param(
            ["export", "--to", "-", "--format", "jsonl", "--what", "images", "--what", "events"],
            id="two-on-stdout",
        ),
    ],
)
def test_wrong_usage(cli: Run, data: Path, arguments: list[str]) -> None:
    ran = cli(*arguments, "--data", data)
    assert (ran.code, ran.out) == (2, "")


def test_a_time_is_the_last_position_at_or_before_it(cli: Run, data: Path, reader: LogReader) -> None:
    at = reader.at(Position(5))
    for text, position in ((format_time(at), 5), (format_time(at - 1), 3), ("head", reader.head()), ("0", 0)):
        state = cli("replay", "--data", data, "--state", "--json", "--until", text)
        assert state.json["position"] == position
    lines = cli("replay", "--data", data, "--json", "--from", format_time(at), "--until", 5).lines
    assert [line["position"] for line in lines] == [5]


def test_an_empty_range_is_refused(cli: Run, data: Path, tmp_path: Path) -> None:
    assert_refused(cli("replay", "--data", data, "--from", 5, "--until", 4), "INVALID_ARGUMENT", "5", "4")
    ran = cli(*export_command(data, tmp_path / "out"), "--what", "events", "--from", 5, "--at", 4)
    assert_refused(ran, "INVALID_ARGUMENT", "5", "4")
    assert_refused(cli(*export_command(data, tmp_path / "out"), "--at", 0), "OUT_OF_RANGE", "position 0")


def test_a_new_time_is_answered_when_nothing_can_be_stamped_at_it_any_more(reader: LogReader) -> None:
    newest = reader.at(reader.head())
    slept: list[float] = []
    now = newest + 10**12

    def clock() -> int:
        return now

    assert resolve(reader, AtTime(now - 500_000_000), clock=clock, sleep=slept.append) == reader.head()
    assert slept == [1.5]
    resolve(reader, AtTime(now - 2_000_000_000), clock=clock, sleep=slept.append)
    resolve(reader, AtTime(newest), clock=lambda: newest, sleep=slept.append)
    assert slept == [1.5]
    with pytest.raises(CommandFailed, match="in the future"):
        resolve(reader, AtTime(now + 1), clock=clock)


def test_an_unknown_event_type_stops_with_its_position(cli: Run, data: Path, tmp_path: Path) -> None:
    with ImageLog(data) as log:
        log.add(("ImageFrobbed", {}), of="img-i", folder="f1", method="x/Y")
        head = log.log.head()
    for command in (
        ["replay"],
        ["replay", "--state"],
        ["rebuild"],
        export_command(data, tmp_path / "out")[:1],
    ):
        more = export_command(data, tmp_path / "out")[1:] if command == ["export"] else ["--data", data]
        ran = cli(*command, *more)
        assert ran.code == 1
        assert f"error: FAILED_PRECONDITION: position {head}: event type 'ImageFrobbed'" in ran.err
    assert not (tmp_path / "out" / MANIFEST).exists()


# export


def export_command(data: Path, to: Path | str) -> list[object]:
    return ["export", "--data", data, "--format", "jsonl", "--to", to]


def rows_in(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_files_are_as_named(folder: Path, manifest: Any) -> None:
    assert json.loads((folder / MANIFEST).read_bytes()) == manifest
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(
        [MANIFEST, *(file["name"] for file in manifest["files"])]
    )
    for file in manifest["files"]:
        assert list(file) == ["name", "rows", "bytes", "sha256"]
        content = (folder / file["name"]).read_bytes()
        assert file["bytes"] == len(content)
        assert file["rows"] == content.count(b"\n")
        assert file["sha256"] == hashlib.sha256(content).hexdigest()


def test_export_of_images_and_events(cli: Run, data: Path, tmp_path: Path, reader: LogReader) -> None:
    out = tmp_path / "deep" / "out"
    ran = cli(
        *export_command(data, out), "--what", "images", "--what", "events", "--what", "images", "--json"
    )
    assert (ran.code, ran.err) == (0, "")
    manifest = ran.json
    keys = "export_id position at log_id format what files projection_digest checkpoint previous"
    assert list(manifest) == keys.split()
    assert_files_are_as_named(out, manifest)
    head = reader.head()
    assert manifest == {
        "export_id": manifest["export_id"],
        "position": head,
        "at": format_time(reader.at(head)),
        "log_id": LOG_ID,
        "format": "jsonl",
        "what": ["images", "events"],
        "files": manifest["files"],
        "projection_digest": state_digest(rows_of_log(reader, at=head)),
        "checkpoint": None,
        "previous": None,
    }
    assert [file["name"] for file in manifest["files"]] == ["images.jsonl", "events.jsonl"]
    replayed = cli("replay", "--data", data, "--json").lines
    for line in replayed:
        del line["changes"]
    events = rows_in(out / "events.jsonl")
    assert [list(event.items()) for event in events] == [list(line.items()) for line in replayed]


def test_a_row_of_an_image(cli: Run, data: Path) -> None:
    rows = cli(*export_command(data, "-"), "--at", 5).lines
    assert [list(row.items()) for row in rows] == [
        [
            ("id", "img-b"),
            ("folder_id", "f1"),
            ("created_at", format_time((START_NS + 3 * STEP_NS) // 10**9 * 10**9)),
            ("name", "web-1"),
            ("labels", {"env": "prod", "я": "да"}),
            ("family", "web"),
            ("storage_size", 4096),
            ("min_disk_size", 4194304),
            ("status", "READY"),
            ("os", "LINUX"),
            ("pooled", True),
            ("hardware_generation", {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V1"}}),
            ("size", 1048576),
        ]
    ]


def test_export_of_one_folder_has_the_digest_of_all(cli: Run, data: Path, tmp_path: Path) -> None:
    whole = cli(*export_command(data, tmp_path / "a"), "--what", "events", "--json").json
    some = cli(
        *export_command(data, tmp_path / "b"),
        "--what",
        "events",
        "--what",
        "images",
        "--folder",
        "f2",
        "--json",
    ).json
    assert some["projection_digest"] == whole["projection_digest"]
    assert {row["folder_id"] for row in rows_in(tmp_path / "b" / "images.jsonl")} == {"f2"}
    events = [row for row in rows_in(tmp_path / "a" / "events.jsonl") if row["stream"] == "folder/f2"]
    assert rows_in(tmp_path / "b" / "events.jsonl") == events


def test_export_of_a_range_of_events_includes_both_ends(cli: Run, data: Path) -> None:
    ran = cli(*export_command(data, "-"), "--what", "events", "--from", 3, "--at", 7)
    assert [line["position"] for line in ran.lines] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("how", ["none", "behind", "foreign", "torn"])
def test_export_without_a_usable_projection_reads_the_log(
    cli: Run, data: Path, tmp_path: Path, how: str
) -> None:
    expected = cli(*export_command(data, tmp_path / "a"), "--json").json
    match how:
        case "none":
            (data / "CURRENT").unlink()
        case "behind":
            with ImageLog(data) as log:
                log.update("img-i", name="later")
                head = log.log.head()
            expected = None
        case "foreign":
            damage(data, "UPDATE applied SET log_id = 'another'")
        case _:
            live = ProjectionFiles(data).current()
            assert live is not None
            live.write_bytes(b"no database")
    manifest = cli(*export_command(data, tmp_path / "b"), "--json").json
    assert_files_are_as_named(tmp_path / "b", manifest)
    if expected is None:
        assert manifest["position"] == head
        assert rows_in(tmp_path / "b" / "images.jsonl")[-1]["name"] == "later"
    else:
        assert manifest["files"] == expected["files"]
        assert manifest["projection_digest"] == expected["projection_digest"]


def test_export_does_not_serve_a_damaged_row(cli: Run, data: Path, tmp_path: Path) -> None:
    damage(data, "UPDATE image SET state = x'80' WHERE id = 'img-i' AND until IS NULL")
    ran = cli(*export_command(data, tmp_path / "out"))
    assert ran.code == 1
    assert ran.err.startswith("error: DATA_LOSS: ")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_is_replaced_only_when_asked(cli: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = cli(*export_command(data, out), "--what", "events", "--what", "images", "--at", 5, "--json").json
    assert_refused(cli(*export_command(data, out)), "ALREADY_EXISTS", "manifest.json", "--overwrite")
    assert_files_are_as_named(out, first)
    (out / "notes.txt").write_text("mine")
    second = cli(*export_command(data, out), "--overwrite", "--json").json
    assert second["export_id"] != first["export_id"]
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    # The events of the old export, which the new one does not have, are gone with its manifest.
    assert_files_are_as_named(out, second)


def test_a_file_of_the_same_name_is_not_replaced_unasked(cli: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("mine")
    assert_refused(cli(*export_command(data, tmp_path)), "ALREADY_EXISTS", "events.jsonl")
    cli(*export_command(data, tmp_path), "--overwrite")
    # No manifest named it: it is not this export's to remove.
    assert (tmp_path / "events.jsonl").read_text() == "mine"


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": [{"name": "../x"}]}'])
def test_overwriting_what_is_no_manifest(cli: Run, data: Path, tmp_path: Path, manifest: bytes) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "x").write_text("mine")
    (out / MANIFEST).write_bytes(manifest)
    ran = cli(*export_command(data, out), "--overwrite", "--json")
    assert_files_are_as_named(out, ran.json)
    assert (tmp_path / "x").exists()


def test_a_target_that_is_a_file_or_full(cli: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(cli(*export_command(data, tmp_path / "file")), "UNAVAILABLE", str(tmp_path / "file"))
    assert_refused(cli(*export_command(data, "/proc/nowhere")), "UNAVAILABLE", "/proc/nowhere")


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no /dev/full")
def test_a_full_disk_ends_with_one_line(data: Path) -> None:
    command = [sys.executable, "-m", "tools.cli", *map(str, export_command(data, "-")), "--what", "events"]
    with FULL_DISK.open("wb") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith(b"error: UNAVAILABLE: No space left on device")


def test_text_result_names_files_and_manifest(cli: Run, data: Path, tmp_path: Path) -> None:
    ran = cli(*export_command(data, tmp_path / "out"), "--what", "images", "--what", "events")
    images, events, manifest = ran.out.splitlines()
    assert images.split()[:2] == ["images.jsonl", "rows"]
    assert events.split()[:2] == ["events.jsonl", "rows"]
    assert str(tmp_path / "out" / MANIFEST) in manifest


def test_stdout_has_the_bytes_of_the_file(data: Path, cli: Run, tmp_path: Path) -> None:
    cli(*export_command(data, tmp_path / "out"), "--what", "events")
    command = [sys.executable, "-m", "tools.cli", *map(str, export_command(data, "-")), "--what", "events"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    written = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert written.stdout == (tmp_path / "out" / "events.jsonl").read_bytes()
    assert written.stderr == b""


# crashes


def test_an_error_half_way_leaves_nothing(tmp_path: Path) -> None:
    def lines() -> Iterator[bytes]:
        yield b"{}\n"
        raise RuntimeError("half way")

    out = tmp_path / "out"
    with (
        pytest.raises(RuntimeError, match="half way"),
        ExportFolder(out, names=["images.jsonl"], overwrite=False) as folder,
    ):
        folder.write("images.jsonl", lines())
    assert list(out.iterdir()) == []


class Crash(BaseException):
    """What no handler of errors catches, as a kill would be."""


def test_a_crash_at_any_step_of_publishing_leaves_no_manifest_that_lies(
    cli: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for step in range(1, 7):
        out = tmp_path / f"out{step}"
        old = cli(
            *export_command(data, out), "--what", "images", "--what", "events", "--at", 5, "--json"
        ).json
        with monkeypatch.context() as patched:
            crash_at(step, patched)
            try:
                code: object = cli(*export_command(data, out), "--overwrite", "--json").code
            except Crash as crash:
                code = str(crash)
        manifest = json.loads((out / MANIFEST).read_bytes()) if (out / MANIFEST).exists() else None
        if manifest is not None:
            assert_files_are_as_named(out, manifest)
        outcomes.append((code, "none" if manifest is None else "old" if manifest == old else "new"))
    assert outcomes == [
        ("unlink manifest.json", "old"),
        ("unlink images.jsonl", "none"),
        ("unlink events.jsonl", "none"),
        ("replace .images.jsonl.partial", "none"),
        ("replace .manifest.json.partial", "none"),
        (0, "new"),
    ]


def crash_at(step: int, patched: pytest.MonkeyPatch) -> None:
    """Crash instead of the step-th removal or renaming of a file, cleaning up not counted."""
    left = [step]

    def crashing(name: str) -> Callable[..., Any]:
        original = getattr(Path, name)

        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            if name == "replace" or not path.name.endswith(".partial"):
                left[0] -= 1
                if left[0] == 0:
                    raise Crash(f"{name} {path.name}")
            return original(path, *arguments, **options)

        return call

    for name in ("unlink", "replace"):
        patched.setattr(Path, name, crashing(name))


def test_an_export_that_fails_before_publishing_leaves_the_old_one(
    cli: Run, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    old = cli(*export_command(data, out), "--json").json
    damage(data, "UPDATE operation SET state = x'80' WHERE id = 'op0001'")
    assert cli(*export_command(data, out), "--overwrite").code == 1
    assert_files_are_as_named(out, old)


def test_a_killed_export_leaves_no_final_name_and_the_next_one_cleans_up(cli: Run, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    with ImageLog(data) as log:
        log.create("img")
        for _ in range(20):
            many = [("ImageUpdated", {"update_mask": ["name"], "name": f"n{n}"}) for n in range(1000)]
            log.add(*many, of="img", folder="f1", method="yandex.cloud.compute.v1.ImageService/Update")
    arguments = [*export_command(data, out), "--what", "events"]
    command = [sys.executable, "-m", "tools.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        partial = out / ".events.jsonl.partial"
        give_up = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < give_up
        process.send_signal(signal.SIGSTOP)
        # Two exports into one folder would publish each other's files.
        assert_refused(cli(*arguments), "FAILED_PRECONDITION", "another export")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert [entry.name for entry in out.iterdir()] == [".events.jsonl.partial"]
    (out / ".images.jsonl.partial").write_text("older")
    manifest = cli(*arguments, "--json").json
    assert_files_are_as_named(out, manifest)
    assert manifest["files"][0]["rows"] == 20_003


@pytest.mark.parametrize(
    "arguments",
    [["replay", "--json"], ["replay"], ["export", "--format", "jsonl", "--to", "-", "--what", "events"]],
)
def test_a_closed_pipe_ends_quietly(tmp_path: Path, arguments: list[str]) -> None:
    data = tmp_path / "data"
    with ImageLog(data) as log:
        log.create("img")
        many = [("ImageUpdated", {"update_mask": ["name"], "name": f"n{n}"}) for n in range(2000)]
        log.add(*many, of="img", folder="f1", method="yandex.cloud.compute.v1.ImageService/Update")
    command = shlex.join([sys.executable, "-m", "tools.cli", *arguments, "--data", str(data)])
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(ran.stdout.splitlines()) == 1


def test_rebuild_beside_a_server_is_refused_and_reading_is_not(cli: Run, data: Path) -> None:
    with serving(data) as server:
        process = server.process
        assert process is not None
        ran = cli("rebuild", "--data", data)
        assert_refused(ran, "FAILED_PRECONDITION", f"pid {process.pid}, imageledger serve, since ")
        assert cli(*export_command(data, "-")).code == 0
    assert cli("rebuild", "--data", data).code == 0


def test_options_are_read_from_the_environment(
    cli: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"DATA": data, "FORMAT": "jsonl", "TO": tmp_path / "out", "WHAT": "images events", "AT": 5}
    for name, value in {**values, "FROM": 2, "JSON": 1}.items():
        monkeypatch.setenv(f"IMAGELEDGER_{name}", str(value))
    manifest = cli("export").json
    assert (manifest["position"], manifest["what"]) == (5, ["images", "events"])
    assert manifest["files"][1]["rows"] == 4


@pytest.mark.parametrize("command", ["rebuild", "replay", "export"])
def test_help_has_an_example(cli: Run, command: str) -> None:
    assert f"  imageledger {command} " in cli(command, "--help").out


# rebuild --explain.


def test_explain_says_which_answers_a_new_projection_gives_otherwise(data: Path, cli: Run) -> None:
    same = cli("rebuild", "--data", data, "--explain")
    assert same.out.splitlines()[-1] == "every answer is the same"
    path = ProjectionFiles(data).current()
    assert path is not None
    connection = database.connect(path, access="write", synchronous="NORMAL")
    since, image_id = connection.execute("SELECT max(since), image_id FROM family_latest").fetchone()
    connection.execute("UPDATE family_latest SET image_id = 'other' WHERE since = ?", (since,))
    connection.close()
    ran = cli("rebuild", "--data", data, "--explain", "--json")
    [found] = ran.json["differences"]
    assert (found["table"], found["position"]) == ("family_latest", since)
    assert found["changes"] == [{"field": "image_id", "old": "other", "new": image_id}]
    assert cli("rebuild", "--data", data, "--explain", "--prepare").code == 2
