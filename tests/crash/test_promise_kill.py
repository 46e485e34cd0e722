"""A server that is killed on its way to a key, and on its way to a published checkpoint, wherever that is.

The key: there is one, the log names it, and no other was ever used. What was published is never changed, and
the log always leads to it. This is the whole server; `unit/server/test_signing.py` and
`unit/eventstore/test_published.py` die at every single step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eventstore.checkpoint import open_note
from eventstore.keys import load_key_file, load_vkey_file
from eventstore.lineage import lineage
from eventstore.published import contradictions
from eventstore.reader import LogReader
from server.gen.imageledger.v1 import proof_service_pb2 as pb
from tests.crash import killed_at
from tests.harness import Client, Server

PROOFS = "imageledger.v1.ProofService"
KILLED = -9

TO_A_KEY = [
    "open .checkpoint.key.next",
    "os.link .checkpoint.key.next",
    "os.remove .checkpoint.key.next",
    "before append",
    "after append",
    "os.rename checkpoint.key.next",
    "os.rename checkpoint.vkey",
]
TO_A_FILE = [
    "os.remove .00",
    "after append",
    "before keep_checkpoint",
    "after keep_checkpoint",
    "open .00",
    "os.link .00",
]


def killed_on_its_way(data: Path, *options: str, point: str) -> Server:
    """A server that was killed at a point, before it listens or after."""
    server = Server(data, *options)
    server.program = (sys.executable, killed_at.__file__, point)
    try:
        server.start()
    except AssertionError:
        assert server.process is not None
        assert server.process.returncode == KILLED, server.stderr()
    else:
        assert server.process is not None
        assert server.process.wait(timeout=60) == KILLED
    return server


@pytest.mark.parametrize("point", TO_A_KEY)
def test_a_first_start_that_is_killed_is_finished_by_the_next(tmp_path: Path, point: str) -> None:
    data = tmp_path / "data"
    killed_on_its_way(data, point=point)
    server = Server(data).start()
    with Client(server.address) as client:
        made = client.call(PROOFS, "Checkpoint", pb.CheckpointRequest(), pb.SignedCheckpoint)
    server.kill()
    key = load_key_file(data / "checkpoint.key").verifier
    open_note(made.note, [key])
    with LogReader.open(data / "log.db") as log:
        said = lineage(log)
        assert [one.verifier for one in said.keys] == [key]
        assert [event.type for event in log.events_of_stream("log")].count("LogRestored") == 0
        for kept in log.checkpoints():
            open_note(kept.note, [key])
    assert load_vkey_file(data / "checkpoint.vkey") == (key,)
    found = {path.name for path in data.iterdir() if "checkpoint" in path.name}
    assert found == {"checkpoint.key", "checkpoint.vkey"}


@pytest.mark.parametrize("point", ["before append", "after append"])
def test_a_log_without_its_key_says_so_once_though_it_is_killed_over_it(tmp_path: Path, point: str) -> None:
    data = tmp_path / "data"
    Server(data).start().stop()
    (data / "checkpoint.key").unlink()
    killed_on_its_way(data, point=point)
    Server(data).start().stop()
    key = load_key_file(data / "checkpoint.key").verifier
    with LogReader.open(data / "log.db") as log:
        said = [event.type for event in log.events_of_stream("log")]
        assert lineage(log).keys[-1].verifier == key
    assert (said.count("LogRestored"), said.count("CheckpointKeyAdded")) == (1, 2)


def test_what_was_published_stays_wherever_a_server_is_killed(tmp_path: Path) -> None:
    """One log and one folder for all of it: each start comes upon what the one before has left."""
    data, outside = tmp_path / "data", tmp_path / "outside"
    outside.mkdir()
    options = ("--publish-checkpoints", str(outside), "--checkpoint-interval", "1h")
    published: dict[str, bytes] = {}
    for point in TO_A_FILE:
        killed_on_its_way(data, *options, point=point)
        published = check_published(data, outside, published)
    # The first of them died with its file in place, the others without.
    assert len(published) == 1
    assert Server(data, *options).start().stop() == 0
    published = check_published(data, outside, published)
    with LogReader.open(data / "log.db") as log:
        assert f"{log.head():019d}.note" in published
    assert [path.name for path in outside.iterdir() if path.name.startswith(".")] == []


def check_published(data: Path, outside: Path, before: dict[str, bytes]) -> dict[str, bytes]:
    """What is published now: what was there before, and only what the log keeps as well."""
    now = {path.name: path.read_bytes() for path in outside.glob("*.note")}
    assert {name: now.get(name) for name in before} == before
    with LogReader.open(data / "log.db") as log:
        said = lineage(log)
        assert contradictions(outside, log, said, said.verifiers) == []
        kept = {f"{one.size:019d}.note": one.note.encode() for one in log.checkpoints()}
        assert {name: kept.get(name) for name in now} == now
    return now
