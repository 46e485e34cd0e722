"""eventstore/README.md says enough: a verifier written from that page alone agrees with us."""

from __future__ import annotations

import ast
import base64
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eventstore.checkpoint import sign
from eventstore.event import Position
from eventstore.heads import checkpoint_at
from eventstore.keys import format_vkey, generate_key
from eventstore.log import EventLog
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from eventstore.receipt import prove, prove_consistency
from eventstore.receipt_text import consistency_json, receipt_json
from tests.unit.eventstore.conftest import LOG_ID, build_event

VERIFIER = Path(__file__).parent / "verifier" / "from_readme.py"
GOLDEN = Path(__file__).parents[1] / "golden" / "proof"
SIGNER = generate_key(LOG_ID, bytes(range(32)))
EVENTS = 21

Holds = Callable[..., bool]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a server that has stopped."""
    path = tmp_path_factory.mktemp("log") / "log.db"
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
        events = [build_event(position, at=20, reason="why: äöü") for position in range(2, EVENTS + 1)]
        log.append(events, expected_head=Position(1))
    return path


@pytest.fixture(scope="module")
def log(path: Path) -> Iterator[LogReader]:
    with LogReader.open(path) as log:
        yield log


@pytest.fixture
def holds(tmp_path: Path) -> Holds:
    """Whether the verifier says so, in a process that sees neither this folder nor PYTHONPATH."""

    def ran(kind: str, document: dict[str, Any] | Path, *texts: str) -> bool:
        path = document if isinstance(document, Path) else tmp_path / "document.json"
        if not isinstance(document, Path):
            path.write_text(json.dumps(document))
        files = []
        for number, text in enumerate(texts):
            files.append(tmp_path / f"text{number}")
            files[-1].write_bytes(text.encode())
        command = [sys.executable, "-I", VERIFIER, kind, path, *files]
        ended = subprocess.run(
            list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (ended.returncode == 0) is (ended.stdout == "holds\n"), ended.stderr
        return ended.returncode == 0

    return ran


def vkey() -> str:
    return format_vkey(SIGNER.verifier) + "\n"


def note_at(log: LogReader, size: int) -> str:
    return sign(checkpoint_at(log, TreeSize(size)), SIGNER)


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(VERIFIER.read_text())
    imported = {alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names}
    imported |= {str(each.module) for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    others = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    assert others == {"cryptography", "msgpack"}


@pytest.mark.parametrize(
    ("position", "size"), [(1, 1), (1, 2), (2, 3), (7, 13), (16, 16), (16, 17), (21, 21)]
)
def test_receipts(holds: Holds, log: LogReader, position: int, size: int) -> None:
    receipt = receipt_json(prove(log, Position(position), note_at(log, size)))
    assert holds("receipt", receipt, vkey())


@pytest.mark.parametrize(
    ("old_size", "size"), [(1, 1), (1, 2), (6, 8), (8, 13), (13, 21), (16, 17), (21, 21)]
)
def test_consistency(holds: Holds, log: LogReader, old_size: int, size: int) -> None:
    made = prove_consistency(log, checkpoint_at(log, TreeSize(old_size)), note_at(log, size))
    assert holds("consistency", consistency_json(made), note_at(log, old_size), vkey())


@pytest.mark.parametrize("size", [1, 2, 8, 20, EVENTS])
def test_a_whole_log(holds: Holds, log: LogReader, path: Path, size: int) -> None:
    assert holds("log", path, note_at(log, size), vkey())


def test_released_proofs(holds: Holds) -> None:
    key = (GOLDEN / "log.vkey").read_text()
    assert holds("receipt", GOLDEN / "receipt.json", key)
    assert holds("consistency", GOLDEN / "consistency.json", (GOLDEN / "old.note").read_text(), key)


def changed(text: str) -> str:
    """Base64 of the same bytes with a bit flipped."""
    data = bytearray(base64.b64decode(text))
    data[-1] ^= 1
    return base64.b64encode(data).decode()


def test_a_changed_receipt(holds: Holds, log: LogReader) -> None:
    receipt = receipt_json(prove(log, Position(7), note_at(log, 13)))
    proof = receipt["proof"]
    for change in (
        {"position": 8},
        {"index": 7},
        {"event": changed(receipt["event"])},
        {"proof": [changed(proof[0]), *proof[1:]]},
        {"proof": [*proof, proof[0]]},
        {"proof": proof[:-1]},
        {"checkpoint": note_at(log, 14)},
        {"checkpoint": receipt["checkpoint"].replace("\n13\n", "\n14\n")},
        {"checkpoint": sign(checkpoint_at(log, TreeSize(13)), generate_key(LOG_ID, bytes(32)))},
    ):
        assert not holds("receipt", receipt | change, vkey()), change
    assert not holds("receipt", receipt, format_vkey(generate_key(LOG_ID, bytes(32)).verifier))


def test_a_changed_consistency_proof(holds: Holds, log: LogReader) -> None:
    old_note = note_at(log, 6)
    made = consistency_json(prove_consistency(log, checkpoint_at(log, TreeSize(6)), note_at(log, 13)))
    for change in (
        {"old_size": 7},
        {"size": 14},
        {"proof": [changed(made["proof"][0]), *made["proof"][1:]]},
        {"proof": made["proof"][:-1]},
        {"proof": [*made["proof"], made["proof"][0]]},
        {"checkpoint": note_at(log, 14)},
    ):
        assert not holds("consistency", made | change, old_note, vkey()), change
    rewritten = replace(checkpoint_at(log, TreeSize(6)), root=bytes(32))
    assert not holds("consistency", made, sign(rewritten, SIGNER), vkey())


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("UPDATE event SET body = edited(body) WHERE position = 7", id="edit"),
        pytest.param("DELETE FROM event WHERE position = 21", id="truncation"),
        pytest.param("DELETE FROM event WHERE position = 7", id="gap"),
        pytest.param("UPDATE event SET hashes = zeroblob(32) WHERE position = 7", id="leaf"),
        pytest.param("UPDATE event SET hashes = longer(hashes) WHERE position = 8", id="one-more"),
        pytest.param(
            "UPDATE event SET body = (SELECT body FROM event WHERE position = 9), "
            "hashes = (SELECT hashes FROM event WHERE position = 9) WHERE position = 7",
            id="copied",
        ),
    ],
)
def test_a_changed_log(holds: Holds, log: LogReader, path: Path, tmp_path: Path, sql: str) -> None:
    copy = tmp_path / "log.db"
    copy.write_bytes(path.read_bytes())
    assert holds("log", copy, note_at(log, EVENTS), vkey())
    connection = sqlite3.connect(copy)
    connection.create_function("edited", 1, lambda body: body.replace(b"word 7", b"word 8"))
    connection.create_function("longer", 1, lambda hashes: hashes + bytes(32))
    for trigger in ("event_update", "event_delete"):
        connection.execute(f"DROP TRIGGER {trigger}")
    assert connection.execute(sql).rowcount > 0
    connection.commit()
    connection.close()
    assert not holds("log", copy, note_at(log, EVENTS), vkey())


def test_a_log_that_was_written_anew(holds: Holds, log: LogReader, tmp_path: Path) -> None:
    """All its hashes are right, and its root is not the one that was signed."""
    path = tmp_path / "log.db"
    with EventLog.open(path) as rewritten:
        rewritten.create_if_empty(log_id=LOG_ID, at=1)
        events = [build_event(position, at=20) for position in range(2, EVENTS + 1)]
        rewritten.append(events, expected_head=Position(1))
        note = note_at(rewritten, EVENTS)
    assert holds("log", path, note, vkey())
    assert not holds("log", path, note_at(log, EVENTS), vkey())
