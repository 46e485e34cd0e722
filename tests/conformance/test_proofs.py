"""imageledger.v1.ProofService, and what HistoryService proves: over the wire, checked with the key alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from eventstore.checkpoint import Checkpoint, open_note, sign
from eventstore.event import Event, Position
from eventstore.keys import Verifier, generate_key, parse_vkey
from eventstore.merkle import TreeSize, leaf_index
from eventstore.receipt import Consistency, Receipt, check, check_grown
from server.gen.imageledger.v1 import history_service_pb2 as history_pb
from server.gen.imageledger.v1 import proof_service_pb2 as pb
from server.gen.imageledger.v1 import source_service_pb2
from tests.conformance.api import Api, Code, as_of, position_of, refused
from tests.conformance.history import HISTORY, events, stream
from tests.harness import Metadata, serving

pytestmark = pytest.mark.usefixtures("quiet")

PROOFS = "imageledger.v1.ProofService"
FIELDS = 15


def checkpoint(api: Api, metadata: Metadata = ()) -> pb.SignedCheckpoint:
    return api.call(PROOFS, "Checkpoint", pb.CheckpointRequest(), pb.SignedCheckpoint, metadata)


def prove(api: Api, position: int, metadata: Metadata = ()) -> pb.ProveResponse:
    return api.call(PROOFS, "Prove", pb.ProveRequest(position=position), pb.ProveResponse, metadata)


def grown(api: Api, old: str, metadata: Metadata = ()) -> pb.ProveConsistencyResponse:
    request = pb.ProveConsistencyRequest(old_checkpoint=old)
    return api.call(PROOFS, "ProveConsistency", request, pb.ProveConsistencyResponse, metadata)


def public_keys(api: Api) -> list[pb.PublicKey]:
    return list(api.call(PROOFS, "PublicKeys", pb.PublicKeysRequest(), pb.PublicKeysResponse).keys)


def keys(api: Api) -> list[Verifier]:
    return [parse_vkey(key.public_key) for key in public_keys(api)]


def proven(api: Api, message: pb.Receipt, note: str) -> Event:
    """The event that a receipt proves to who has the public keys."""
    position = Position(message.position)
    receipt = Receipt(position, leaf_index(position), message.event, tuple(message.proof), note)
    return check(receipt, keys(api)).event


def updated(api: Api, image_id: str, description: str) -> int:
    """The position of the event."""
    return position_of(api.updated(image_id, ["description"], description=description)[1])


@pytest.fixture
def image_id(api: Api, folder: str, disk: source_service_pb2.Source) -> str:
    return api.image(folder, disk_id=disk.id, name="web").id


# Checkpoints.


def test_a_checkpoint_covers_all_that_was_written_before_it(api: Api, image_id: str) -> None:
    position = updated(api, image_id, "one")
    made = checkpoint(api)
    assert made.size >= position
    opened = open_note(made.note, [parse_vkey(made.public_key)])
    assert (opened.origin, opened.size, opened.root) == (made.origin, made.size, made.root)
    assert made.public_key == public_keys(api)[-1].public_key


def test_without_news_it_is_the_same(api: Api) -> None:
    assert checkpoint(api) == checkpoint(api)


def test_a_checkpoint_names_its_position(api: Api) -> None:
    made, call = api.full_call(PROOFS, "Checkpoint", pb.CheckpointRequest(), pb.SignedCheckpoint)
    assert position_of(call) == made.size


def test_the_key_is_the_logs_and_stands_in_it(api: Api) -> None:
    (key,) = public_keys(api)
    assert (key.from_size, key.until_size) == (2, 0)
    (added,) = events(api, type="CheckpointKeyAdded")
    assert (added.position, added.data["public_key"]) == (2, key.public_key)
    assert (added.stream, added.actor, added.auth) == ("log", "imageledger", "system")
    assert key.public_key.split("+")[0] == checkpoint(api).origin


# Receipts.


def test_every_event_has_a_receipt(api: Api, image_id: str) -> None:
    last = updated(api, image_id, "one")
    for event in events(api, from_moment={"position": max(1, last - 20)}, to_moment={"position": last}):
        answer = prove(api, event.position)
        assert proven(api, answer.receipt, answer.checkpoint) == event


def test_a_receipt_is_had_at_once_of_what_was_just_written(api: Api, image_id: str) -> None:
    for number in range(5):
        position = updated(api, image_id, f"{number}")
        answer = prove(api, position)
        assert proven(api, answer.receipt, answer.checkpoint).data["description"] == f"{number}"


def test_as_of_a_position_nothing_after_it_is_proved(api: Api, image_id: str) -> None:
    position = updated(api, image_id, "one")
    answer = prove(api, position, as_of(position))
    assert answer.receipt.position == position
    refusal = refused(lambda: prove(api, position, as_of(position - 1)))
    assert (refusal.code, refusal.fields) == (Code.OUT_OF_RANGE, ["position"])


@pytest.mark.parametrize("position", [0, -1])
def test_a_position_that_no_log_has(api: Api, position: int) -> None:
    refusal = refused(lambda: prove(api, position))
    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["position"])


def test_a_position_beyond_the_head(api: Api) -> None:
    head = checkpoint(api).size
    refusal = refused(lambda: prove(api, head + 1_000_000))
    assert (refusal.code, refusal.fields, refusal.reason) == (
        Code.OUT_OF_RANGE,
        ["position"],
        "OUT_OF_RANGE",
    )
    assert f"{head}" in refusal.message


# Growth.


def test_the_log_grew_from_every_checkpoint_that_was_kept(api: Api, image_id: str) -> None:
    notes = [checkpoint(api).note]
    for number in range(4):
        updated(api, image_id, f"{number}")
        notes.append(checkpoint(api).note)
    for note in notes:
        answer = grown(api, note)
        consistency = Consistency(
            TreeSize(answer.old_size), TreeSize(answer.size), tuple(answer.proof), answer.checkpoint
        )
        old, new = check_grown(consistency, note, keys(api))
        assert (old.size, new.size) == (open_note(note, keys(api)).size, open_note(notes[-1], keys(api)).size)


def forged(api: Api, **fields: Any) -> str:
    """A note of this log's name that a stranger has signed."""
    origin = checkpoint(api).origin
    stranger = generate_key(origin, bytes(32))
    return sign(Checkpoint(**{"origin": origin, "size": TreeSize(1), "root": bytes(32), **fields}), stranger)


def test_a_note_that_is_not_of_this_log(api: Api) -> None:
    foreign = sign(Checkpoint("other", TreeSize(5), bytes(32)), generate_key("other", bytes(32)))
    for note in (foreign, forged(api)):
        refusal = refused(lambda: grown(api, note))  # noqa: B023
        assert (refusal.code, refusal.fields) == (Code.FAILED_PRECONDITION, ["old_checkpoint"])
        assert "by no key of this log" in refusal.message


def test_a_note_that_was_changed(api: Api) -> None:
    made = checkpoint(api)
    changed = made.note.replace(f"\n{made.size}\n", f"\n{made.size - 1}\n")
    refusal = refused(lambda: grown(api, changed))
    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["old_checkpoint"])
    assert "text or signature was changed" in refusal.message


@pytest.mark.parametrize("note", ["", "no note", "\n", "x" * 65_537])
def test_what_is_no_note(api: Api, note: str) -> None:
    refusal = refused(lambda: grown(api, note))
    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["old_checkpoint"])


@pytest.mark.parametrize(
    ("method", "request_", "answer"),
    [
        ("Checkpoint", pb.CheckpointRequest(), pb.SignedCheckpoint),
        ("ProveConsistency", pb.ProveConsistencyRequest(old_checkpoint="x"), pb.ProveConsistencyResponse),
        ("PublicKeys", pb.PublicKeysRequest(), pb.PublicKeysResponse),
    ],
)
def test_what_is_of_the_present_is_not_asked_about_the_past(
    api: Api, method: str, request_: Any, answer: Any
) -> None:
    refusal = refused(lambda: api.call(PROOFS, method, request_, answer, as_of(1)))
    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["x-as-of"])


# Images.


def image_proof(api: Api, image_id: str, metadata: Metadata = ()) -> list[tuple[pb.Receipt, str]]:
    answers, _ = stream(api, "ProveImage", history_pb.ProveImageRequest(image_id=image_id), metadata)
    return [(receipt, answer.checkpoint) for answer in answers for receipt in answer.receipts]


def check_image(api: Api, found: Iterable[tuple[pb.Receipt, str]], expected: list[Event]) -> None:
    found = list(found)
    assert [proven(api, receipt, note) for receipt, note in found] == expected
    assert len({note for _, note in found}) == 1


def test_an_image_is_proved_by_all_its_events(api: Api, image_id: str) -> None:
    # More than a page.
    for number in range(40):
        updated(api, image_id, f"{number}")
    expected = events(api, resource_id=image_id)
    assert len(expected) == 42
    check_image(api, image_proof(api, image_id), expected)


def test_as_of_a_position_an_image_is_proved_by_what_made_it_so(api: Api, image_id: str) -> None:
    before = updated(api, image_id, "one")
    updated(api, image_id, "two")
    expected = [event for event in events(api, resource_id=image_id) if event.position <= before]
    check_image(api, image_proof(api, image_id, as_of(before)), expected)
    assert api.get(image_id, as_of(before)).description == expected[-1].data["description"] == "one"


def test_the_end_of_an_image_is_proved_too(api: Api, image_id: str) -> None:
    api.delete(image_id)
    expected = events(api, resource_id=image_id)
    assert expected[-1].type == "ImageDeleted"
    check_image(api, image_proof(api, image_id), expected)


def test_an_image_that_is_not_there(api: Api, image_id: str, disk: source_service_pb2.Source) -> None:
    born = events(api, resource_id=image_id)[0].position
    for unknown, metadata in (("nobody", ()), (disk.id, ()), (image_id, as_of(born - 1))):
        refusal = refused(lambda: image_proof(api, unknown, metadata))  # noqa: B023
        assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "NOT_FOUND")


def test_a_moment_that_has_not_come(api: Api, image_id: str) -> None:
    refusal = refused(lambda: image_proof(api, image_id, as_of("2200-01-01T00:00:00Z")))
    assert (refusal.code, refusal.fields) == (Code.OUT_OF_RANGE, ["x-as-of"])


# Blame.


def blame(api: Api, image_id: str, metadata: Metadata = (), *, proved: bool) -> history_pb.BlameResponse:
    request = history_pb.BlameRequest(image_id=image_id, prove=proved)
    return api.call(HISTORY, "Blame", request, history_pb.BlameResponse, metadata)


def test_every_field_of_a_blame_is_proved(api: Api, image_id: str) -> None:
    position = updated(api, image_id, "one")
    api.update(image_id, ["labels"], labels={"env": "live"})
    for metadata in ((), as_of(position)):
        answer = blame(api, image_id, metadata, proved=True)
        receipts = {receipt.position: receipt for receipt in answer.receipts}
        assert [receipt.position for receipt in answer.receipts] == sorted(receipts)
        assert len(answer.fields) == FIELDS
        for field in answer.fields:
            event = proven(api, receipts[field.position], answer.checkpoint)
            assert (event.position, event.operation_id) == (field.position, field.operation_id)
        plain = blame(api, image_id, metadata, proved=False)
        assert (plain.fields, plain.position) == (answer.fields, answer.position)
        assert (list(plain.receipts), plain.checkpoint) == ([], "")


# A restart.


def test_what_was_given_out_before_a_restart_holds_after_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as first, Api(first.address) as api:
        api.disk("folder")
        before = checkpoint(api)
        answer = prove(api, before.size)
        old_keys = public_keys(api)
    with serving(data) as again, Api(again.address) as api:
        assert public_keys(api) == old_keys
        assert proven(api, answer.receipt, answer.checkpoint).type == "SourceRegistered"
        assert grown(api, before.note).old_size == before.size
        assert events(api, type="LogRestored") == []
        assert [event.position for event in events(api, type="CheckpointKeyAdded")] == [2]
