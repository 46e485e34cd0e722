"""Which keys signed from when to when, and which restorations gave something up, as the log itself says."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from eventstore.errors import LogCorrupt, SchemaTooNew
from eventstore.event import Event, Position
from eventstore.keys import format_vkey, generate_key
from eventstore.lineage import Lineage, LogKey, Restored, lineage
from eventstore.log import EventLog
from tests.unit.eventstore.conftest import LOG_ID, build_event

ONE, TWO, THREE = (generate_key(LOG_ID, bytes([number]) * 32).verifier for number in (1, 2, 3))
ROOT = sha256(b"root").digest()


def said(position: int, version: int, type_: str, **data: Any) -> Event:
    return build_event(
        position, version=version, stream="log", type=type_, resource_id=None, operation_id=None, data=data
    )


def added(position: int, version: int, verifier: Any) -> Event:
    return said(position, version, "CheckpointKeyAdded", public_key=format_vkey(verifier))


def write(log: EventLog, *events: Event) -> None:
    for event in events:
        log.append([event], expected_head=Position(event.position - 1))


def test_a_log_without_a_key_says_nothing(log: EventLog) -> None:
    write(log, said(2, 2, "ServerStarted", software="x"), build_event(3, version=1))
    assert lineage(log) == Lineage((), ())
    assert lineage(log).verifiers == ()


def test_each_key_signs_until_the_next_one(log: EventLog) -> None:
    write(
        log,
        added(2, 2, ONE),
        build_event(3, version=1),
        said(4, 3, "ServerStarted", software="x"),
        said(5, 4, "ServerStarted", software="x"),
        added(6, 5, TWO),
        build_event(7, version=2),
        added(8, 6, THREE),
    )
    found = lineage(log)
    assert found.keys == (LogKey(ONE, 2, 5), LogKey(TWO, 6, 7), LogKey(THREE, 8, None))  # type: ignore[arg-type]
    assert found.verifiers == (ONE, TWO, THREE)


def test_only_a_restoration_that_names_a_checkpoint_gave_something_up(log: EventLog) -> None:
    write(
        log,
        said(2, 2, "LogRestored", reason="the key was not here"),
        said(3, 3, "LogRestored", reason="lost", size=17, root=ROOT.hex()),
    )
    assert lineage(log).restored == (Restored(Position(3), log.leaf(Position(3)), 17, ROOT),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        pytest.param(said(2, 2, "CheckpointKeyAdded"), "none", id="no-key"),
        pytest.param(said(2, 2, "CheckpointKeyAdded", public_key="x"), "none", id="malformed"),
        pytest.param(
            said(
                2,
                2,
                "CheckpointKeyAdded",
                public_key=format_vkey(generate_key("other", bytes(32)).verifier),
            ),
            "log other",
            id="of-another-log",
        ),
        pytest.param(said(2, 2, "LogRestored", size=1, root="zz"), "no checkpoint", id="no-hex"),
        pytest.param(said(2, 2, "LogRestored", size=1, root="00"), "no checkpoint", id="short"),
        pytest.param(said(2, 2, "LogRestored", root=ROOT.hex()), "no checkpoint", id="no-size"),
    ],
)
def test_what_no_server_has_written_is_damage(log: EventLog, event: Event, reason: str) -> None:
    write(log, event)
    with pytest.raises(LogCorrupt, match=reason) as refused:
        lineage(log)
    assert refused.value.position == 2


def damage(log: EventLog, statement: str) -> None:
    connection = log._open_connection()
    connection.execute("DROP TRIGGER event_update")
    connection.execute(statement)


def test_damage_in_another_event_is_not_looked_at(log: EventLog) -> None:
    write(log, added(2, 2, ONE), said(3, 3, "ServerStarted", software="x"))
    damage(log, "UPDATE event SET body = zeroblob(9) WHERE position = 3")
    assert lineage(log).verifiers == (ONE,)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET body = zeroblob(9) WHERE position = 2",
        "UPDATE event SET type = 'LogRestored' WHERE position = 3",
        "UPDATE event SET stream = 'log', version = 9, type = 'LogRestored' WHERE position = 4",
    ],
)
def test_damage_in_what_is_looked_at_is_told(log: EventLog, statement: str) -> None:
    write(log, added(2, 2, ONE), said(3, 3, "ServerStarted", software="x"), build_event(4, version=1))
    damage(log, statement)
    with pytest.raises(LogCorrupt):
        lineage(log)


@pytest.mark.parametrize("type_", ["CheckpointKeyAdded", "LogRestored"])
def test_a_newer_schema_is_not_guessed_at(log: EventLog, type_: str) -> None:
    write(log, said(2, 2, type_)._replace(schema=2))
    with pytest.raises(SchemaTooNew):
        lineage(log)
