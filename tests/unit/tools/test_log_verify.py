"""`log verify` tells what was done to a log apart, and finds nothing in one to which nothing was done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventstore import database, merkle
from eventstore.checkpoint import KeptCheckpoint, sign
from eventstore.event import decode, encode
from eventstore.heads import checkpoint_at
from eventstore.keys import Signer, format_vkey, generate_key
from eventstore.log import EventLog
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from projections.files import ProjectionFiles
from projections.store import open_live
from server.blobs import BlobStore
from server.encode import image_frame
from tests.unit.projections import image_log
from tests.unit.projections.image_log import LOG_ID, write_everything
from tools.cli import run

BYTES = bytes(4096)
Verify = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def signer() -> Signer:
    return generate_key(LOG_ID, b"k" * 32)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "data"
    monkeypatch.setitem(image_log.BLOB, "sha256", hashlib.sha256(BYTES).hexdigest())
    write_everything(directory)
    with BlobStore(directory / "blobs").begin() as writer:
        writer.write(BYTES)
        writer.commit()
    with LogReader.open(directory / "log.db") as log:
        open_live(ProjectionFiles(directory), log, encode=image_frame)
    return directory


@pytest.fixture
def kept(data: Path, tmp_path: Path, signer: Signer) -> Callable[[int], tuple[str, ...]]:
    """Options with a checkpoint of a size, as an auditor kept it."""
    (tmp_path / "log.vkey").write_text(format_vkey(signer.verifier) + "\n")
    with LogReader.open(data / "log.db") as log:
        notes = {size: sign(checkpoint_at(log, TreeSize(size)), signer) for size in range(1, log.head() + 1)}

    def options(size: int) -> tuple[str, ...]:
        path = tmp_path / f"{size}.note"
        path.write_text(notes[size])
        return "--checkpoint", str(path), "--public-key", str(tmp_path / "log.vkey")

    return options


@pytest.fixture
def verify(data: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    def verified(*options: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = run(["log", "verify", "--data", str(data), "--json", *options])
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert code == (1 if found["findings"] else 0) == int(not found["ok"])
        for finding in found["findings"]:
            where = f"position {finding['position']}: " if finding["position"] else ""
            assert f"error: {finding['kind']}: {where}" in err
        return code, found

    return verified


def head_of(data: Path) -> int:
    with LogReader.open(data / "log.db") as log:
        return log.head()


def change(data: Path, *statements: str | tuple[str, Sequence[object]]) -> None:
    """As somebody with write access to the file does it."""
    connection = database.connect(data / "log.db", access="write", synchronous="OFF")
    try:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            sql, values = (statement, ()) if isinstance(statement, str) else statement
            connection.execute(sql, values)
        for _, sql in triggers:
            connection.execute(sql)
    finally:
        connection.close()


def rewrite(data: Path, position: int, *, reason: str) -> None:
    """Change an event and every hash above it: a whole history, and another one."""
    with LogReader.open(data / "log.db") as log:
        bodies = [log.body(number) for number in range(1, log.head() + 1)]
    bodies[position - 1] = encode(decode(bodies[position - 1])._replace(reason=reason))
    frontier = merkle.load_frontier(TreeSize(0), lambda _: b"")
    _, hashes = merkle.extend(frontier, [merkle.leaf_hash(body) for body in bodies])
    rows = [
        ("UPDATE event SET body = ?, hashes = ? WHERE position = ?", (body, hashed, number))
        for number, (body, hashed) in enumerate(zip(bodies, hashes, strict=True), start=1)
    ]
    change(data, *rows)


def kinds(found: dict[str, Any]) -> list[tuple[str, int | None]]:
    return [(finding["kind"], finding["position"]) for finding in found["findings"]]


def test_a_whole_directory(data: Path, verify: Verify, kept: Callable[[int], tuple[str, ...]]) -> None:
    code, found = verify(*kept(5))
    assert (code, found["findings"]) == (0, [])
    with LogReader.open(data / "log.db") as log:
        assert (found["size"], found["root"]) == (
            log.head(),
            checkpoint_at(log, TreeSize(log.head())).root.hex(),
        )
    assert found["checked"]["position"] == found["size"]
    assert found["checked"]["rows"] > found["size"]


def test_an_edit(data: Path, verify: Verify) -> None:
    with LogReader.open(data / "log.db") as log:
        body = bytearray(log.body(4))
    body[-1] ^= 1
    change(data, ("UPDATE event SET body = ? WHERE position = 4", (bytes(body),)))
    assert ("EDIT", 4) in kinds(verify()[1])


def test_events_missing_inside(data: Path, verify: Verify) -> None:
    change(data, "DELETE FROM event WHERE position IN (4, 5)")
    assert kinds(verify()[1])[0] == ("TRUNCATION", 4)


def test_a_tail_cut_off(data: Path, verify: Verify, kept: Callable[[int], tuple[str, ...]]) -> None:
    """Alone it looks whole; the projection beside it, and a checkpoint kept elsewhere, say that it is not."""
    head = head_of(data)
    options = kept(head)
    change(data, f"DELETE FROM event WHERE position > {head - 2}")
    assert ("PROJECTION", None) in kinds(verify()[1])
    assert ("ROLLBACK", head - 1) in kinds(verify(*options)[1])


def test_events_that_changed_places(data: Path, verify: Verify) -> None:
    change(
        data,
        "UPDATE event SET position = -4 WHERE position = 4",
        "UPDATE event SET position = 4 WHERE position = 6",
        "UPDATE event SET position = 6 WHERE position = -4",
    )
    assert ("REORDER", 4) in kinds(verify()[1])


def test_a_column(data: Path, verify: Verify) -> None:
    change(data, "UPDATE event SET resource_id = 'fd8other' WHERE position = 4")
    assert kinds(verify()[1])[0] == ("COLUMN", 4)


def test_an_event_inserted(data: Path, verify: Verify) -> None:
    head = head_of(data)
    moved = [
        f"UPDATE event SET position = {one + 1}, version = version + 1000 WHERE position = {one}"
        for one in range(head, 4, -1)
    ]
    change(
        data,
        *moved,
        "INSERT INTO event"
        " SELECT 5, stream, version + 5000, type, at, operation_id, resource_id, body, hashes"
        " FROM event WHERE position = 4",
    )
    assert "INSERTION" in {kind for kind, _ in kinds(verify()[1])}


def test_a_rollback(data: Path, verify: Verify, kept: Callable[[int], tuple[str, ...]]) -> None:
    """An older copy put back, without what came later and without a projection: nothing in it is wrong."""
    options = kept(head_of(data))
    change(data, "DELETE FROM event WHERE position > 6")
    for path in (data / "CURRENT", *data.glob("projections-*")):
        path.unlink()
    assert verify()[0] == 0
    assert kinds(verify(*options)[1]) == [("ROLLBACK", 7)]


def test_a_fork(data: Path, verify: Verify, kept: Callable[[int], tuple[str, ...]]) -> None:
    """Every hash is made anew, so the log is whole; the checkpoints say where it left the one they know."""
    early, late = kept(3), kept(head_of(data))
    rewrite(data, 5, reason="it was never so")
    assert verify()[0] == 0
    assert kinds(verify(*early)[1]) == []
    assert kinds(verify(*early[:2], *late)[1]) == [("FORK", 4)]


def test_a_signature(
    data: Path, verify: Verify, kept: Callable[[int], tuple[str, ...]], tmp_path: Path
) -> None:
    options = kept(5)
    other = generate_key(LOG_ID, b"o" * 32)
    (tmp_path / "log.vkey").write_text(format_vkey(other.verifier) + "\n")
    assert kinds(verify(*options)[1]) == [("SIGNATURE", None)]


def test_a_row_of_the_projection(data: Path, verify: Verify) -> None:
    """A whole row, sealed as it should be, that says what no event said."""
    path = ProjectionFiles(data).current()
    assert path is not None
    connection = database.connect(path, access="write", synchronous="OFF")
    position = connection.execute("SELECT max(since) FROM operation").fetchone()[0]
    connection.execute("DELETE FROM operation WHERE since = ?", (position,))
    connection.close()
    assert ("PROJECTION", position) in kinds(verify()[1])


def test_a_checkpoint_of_another_log(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = generate_key("imageledger-other", b"o" * 32)
    with LogReader.open(data / "log.db") as log:
        foreign = checkpoint_at(log, TreeSize(3))
    note = sign(type(foreign)("imageledger-other", foreign.size, foreign.root), other)
    (tmp_path / "other.note").write_text(note)
    (tmp_path / "other.vkey").write_text(format_vkey(other.verifier))
    options = ["--checkpoint", str(tmp_path / "other.note"), "--public-key", str(tmp_path / "other.vkey")]
    assert run(["log", "verify", "--data", str(data), *options]) == 1
    assert "imageledger-other" in capsys.readouterr().err


def test_a_blob(data: Path, verify: Verify) -> None:
    path = BlobStore(data / "blobs").path_of(hashlib.sha256(BYTES).hexdigest())
    path.chmod(0o644)
    path.write_bytes(b"x" * len(BYTES))
    assert {kind for kind, _ in kinds(verify()[1])} == {"BLOB"}


def test_nothing_is_written(data: Path, verify: Verify) -> None:
    (data / "CURRENT").unlink()
    before = times(data)
    assert verify()[0] == 0
    assert times(data) == before


def times(data: Path) -> dict[str, int]:
    """Of every file that only a writer changes."""
    return {path.name: path.stat().st_mtime_ns for path in data.iterdir() if not path.name.endswith("-shm")}


def test_what_the_log_kept_itself(data: Path, verify: Verify, signer: Signer, tmp_path: Path) -> None:
    """A tail cut off, with the note of more than is left beside it; and a note that was tampered with."""
    (tmp_path / "log.vkey").write_text(format_vkey(signer.verifier) + "\n")
    head = head_of(data)
    with EventLog.open(data / "log.db") as log:
        for size in (3, head):
            checkpoint = checkpoint_at(log, TreeSize(size))
            kept = KeptCheckpoint(checkpoint.size, checkpoint.root, sign(checkpoint, signer), 1)
            log.keep_checkpoint(kept)
    key = ("--public-key", str(tmp_path / "log.vkey"))
    assert verify(*key)[0] == 0
    change(data, f"DELETE FROM event WHERE position > {head - 2}")
    assert ("TRUNCATION", head - 1) in kinds(verify(*key)[1])
    change(data, "UPDATE checkpoint SET note = replace(note, '3', '4') WHERE size = 3")
    assert ("SIGNATURE", None) in kinds(verify(*key)[1])
