"""`history` and `log` against a real server: what they print, for programs and for people."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgpack
import pytest

from projections.changes import IMAGE_FIELDS
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.harness import IMAGES, Client, Server
from tests.unit.tools.conftest import Ended, Run, Spawn
from tests.unit.tools.scripted import scripted
from tests.unit.tools.test_client_commands import document, first_line, folder, image, lines, make_image
from tools.history import history
from tools.log import log

__all__ = ["folder", "image"]

HISTORY = "imageledger.v1.HistoryService"


@pytest.fixture
def told(imageledger: Run, caller: Client, folder: str, image: str) -> str:
    """The id of an image that was updated with a reason, and then deleted; `image` is still there."""
    other = make_image(caller, folder, "db")
    assert imageledger("image", "update", other, "--name", "db-2", "--reason", "ticket\n17").code == 0
    assert imageledger("image", "delete", other).code == 0
    return other


def update(caller: Client, image_id: str, **fields: Any) -> None:
    request = image_service_pb2.UpdateImageRequest(
        image_id=image_id, update_mask={"paths": list(fields)}, **fields
    )
    caller.call(IMAGES, "Update", request, operation_pb2.Operation)


# history image


def test_an_images_history_is_a_line_an_event(imageledger: Run, told: str) -> None:
    ended = imageledger("history", "image", told, "--json")
    events = lines(ended)
    shown = lines(imageledger("log", "show", "--image", told, "--json"))
    assert (ended.code, ended.err) == (0, "")
    assert [event["type"] for event in events] == [
        "ImageCreationStarted",
        "ImageCreated",
        "ImageUpdated",
        "ImageDeleted",
    ]
    for event, stored in zip(events, shown, strict=True):
        assert list(event) == ["position", "type", "at", "actor", "reason", "operation_id", "changes"]
        assert event["reason"] == stored.get("reason")
        for name in ("position", "type", "at", "actor", "operation_id"):
            assert event[name] == stored[name]
    started, created, updated, deleted = events
    assert {"field": "labels", "old": None, "new": {"a": "1", "env": "prod"}} in started["changes"]
    assert {"field": "min_disk_size", "old": None, "new": "4194304"} in started["changes"]
    assert {"field": "status", "old": "CREATING", "new": "READY"} in created["changes"]
    assert {"field": "size", "old": None, "new": "1048576"} in created["changes"]
    assert updated["changes"] == [{"field": "name", "old": "db", "new": "db-2"}]
    assert all(change["old"] is not None and change["new"] is None for change in deleted["changes"])


def test_the_changes_are_those_of_replay(imageledger: Run, server: Server, told: str) -> None:
    replayed = lines(imageledger("replay", "--data", str(server.data), "--image", told, "--json"))
    found = lines(imageledger("history", "image", told, "--json"))
    assert [event["changes"] for event in found] == [event["changes"] for event in replayed]


def test_an_images_history_for_people(imageledger: Run, told: str) -> None:
    out = imageledger("history", "image", told).out
    assert "ImageUpdated  by " in out
    assert '    reason: ticket\\n17\n    name: "db" → "db-2"\n' in out
    # That an end ends every field goes without saying.
    assert out.splitlines()[-1].split("  ")[2] == "ImageDeleted"


def test_an_images_history_as_of_then(imageledger: Run, told: str) -> None:
    events = lines(imageledger("history", "image", told, "--json"))
    then = str(events[2]["position"])
    assert lines(imageledger("history", "image", told, "--as-of", then, "--json")) == events[:3]


def test_no_history(imageledger: Run) -> None:
    ended = imageledger("history", "image", "nobody", "--json")
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended) == 'error: NOT_FOUND: Image "nobody" not found'


# history family


def test_a_familys_history_is_a_line_an_answer(imageledger: Run, folder: str, image: str, told: str) -> None:
    found = lines(imageledger("history", "family", "web", "--folder", folder, "--json"))
    assert [answer["image_id"] for answer in found] == [image, told, image]
    for answer in found:
        assert list(answer) == ["image_id", "since", "until", "at", "actor", "operation_id"]
        (event,) = lines(
            imageledger("log", "show", "--from", str(answer["since"]), "--to", str(answer["since"]), "--json")
        )
        assert [answer[name] for name in ("at", "actor", "operation_id")] == [
            event[name] for name in ("at", "actor", "operation_id")
        ]
    assert [answer["until"] for answer in found] == [found[1]["since"], found[2]["since"], None]
    table = imageledger("history", "family", "web", "--folder", folder).out.splitlines()
    assert table[0].split() == ["IMAGE_ID", "SINCE", "UNTIL", "AT", "ACTOR", "OPERATION_ID"]
    assert len(table) == 4


def test_a_family_that_never_was(imageledger: Run, folder: str) -> None:
    ended = imageledger("history", "family", "none", "--folder", folder, "--json")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == f"family none of folder {folder} never resolved to an image\n"


# history diff


def test_a_diff_is_one_document(imageledger: Run, caller: Client, folder: str, image: str) -> None:
    before = document(imageledger("status", "--json"))["head"]
    there = document(imageledger("image", "get", image, "--json"))
    other = make_image(caller, folder, "db")
    update(caller, image, labels={"env": "test"})
    gone = make_image(caller, folder, "gone")
    imageledger("image", "delete", gone)
    found = document(imageledger("history", "diff", before, "head", "--folder", folder, "--json"))
    assert found == {
        "from": int(before),
        "to": found["to"],
        "added": [document(imageledger("image", "get", other, "--json"))],
        "removed": [],
        "changed": [
            {
                "id": image,
                "changes": [{"field": "labels", "old": there["labels"], "new": {"env": "test"}}],
            }
        ],
    }
    imageledger("image", "delete", other)
    back = document(imageledger("history", "diff", str(found["to"]), "head", "--json"))
    assert (back["added"], back["removed"], back["changed"]) == ([], found["added"], [])


def test_a_diff_for_people(imageledger: Run, folder: str, image: str, told: str) -> None:
    created = lines(imageledger("history", "image", told, "--json"))[1]["position"]
    out = imageledger("history", "diff", str(created), "head", "--folder", folder).out
    assert out.startswith(f"--- position {created}\n+++ position ")
    assert f"@@ image {told}\n" in out
    assert '\n-  name: "db"\n' in out
    assert out.endswith("\n0 added, 1 removed, 0 changed\n")
    changed = imageledger("history", "diff", str(created), str(created + 1)).out.splitlines()[2:]
    assert changed == [
        f"@@ image {told}",
        '-  name: "db"',
        '+  name: "db-2"',
        "0 added, 0 removed, 1 changed",
    ]


def test_equal_moments_have_no_difference_and_inverted_ones_are_refused(imageledger: Run, image: str) -> None:
    same = imageledger("history", "diff", "3", "3", "--json")
    assert document(same) == {"from": 3, "to": 3, "added": [], "removed": [], "changed": []}
    ended = imageledger("history", "diff", "3", "2", "--json")
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith("error: INVALID_ARGUMENT: ")
    assert imageledger("history", "diff", "soon", "2").code == 2


# history blame


def test_a_blame_is_one_document(imageledger: Run, caller: Client, image: str) -> None:
    update(caller, image, description="same")
    update(caller, image, description="same")
    events = lines(imageledger("history", "image", image, "--json"))
    there = document(imageledger("image", "get", image, "--json"))
    found = document(imageledger("history", "blame", image, "--json"))
    assert list(found) == ["image_id", "position", "fields"]
    assert found["image_id"] == image
    assert [row["field"] for row in found["fields"]] == list(IMAGE_FIELDS)
    started, created, _, last = events
    setters = {"description": last} | dict.fromkeys(("folder_id", "name", "family", "labels"), started)
    for row in found["fields"]:
        setter = setters.get(row["field"], created)
        assert row == {
            "field": row["field"],
            "value": there.get(row["field"]),
            **{name: setter[name] for name in ("position", "at", "actor", "operation_id")},
        }
    assert {row["field"]: row["value"] for row in found["fields"]}["pooled"] is None
    before = document(imageledger("history", "blame", image, "--as-of", str(created["position"]), "--json"))
    assert before["position"] == created["position"]
    assert before["fields"][4]["value"] is None
    table = imageledger("history", "blame", image).out.splitlines()
    assert table[0].split() == ["FIELD", "VALUE", "POSITION", "AT", "ACTOR", "OPERATION_ID"]
    assert table[5].split()[:3] == ["description", '"same"', str(last["position"])]


# log show


def test_events_are_as_replay_has_them(imageledger: Run, server: Server, image: str) -> None:
    shown = imageledger("log", "show", "--json")
    replayed = lines(imageledger("replay", "--data", str(server.data), "--json"))
    for event in replayed:
        del event["changes"]
    assert lines(shown) == replayed
    head = replayed[-1]["position"]
    found = lines(imageledger("log", "show", "--from", str(head - 1), "--to", "head", "--json"))
    assert [event["position"] for event in found] == [head - 1, head]


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--folder", "stream"),
        ("--resource", "resource_id"),
        ("--image", "resource_id"),
        ("--operation", "operation_id"),
        ("--actor", "actor"),
        ("--type", "type"),
    ],
)
def test_filters(imageledger: Run, image: str, option: str, key: str) -> None:
    everything = lines(imageledger("log", "show", "--json"))
    (one,) = [event for event in everything if event.get("resource_id") == image][:1]
    value = one[key].removeprefix("folder/") if option == "--folder" else one[key]
    found = lines(imageledger("log", "show", option, value, "--json"))
    assert found == [event for event in everything if event.get(key) == one[key]]
    assert found


def test_events_for_people(imageledger: Run, told: str) -> None:
    out = imageledger("log", "show", "--image", told, "--type", "ImageUpdated").out
    first, reason, data = out.splitlines()
    assert [part for part in first.split("  ") if part in (told, "ImageUpdated")] == ["ImageUpdated", told]
    assert reason == "    reason: ticket\\n17"
    assert json.loads(data) == {"name": "db-2", "update_mask": ["name"]}


def test_no_events(imageledger: Run) -> None:
    ended = imageledger("log", "show", "--actor", "nobody", "--json")
    assert (ended.code, ended.out, ended.err) == (0, "", "no event in this range meets the filters\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--from", "99999999"), "error: OUT_OF_RANGE: Position 99999999 is beyond the head of the log, "),
        (("--to", "2120-01-01T00:00:00Z"), "error: OUT_OF_RANGE: 2120-01-01T00:00:00.000000000Z is in the f"),
        (("--from", "1990-01-01T00:00:00Z"), "error: OUT_OF_RANGE: The log begins at "),
        (("--from", "3", "--to", "2"), "error: INVALID_ARGUMENT: from_moment is position 3, which is after "),
    ],
)
def test_moments_that_are_not_there(imageledger: Run, arguments: tuple[str, ...], error: str) -> None:
    ended = imageledger("log", "show", *arguments, "--json")
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith(error)


@pytest.fixture
def newer(imageledger: Run) -> Iterator[str]:
    """The address of a server of a newer version: its log has what this one does not know."""
    (event,) = lines(imageledger("log", "show", "--from", "1", "--to", "1", "--json"))
    known = {**event, "at": 17, "type": "ImageBlessed", "schema": 3}
    unknown = {"v": 2, "position": 2, "at": 10**18, "sign": b"\x01\xff", "words": [None, 1.5, {"a": b""}]}
    answer = pb.ReadEventsResponse(
        events=[
            pb.Event(position=1, body=msgpack.packb(known)),
            pb.Event(position=2, body=msgpack.packb(unknown), unreadable="newer"),
        ]
    )
    with scripted(stream={f"{HISTORY}/ReadEvents": lambda request, context: iter([answer])}) as address:
        yield address


def test_what_this_version_does_not_know_is_printed_as_it_is_stored(imageledger: Run, newer: str) -> None:
    ended = imageledger("log", "show", "--json", endpoint=newer)
    known, unknown = lines(ended)
    assert ended.code == 0
    assert (known["type"], known["schema"], known["data"].keys()) == ("ImageBlessed", 3, {"log_id"})
    assert unknown == {
        "v": 2,
        "position": 2,
        "at": "2001-09-09T01:46:40.000000000Z",
        "sign": "01ff",
        "words": [None, 1.5, {"a": ""}],
    }
    assert ended.err.splitlines() == [
        f"position {position}: this version does not know {what}, and prints such events as they are stored"
        for position, what in ((1, "ImageBlessed of schema 3"), (2, "an envelope of schema 2"))
    ]
    out = imageledger("log", "show", endpoint=newer).out
    assert "ImageBlessed" in out
    assert '"sign": "01ff"' in out


def test_bytes_that_are_no_event_are_no_event(imageledger: Run) -> None:
    answer = pb.ReadEventsResponse(events=[pb.Event(position=7, body=b"\x80")])
    with scripted(stream={f"{HISTORY}/ReadEvents": lambda request, context: iter([answer])}) as address:
        ended = imageledger("log", "show", "--json", endpoint=address)
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith("error: DATA_LOSS: position 7: ")


# log watch


@pytest.fixture(autouse=True)
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pipe is unless somebody asks for more."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def test_a_watch_prints_each_event_at_once_until_ctrl_c(
    imageledger: Run, spawn: Spawn, caller: Client, image: str
) -> None:
    head = lines(imageledger("log", "show", "--image", image, "--json"))[-1]["position"]
    watch = spawn("log", "watch", "--from", str(head), "--json")
    assert json.loads(watch.stdout.readline())["position"] == head
    for number in range(3):
        update(caller, image, description=f"text {number}")
        event = json.loads(watch.stdout.readline())
        while event.get("resource_id") != image:
            event = json.loads(watch.stdout.readline())
        assert event["data"]["description"] == f"text {number}"
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=30)
    assert (watch.returncode, out, err) == (130, b"", b"\n")


def test_a_watch_whose_reader_goes_away_ends_quietly_also_if_nothing_comes(
    imageledger: Run, spawn: Spawn, image: str
) -> None:
    head = lines(imageledger("log", "show", "--image", image, "--json"))[-1]["position"]
    watch = spawn("log", "watch", "--from", str(head), "--json")
    assert json.loads(watch.stdout.readline())["position"] == head
    watch.stdout.close()
    assert watch.wait(timeout=30) == 0
    assert watch.stderr.read() == b""


def test_a_long_answer_whose_reader_goes_away_ends_quietly(spawn: Spawn, image: str) -> None:
    shown = spawn("log", "show", "--json", stdout=subprocess.PIPE)
    assert shown.stdout.readline()
    shown.stdout.close()
    assert shown.wait(timeout=30) == 0
    assert shown.stderr.read() == b""


def test_a_watch_says_where_to_go_on_when_its_server_stops(
    imageledger: Run, spawn: Spawn, tmp_path: Path
) -> None:
    server = Server(tmp_path / "data").start()
    *_, last = lines(imageledger("log", "show", "--json", endpoint=server.address))
    watch = spawn("log", "watch", "--from", "head", "--json", endpoint=server.address)
    assert json.loads(watch.stdout.readline()) == last
    server.stop()
    out, err = watch.communicate(timeout=30)
    assert (watch.returncode, out) == (1, b"")
    following = last["position"] + 1
    assert err.decode().splitlines()[:2] == [
        f"error: UNAVAILABLE: The server is stopping: watch again from position {following}",
        f"`imageledger log watch --from {following}` goes on where this ended",
    ]


def test_a_watch_whose_server_dies_says_it_too(imageledger: Run, spawn: Spawn, tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    watch = spawn("log", "watch", "--from", "2", "--json", endpoint=server.address)
    *_, last = lines(imageledger("log", "show", "--json", endpoint=server.address))
    while json.loads(watch.stdout.readline()) != last:
        pass
    server.kill()
    out, err = watch.communicate(timeout=30)
    assert (watch.returncode, out) == (1, b"")
    assert err.startswith(b"error: UNAVAILABLE: ")
    assert f"`imageledger log watch --from {last['position'] + 1}` goes on".encode() in err


def test_a_watch_from_beyond_the_head(imageledger: Run) -> None:
    ended = imageledger("log", "watch", "--from", "99999999")
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith("error: OUT_OF_RANGE: Position 99999999 is beyond the head")


# --help


@pytest.mark.parametrize("command", [*history.commands.values(), log.commands["show"], log.commands["watch"]])
def test_help_teaches_with_an_example(imageledger: Run, command: click.Command) -> None:
    group = "log" if command in log.commands.values() else "history"
    ended: Ended = imageledger(group, str(command.name), "--help")
    assert ended.code == 0
    assert f"imageledger {group} {command.name}" in ended.out
    assert os.linesep in ended.out
