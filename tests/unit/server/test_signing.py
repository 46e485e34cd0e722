"""Which key signs, and how a new one comes into the log and into its file, whenever a start dies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from eventstore.errors import KeyFileRefused
from eventstore.event import Event, Position, Version
from eventstore.keys import (
    Signer,
    Verifier,
    create_key_file,
    format_vkey,
    generate_key,
    load_key_file,
    load_vkey_file,
)
from eventstore.lineage import Lineage, LogKey, lineage
from eventstore.log import EventLog
from eventstore.reader import LogReader
from server.config import Config
from server.signing import KEY_FILE, NEXT_KEY_FILE, PUBLIC_KEY_FILE, KeyFiles
from server.start import open_stores
from tests.unit.eventstore.conftest import build_event
from tests.unit.eventstore.crashing import deaths

LOG_ID = "imageledger-" + "0" * 32
ONE, TWO, THREE = (generate_key(LOG_ID, bytes([number]) * 32) for number in (1, 2, 3))


def said(*signers: Signer) -> Lineage:
    """A log whose keys were these, each for ten events."""
    ends = [*(Position(10 * number + 9) for number in range(1, len(signers))), None]
    return Lineage(
        tuple(
            LogKey(signer.verifier, Position(10 * number), until)
            for number, (signer, until) in enumerate(zip(signers, ends, strict=False), 1)
        ),
        (),
    )


def files(folder: Path, present: Signer | None, following: Signer | None) -> KeyFiles:
    for name, signer in ((KEY_FILE, present), (NEXT_KEY_FILE, following)):
        if signer is not None:
            create_key_file(folder / name, signer)
    return KeyFiles(folder)


def seed(signer: Signer | None) -> bytes | None:
    return None if signer is None else signer.private_key.private_bytes_raw()


@pytest.mark.parametrize(
    ("keys", "present", "following", "rotate", "expected", "is_lost"),
    [
        pytest.param(said(), None, None, False, None, False, id="a-new-log"),
        pytest.param(said(), None, ONE, False, ONE, False, id="died-before-the-first-event"),
        pytest.param(said(), ONE, None, False, ONE, False, id="put-there-for-an-old-log"),
        pytest.param(said(ONE), None, ONE, False, ONE, False, id="died-after-the-first-event"),
        pytest.param(said(ONE), ONE, None, False, ONE, False, id="every-day"),
        pytest.param(said(ONE), ONE, TWO, False, ONE, False, id="died-before-a-rotation"),
        pytest.param(said(ONE), ONE, None, True, None, False, id="rotated"),
        pytest.param(said(ONE), ONE, TWO, True, TWO, False, id="rotated-again-after-a-death"),
        pytest.param(said(ONE, TWO), ONE, TWO, False, TWO, False, id="died-after-a-rotation"),
        pytest.param(said(ONE, TWO), ONE, TWO, True, TWO, False, id="that-rotation-and-no-second-one"),
        pytest.param(said(ONE), TWO, None, False, TWO, False, id="another-put-there"),
        pytest.param(said(ONE), None, None, False, None, True, id="restored-without-its-key"),
        pytest.param(said(ONE), None, TWO, False, TWO, True, id="that-and-died-before-the-event"),
        pytest.param(said(ONE, TWO), None, TWO, False, TWO, False, id="that-and-died-after-the-event"),
        pytest.param(said(ONE), None, None, True, None, True, id="rotated-without-its-key"),
    ],
)
def test_which_key_signs(
    tmp_path: Path,
    keys: Lineage,
    present: Signer | None,
    following: Signer | None,
    rotate: bool,
    expected: Signer | None,
    is_lost: bool,
) -> None:
    found = files(tmp_path, present, following)
    signer = found.find(keys, LOG_ID, rotate=rotate)
    assert seed(signer) == seed(expected)
    assert found.is_lost(keys, signer) is is_lost


def test_a_given_key_comes_before_those_in_the_folder(tmp_path: Path) -> None:
    files(tmp_path, ONE, None)
    create_key_file(tmp_path / "mine.key", TWO)
    given = KeyFiles(tmp_path, tmp_path / "mine.key")
    for keys in (said(), said(ONE), said(ONE, TWO)):
        signer = given.find(keys, LOG_ID, rotate=False)
        assert seed(signer) == seed(TWO)
        assert not given.is_lost(keys, signer)


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize(
    ("keys", "log_id", "signer", "reason"),
    [
        pytest.param(said(ONE, TWO), LOG_ID, ONE, "until position 19", id="retired"),
        pytest.param(said(ONE), LOG_ID, generate_key("other", bytes(32)), "of log other", id="foreign"),
        pytest.param(said(), None, ONE, "there is no log here", id="no-log"),
    ],
)
def test_a_key_that_may_not_sign(
    tmp_path: Path, keys: Lineage, log_id: str | None, signer: Signer, reason: str, is_given: bool
) -> None:
    path = tmp_path / ("mine.key" if is_given else KEY_FILE)
    create_key_file(path, signer)
    found = KeyFiles(tmp_path, path if is_given else None)
    with pytest.raises(KeyFileRefused, match=reason) as refused:
        found.find(keys, log_id, rotate=False)
    assert refused.value.path == path


def test_a_given_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(KeyFileRefused, match=r"cannot be read"):
        KeyFiles(tmp_path, tmp_path / "absent").find(said(ONE), LOG_ID, rotate=False)


def test_others_must_not_read_it(tmp_path: Path) -> None:
    found = files(tmp_path, ONE, None)
    (tmp_path / KEY_FILE).chmod(0o640)
    with pytest.raises(KeyFileRefused, match="chmod 600"):
        found.find(said(ONE), LOG_ID, rotate=False)


# A start that dies at any step.


def start(config: Config) -> list[str]:
    """What a start does with keys and log, without the rest of a server; gives the types of its events."""
    with ExitStack() as stack:
        writing = open_stores(config, stack).writing
        assert writing is not None
        events = [(event.type, dict(event.data)) for event in writing.first_events]
        append(writing.log, [*events, ("ServerStarted", {"software": "x"})])
        writing.key_files.settle(writing.signer)
        return [type_ for type_, _ in events]


def append(log: EventLog, told: list[tuple[str, dict[str, str | int]]]) -> None:
    head, version = log.head(), log.stream_version("log")
    at = log.at(head) + 1
    events: list[Event] = [
        build_event(
            head + number,
            version=Version(version + number),
            at=at,
            stream="log",
            type=type_,
            data=data,
            resource_id=None,
            operation_id=None,
        )
        for number, (type_, data) in enumerate(told, 1)
    ]
    log.append(events, expected_head=head)


def says(data: Path) -> Lineage:
    with LogReader.open(data / "log.db") as log:
        return lineage(log)


def types(data: Path) -> list[str]:
    with LogReader.open(data / "log.db") as log:
        return [event.type for event in log.events() if event.type in ("CheckpointKeyAdded", "LogRestored")]


def check_settled(data: Path) -> Verifier:
    """One key, the one that the log names, in its file and no other, and its public part beside it."""
    key = load_key_file(data / KEY_FILE).verifier
    assert says(data).keys[-1].verifier == key
    assert load_vkey_file(data / PUBLIC_KEY_FILE) == (key,)
    assert (data / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert {path.name for path in data.iterdir() if "checkpoint" in path.name} == {KEY_FILE, PUBLIC_KEY_FILE}
    return key


def config_of(data: Path, *, rotate: bool = False) -> Config:
    return Config(data=data, listen="127.0.0.1:0", rotate_checkpoint_key=rotate)


def nothing(data: Path) -> None:
    pass


def used(data: Path) -> None:
    start(config_of(data))


def without_its_key(data: Path) -> None:
    start(config_of(data))
    (data / KEY_FILE).unlink()


ADDED, RESTORED = "CheckpointKeyAdded", "LogRestored"


@pytest.mark.parametrize(
    ("prepare", "rotate", "begun", "ended"),
    [
        pytest.param(nothing, False, [ADDED], [ADDED], id="the-first-start"),
        # The next start has not the option: what was begun is ended, and what was not is not begun.
        pytest.param(used, True, [ADDED], [ADDED, ADDED], id="a-rotation"),
        pytest.param(
            without_its_key, False, [ADDED, RESTORED, ADDED], [ADDED, RESTORED, ADDED], id="a-lost-key"
        ),
    ],
)
def test_a_start_that_dies_at_any_step_is_finished_by_the_next(
    tmp_path: Path, prepare: Callable[[Path], None], rotate: bool, begun: list[str], ended: list[str]
) -> None:
    folders: list[Path] = []

    def fresh() -> None:
        folders.append(tmp_path / f"data-{len(folders)}")
        prepare(folders[-1])

    for _ in deaths("checkpoint", lambda: start(config_of(folders[-1], rotate=rotate)), prepare=fresh):
        data = folders[-1]
        start(config_of(data))
        assert types(data) in (begun, ended)
        key = check_settled(data)
        assert start(config_of(data)) == []
        assert check_settled(data) == key
    assert types(folders[-1]) == ended
    check_settled(folders[-1])
    assert len(folders) > 8


def test_the_key_before_is_gone_after_a_rotation(tmp_path: Path) -> None:
    data = tmp_path / "data"
    start(config_of(data))
    secret = tmp_path / "old.key"
    shutil.copy(data / KEY_FILE, secret)
    before = check_settled(data)
    assert start(config_of(data, rotate=True)) == [ADDED]
    after = check_settled(data)
    assert before != after
    assert says(data).verifiers == (before, after)
    text = secret.read_bytes().strip()
    assert not [path for path in data.rglob("*") if path.is_file() and text in path.read_bytes()]
    # And it does not come back.
    with pytest.raises(KeyFileRefused, match="is none any more"):
        start(Config(data=data, listen="127.0.0.1:0", checkpoint_key=secret))


def test_the_public_part_is_that_of_the_key_that_was_given(tmp_path: Path) -> None:
    data = tmp_path / "data"
    start(config_of(data))
    with LogReader.open(data / "log.db") as log:
        mine = generate_key(log.log_id, bytes(32))
    create_key_file(tmp_path / "mine.key", mine)
    config = Config(data=data, listen="127.0.0.1:0", checkpoint_key=tmp_path / "mine.key")
    assert start(config) == [ADDED]
    assert start(config) == []
    assert (data / PUBLIC_KEY_FILE).read_text() == format_vkey(mine.verifier) + "\n"
