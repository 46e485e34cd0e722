"""The key of a log through its life, and a log that is not the one that was published: over real servers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from eventstore import database
from eventstore.checkpoint import open_note
from eventstore.errors import ReceiptWrong
from eventstore.event import Event, Position
from eventstore.keys import (
    Verifier,
    create_key_file,
    generate_key,
    load_key_file,
    load_vkey_file,
    parse_vkey,
)
from eventstore.merkle import leaf_index
from eventstore.reader import LogReader
from eventstore.receipt import Receipt, check
from tests.conformance.api import Api
from tests.conformance.sites import until
from tests.conformance.test_proofs import checkpoint, grown, prove, public_keys
from tests.conformance.test_start import check_refused, contents
from tests.harness import Server, serving

SOON = ("--checkpoint-interval", "0.05s")


def log_events(data: Path) -> list[Event]:
    """Those of the log itself."""
    with LogReader.open(data / "log.db") as log:
        return log.events_of_stream("log")


def types(data: Path) -> list[str]:
    return [event.type for event in log_events(data)]


def write(server: Server, count: int = 1) -> None:
    with Api(server.address) as api:
        for _ in range(count):
            api.disk("folder")


def receipt_at_head(server: Server) -> Receipt:
    with Api(server.address) as api:
        answer = prove(api, checkpoint(api).size)
    message, position = answer.receipt, Position(answer.receipt.position)
    return Receipt(position, leaf_index(position), message.event, tuple(message.proof), answer.checkpoint)


def keys_of(server: Server) -> list[Verifier]:
    with Api(server.address) as api:
        return [parse_vkey(key.public_key) for key in public_keys(api)]


def notes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


# The key.


def test_the_first_start_makes_the_key_and_names_it_before_all_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data):
        first = load_key_file(data / "checkpoint.key").verifier
    with serving(data):
        pass
    assert load_key_file(data / "checkpoint.key").verifier == first
    assert (data / "checkpoint.key").stat().st_mode & 0o777 == 0o600
    assert load_vkey_file(data / "checkpoint.vkey") == (first,)
    assert types(data) == ["LogCreated", "CheckpointKeyAdded", "ServerStarted", "ServerStarted"]
    created, added, started, _ = log_events(data)
    assert parse_vkey(str(added.data["public_key"])) == first
    assert first.name == created.data["log_id"]
    # In one batch, so none of the two is ever there alone.
    assert added.at == started.at


def test_a_rotated_key_checks_what_it_signed_and_the_new_one_what_comes_after(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server:
        write(server)
        before, (old,) = receipt_at_head(server), keys_of(server)
        with Api(server.address) as api:
            old_note = checkpoint(api).note
    with serving(data, "--rotate-checkpoint-key") as server:
        write(server)
        after, (listed, new) = receipt_at_head(server), keys_of(server)
        with Api(server.address) as api:
            first, second = public_keys(api)
            assert grown(api, old_note).old_size == before.position
    assert listed == old != new
    added = [event.position for event in log_events(data) if event.type == "CheckpointKeyAdded"]
    assert added == [2, before.position + 1]
    assert [first.from_size, first.until_size] == [2, before.position]
    assert [second.from_size, second.until_size] == [before.position + 1, 0]
    for receipt, right, wrong in ((before, old, new), (after, new, old)):
        assert check(receipt, [right]).event.type == "SourceRegistered"
        assert check(receipt, [old, new]).event.type == "SourceRegistered"
        with pytest.raises(ReceiptWrong, match="signature"):
            check(receipt, [wrong])
    assert load_key_file(data / "checkpoint.key").verifier == new
    assert "LogRestored" not in types(data)


def test_a_key_that_is_given_takes_over_and_the_one_before_does_not_come_back(tmp_path: Path) -> None:
    data, mine = tmp_path / "data", tmp_path / "mine.key"
    with serving(data) as server:
        (old,) = keys_of(server)
    signer = generate_key(old.name, bytes(range(32)))
    create_key_file(mine, signer)
    for _ in range(2):
        with serving(data, "--checkpoint-key", str(mine)) as server:
            assert keys_of(server) == [old, signer.verifier]
            assert check(receipt_at_head(server), [signer.verifier])
    assert load_vkey_file(data / "checkpoint.vkey") == (signer.verifier,)
    check_refused(data, "FAILED_PRECONDITION", "checkpoint.key was the key of this log", "move this one away")


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        pytest.param(
            lambda path: create_key_file(path, generate_key("other", bytes(32))),
            ["is the key of log other", "give the key of this log"],
            id="of-another-log",
        ),
        pytest.param(lambda path: None, ["cannot be read: No such file"], id="absent"),
    ],
)
def test_a_key_that_cannot_sign_for_this_log(
    used_once: Path, tmp_path: Path, spoil: Callable[[Path], object], texts: list[str]
) -> None:
    path = tmp_path / "mine.key"
    spoil(path)
    options = ("--checkpoint-key", str(path))
    check_refused(used_once, "FAILED_PRECONDITION", str(path), *texts, options=options)


@pytest.fixture(scope="module")
def used_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("used") / "data"
    with serving(data) as server:
        write(server, 3)
    return data


@pytest.fixture
def used_once(used_master: Path, tmp_path: Path) -> Path:
    """A data directory of this test alone, which a server has used and left."""
    return Path(shutil.copytree(used_master, tmp_path / "data"))


def test_a_restored_log_without_its_key_says_so_and_signs_with_a_new_one(
    used_master: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(used_master / "log.db", data)
    old = load_vkey_file(used_master / "checkpoint.vkey")[0]
    with serving(data) as server:
        write(server)
        listed, new = keys_of(server)
        assert (listed, check(receipt_at_head(server), [new]).event.type) == (old, "SourceRegistered")
    assert types(data)[-3:] == ["LogRestored", "CheckpointKeyAdded", "ServerStarted"]
    with serving(data) as server:
        assert keys_of(server) == [old, new]
    assert types(data).count("LogRestored") == 1


def test_a_log_that_was_cut_off_is_not_served(used_once: Path) -> None:
    with closing(database.connect(used_once / "log.db", access="write", synchronous="FULL")) as connection:
        connection.execute("DROP TRIGGER event_delete")
        connection.execute("DELETE FROM event WHERE position > 4")
    check_refused(used_once, "DATA_LOSS", "TRUNCATION: the log ends at position 4", "restore the log")


# Outside.


def test_checkpoints_are_published_as_the_log_grows_and_at_the_end(tmp_path: Path, outside: Path) -> None:
    data = tmp_path / "data"
    with serving(data, "--publish-checkpoints", str(outside), *SOON) as server:
        verifiers = keys_of(server)
        until(lambda: len(notes(outside)) == 1)
        write(server)
        until(lambda: len(notes(outside)) == 2)
    with serving(data, "--publish-checkpoints", str(outside), "--checkpoint-interval", "1h") as server:
        until(lambda: len(notes(outside)) == 3)
        write(server)  # It stops before the next one is due.
    found = [open_note((outside / name).read_text(), verifiers) for name in notes(outside)]
    assert [one.size for one in found] == [3, 4, 5, 6]
    assert notes(outside) == [f"{one.size:019d}.note" for one in found]
    with LogReader.open(data / "log.db") as log:
        assert [kept.size for kept in log.checkpoints()] == [3, 4, 5, 6]


def test_a_folder_that_is_gone_for_a_while_does_not_end_the_service(tmp_path: Path, outside: Path) -> None:
    with serving(tmp_path / "data", "--publish-checkpoints", str(outside), *SOON) as server:
        until(lambda: len(notes(outside)) == 1)
        away = outside.rename(tmp_path / "away")
        write(server)
        until(lambda: "could not be published" in server.stderr())
        write(server)
        away.rename(outside)
        until(lambda: len(notes(outside)) >= 2)
        until(lambda: "published again" in server.stderr())
    assert notes(outside)[-1] == f"{5:019d}.note"
    assert server.stderr().count("could not be published") == 1


def test_a_log_that_was_put_back_is_refused_until_that_is_accepted(tmp_path: Path, outside: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    publishing = ("--publish-checkpoints", str(outside))
    with serving(data, *publishing) as server:
        write(server)
    shutil.copytree(data, copy)
    with serving(data, *publishing) as server:
        write(server, 3)
    lost = data.rename(tmp_path / "lost")
    copy.rename(data)
    published = contents(outside)
    newest = f"{outside / notes(outside)[-1]}"

    texts = ("ROLLBACK: the log ends at position 4", newest, "first 4 events", "--accept-rollback REASON")
    check_refused(data, "FAILED_PRECONDITION", *texts, options=publishing)

    with serving(data, *publishing, "--accept-rollback", "the disk of Friday is lost") as server:
        write(server)
        restored, started = log_events(data)[-2:]
        with Api(server.address) as api:
            assert checkpoint(api).size == 7
    with LogReader.open(lost / "log.db") as log:
        given_up = log.newest_checkpoint()
    assert given_up is not None
    assert (restored.type, started.type) == ("LogRestored", "ServerStarted")
    assert restored.data == {
        "reason": "the disk of Friday is lost",
        "size": given_up.size,
        "root": given_up.root.hex(),
    }
    # What was published before stays, and the log goes on in a folder of its own.
    assert {name: digest for name, digest in contents(outside).items() if name in published} == published
    (folder,) = (path for path in outside.iterdir() if path.is_dir())
    assert folder.name.startswith(f"{restored.position}-")
    assert notes(folder)[-1] == f"{7:019d}.note"

    # From then on it is held to that one, and nobody need accept it again. What was lost does not come back.
    with serving(data, *publishing) as server:
        write(server)
    assert types(data).count("LogRestored") == 1
    check_refused(lost, "FAILED_PRECONDITION", "FORK", str(folder), options=publishing)


def test_a_log_that_went_another_way_is_refused(used_once: Path, tmp_path: Path, outside: Path) -> None:
    twin = Path(shutil.copytree(used_once, tmp_path / "twin"))
    with serving(used_once, "--publish-checkpoints", str(outside)) as server:
        write(server)
    with serving(twin) as server:
        write(server, 5)
    texts = ("FORK: the log, at position 12", str(outside))
    check_refused(twin, "FAILED_PRECONDITION", *texts, options=("--publish-checkpoints", str(outside)))


def test_a_folder_that_cannot_be_published_to(used_once: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    options = ("--publish-checkpoints", str(absent))
    check_refused(used_once, "FAILED_PRECONDITION", str(absent), "no such file", "mount it", options=options)
    options = ("--publish-checkpoints", str(used_once / "blobs"))
    check_refused(used_once, "INVALID_ARGUMENT", "is in the data directory", options=options)
