"""`imageledger scrub`: what is printed of what a server says, and how the command ends."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server.gen.imageledger.v1 import scrub_service_pb2 as pb
from tests.unit.tools.conftest import Run, Spawn
from tests.unit.tools.scripted import scripted

SCRUB = "imageledger.v1.ScrubService/Scrub"

CHECKED = pb.ScrubChecked(
    position=12, log_entries=35, rows=40, blobs=2, blob_bytes=3 << 20, unused_blobs=1, unused_blob_bytes=512
)
EDIT = pb.ScrubFinding(
    kind="EDIT",
    part=pb.LOG,
    position=7,
    message="the bytes are\nwrong",
    remedy="restore the log from a backup",
)
LATER = pb.ScrubFinding(
    kind="COLUMN",
    part=pb.LOG,
    position=9,
    message="it stands elsewhere",
    remedy="restore the log from a backup",
)
FILE = pb.ScrubFinding(
    kind="PROJECTION",
    part=pb.PROJECTION_INDEXES,
    message="projections-1.db: table blob_use is short",
    remedy="run `imageledger rebuild --online`",
)


def progress(part: pb.ScrubPart.ValueType, done: int, total: int) -> pb.ScrubResponse:
    return pb.ScrubResponse(progress=pb.ScrubProgress(part=part, done=done, total=total))


PROGRESS = [
    progress(pb.LOG, 6, 12),
    progress(pb.LOG, 12, 12),
    progress(pb.LOG_INDEXES, 35, 0),
    progress(pb.PROJECTION, 12, 12),
    progress(pb.PROJECTION_INDEXES, 40, 0),
    progress(pb.BLOBS, 1 << 20, 3 << 20),
]


def saying(*messages: pb.ScrubResponse, asked: list[pb.ScrubRequest] | None = None) -> Any:
    """A stream of these."""

    def stream(raw: bytes, context: Any) -> Iterator[pb.ScrubResponse]:
        if asked is not None:
            asked.append(pb.ScrubRequest.FromString(raw))
        yield from messages

    return {SCRUB: stream}


def found(*findings: pb.ScrubFinding) -> list[pb.ScrubResponse]:
    return [pb.ScrubResponse(finding=finding) for finding in findings]


DONE = pb.ScrubResponse(checked=CHECKED)


def test_a_real_server_is_scrubbed(imageledger: Run) -> None:
    ended = imageledger("scrub", "--rate", "1000", "--json")
    assert (ended.code, ended.err) == (0, "")
    made = json.loads(ended.out)
    assert (made["ok"], made["findings"]) == (True, [])
    assert made["checked"]["events"] >= 2


def test_nothing_wrong_is_exit_code_0(imageledger: Run) -> None:
    with scripted(stream=saying(*PROGRESS, DONE)) as address:
        ended = imageledger("scrub", endpoint=address)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "events           12",
        "index entries    35",
        "projection rows  40",
        "blobs            2 (3.0 MiB)",
        "unused blobs     1 (512 B), removed after a while",
        "findings         0",
    ]


def test_findings_are_exit_code_1_and_each_a_line_with_its_position(imageledger: Run) -> None:
    """On one line, whatever is in the message; each remedy once, at the end."""
    with scripted(stream=saying(*PROGRESS[:2], *found(EDIT, LATER, FILE), DONE)) as address:
        ended = imageledger("scrub", endpoint=address)
    assert ended.code == 1
    assert ended.err.splitlines() == [
        "error: EDIT: position 7: the bytes are\\nwrong",
        "error: COLUMN: position 9: it stands elsewhere",
        "error: PROJECTION: projections-1.db: table blob_use is short",
        "restore the log from a backup",
        "run `imageledger rebuild --online`",
    ]
    assert ended.out.splitlines()[-1] == "findings         3"


def test_json_is_one_document(imageledger: Run) -> None:
    with scripted(stream=saying(*PROGRESS, *found(EDIT, FILE), DONE)) as address:
        ended = imageledger("scrub", "--json", endpoint=address)
    assert ended.code == 1
    assert json.loads(ended.out) == {
        "ok": False,
        "checked": {
            "events": 12,
            "index_entries": 35,
            "projection_rows": 40,
            "blobs": 2,
            "blob_bytes": 3 << 20,
            "unused_blobs": 1,
            "unused_blob_bytes": 512,
            "gave_up": False,
        },
        "findings": [
            {
                "kind": "EDIT",
                "part": "log",
                "position": 7,
                "message": "the bytes are\nwrong",
                "remedy": "restore the log from a backup",
            },
            {
                "kind": "PROJECTION",
                "part": "projection_indexes",
                "position": None,
                "message": "projections-1.db: table blob_use is short",
                "remedy": "run `imageledger rebuild --online`",
            },
        ],
    }


def test_too_many_findings_are_said_to_be_not_all(imageledger: Run) -> None:
    checked = pb.ScrubChecked(gave_up=True)
    with scripted(stream=saying(*found(EDIT), pb.ScrubResponse(checked=checked))) as address:
        ended = imageledger("scrub", endpoint=address)
    assert ended.out.splitlines()[-1] == "findings         1, and no further ones were looked for"


@pytest.mark.parametrize(
    ("arguments", "rate"), [((), 64 << 20), (("--rate", "200"), 200 << 20)], ids=["default", "given"]
)
def test_the_rate_is_in_mib(imageledger: Run, arguments: tuple[str, ...], rate: int) -> None:
    asked: list[pb.ScrubRequest] = []
    with scripted(stream=saying(DONE, asked=asked)) as address:
        assert imageledger("scrub", *arguments, endpoint=address).code == 0
    assert [request.bytes_per_second for request in asked] == [rate]


@pytest.mark.parametrize("rate", ["0", "-1", "1.5", "fast"])
def test_a_rate_that_is_none_is_wrong_usage(imageledger: Run, rate: str) -> None:
    assert imageledger("scrub", "--rate", rate).code == 2


def test_a_stream_that_ends_early_is_no_clean_scrub(imageledger: Run) -> None:
    with scripted(stream=saying(*PROGRESS)) as address:
        ended = imageledger("scrub", "--json", endpoint=address)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: INTERNAL: the server ended the scrub without a word\n")


def test_ctrl_c_ends_it_there_and_here(spawn: Spawn) -> None:
    """The note says how far it came; and the server hears that nobody listens any more."""
    began, ended_there = threading.Event(), threading.Event()

    def stream(raw: bytes, context: Any) -> Iterator[pb.ScrubResponse]:
        context.add_callback(ended_there.set)
        yield from found(EDIT)
        began.set()
        ended_there.wait(60)

    with scripted(stream={SCRUB: stream}) as address:
        process = spawn("scrub", endpoint=address)
        assert process.stderr.readline() == b"error: EDIT: position 7: the bytes are\\nwrong\n"
        assert began.wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert ended_there.wait(60)
    assert process.returncode == 130
    assert err.decode().strip() == "the scrub was ended before it had read everything; it had found 1"


def test_a_terminal_sees_a_line_for_each_part(spawn: Spawn) -> None:
    ours, theirs = os.openpty()
    with scripted(stream=saying(*PROGRESS[:2], *found(EDIT), *PROGRESS[2:], DONE)) as address:
        process = spawn("scrub", endpoint=address, stderr=theirs)
        os.close(theirs)
        shown = read_all(lambda: os.read(ours, 65536))
        process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 1
    for text in (
        b"log  [",
        b"100%",
        b"log: indexes: 35",
        b"projection  [",
        b"projection: indexes: 40",
        b"blobs  [",
    ):
        assert text in shown, shown
    # A finding has a line of its own.
    assert b"\nerror: EDIT: position 7" in shown


def read_all(read: Callable[[], bytes]) -> bytes:
    """Until the other end of a terminal is closed, which is an error on Linux."""
    parts = []
    try:
        while part := read():
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts)
