from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.checkpoint import Checkpoint, open_note, sign
from eventstore.errors import (
    CheckpointContradicted,
    ForeignCheckpoint,
    LogCorrupt,
    NoSuchPosition,
    NoteMalformed,
    ReceiptMalformed,
    ReceiptWrong,
)
from eventstore.event import Position, encode
from eventstore.heads import check_log, checkpoint_at
from eventstore.keys import generate_key, load_vkey_file
from eventstore.log import EventLog
from eventstore.merkle import EMPTY as EMPTY_FRONTIER
from eventstore.merkle import LeafIndex, TreeSize, extend, leaf_hash, root
from eventstore.proofs import inclusion_proof
from eventstore.reader import LogReader
from eventstore.receipt import (
    Consistency,
    Grown,
    Proven,
    Receipt,
    check,
    check_grown,
    prove,
    prove_all,
    prove_consistency,
)
from eventstore.receipt_text import (
    consistency_json,
    parse_json,
    parse_tlog_proof,
    receipt_json,
    tlog_proof,
)
from tests.unit.eventstore.conftest import LOG_ID, build_event
from tests.unit.eventstore.trees import reader_of

GOLDEN = Path(__file__).parents[2] / "golden" / "proof"

SIGNER = generate_key(LOG_ID, bytes(range(32)))
KEYS = (SIGNER.verifier,)


def note_at(log: LogReader, size: int) -> str:
    return sign(checkpoint_at(log, TreeSize(size)), SIGNER)


@pytest.fixture(scope="module")
def ten_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with positions 1 to 10, made once; nobody writes it."""
    path = tmp_path_factory.mktemp("ten") / "log.db"
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
        for position in range(2, 11):
            log.append([build_event(position)], expected_head=Position(position - 1))
    return path


@pytest.fixture(scope="module")
def ten(ten_path: Path) -> Iterator[LogReader]:
    with LogReader.open(ten_path) as log:
        yield log


@pytest.fixture(scope="module")
def note(ten: LogReader) -> str:
    return note_at(ten, 10)


@pytest.fixture(scope="module")
def receipt(ten: LogReader, note: str) -> Receipt:
    return prove(ten, Position(7), note)


@pytest.fixture(scope="module")
def consistency(ten: LogReader, note: str) -> Consistency:
    return prove_consistency(ten, checkpoint_at(ten, TreeSize(6)), note)


def test_every_event_is_proven_by_every_later_checkpoint(ten: LogReader) -> None:
    for size in range(1, 11):
        note = note_at(ten, size)
        for position in range(1, size + 1):
            receipt = prove(ten, Position(position), note)
            event, checkpoint = check(receipt, KEYS)
            assert event == ten.event(Position(position))
            assert checkpoint == checkpoint_at(ten, TreeSize(size))


def test_every_checkpoint_grew_from_every_older_one(ten: LogReader) -> None:
    notes = {size: note_at(ten, size) for size in range(1, 11)}
    for old_size in notes:
        for size in range(old_size, 11):
            old = checkpoint_at(ten, TreeSize(old_size))
            consistency = prove_consistency(ten, old, notes[size])
            new = checkpoint_at(ten, TreeSize(size))
            assert check_grown(consistency, notes[old_size], KEYS) == Grown(old, new)


def test_a_checkpoint_is_of_all_events_up_to_its_size(ten: LogReader) -> None:
    leaves = [ten.leaf(Position(position)) for position in range(1, 11)]
    for size in range(11):
        expected = root(extend(EMPTY_FRONTIER, leaves[:size])[0])
        assert checkpoint_at(ten, TreeSize(size)) == Checkpoint(LOG_ID, TreeSize(size), expected)


class TestText:
    def test_json_comes_back(self, receipt: Receipt, consistency: Consistency) -> None:
        assert parse_json(json.loads(json.dumps(receipt_json(receipt)))) == receipt
        assert parse_json(json.loads(json.dumps(consistency_json(consistency)))) == consistency

    def test_json_has_the_documented_keys(self, receipt: Receipt, consistency: Consistency) -> None:
        document = receipt_json(receipt)
        assert list(document) == ["position", "index", "event", "proof", "checkpoint"]
        assert (document["position"], document["index"]) == (7, 6)
        assert base64.b64decode(document["event"]) == receipt.body
        assert [base64.b64decode(node) for node in document["proof"]] == list(receipt.proof)
        assert document["checkpoint"] == receipt.checkpoint
        assert list(consistency_json(consistency)) == ["old_size", "size", "proof", "checkpoint"]

    def test_further_keys_are_not_looked_at(self, receipt: Receipt) -> None:
        assert parse_json({**receipt_json(receipt), "more": 1}) == receipt

    def test_tlog_proof_comes_back(self, receipt: Receipt) -> None:
        text = tlog_proof(receipt)
        first, extra, index, *rest = text.split("\n")
        assert first == "c2sp.org/tlog-proof@v1"
        assert base64.b64decode(extra.removeprefix("extra ")) == receipt.body
        assert index == "index 6"
        assert rest[: len(receipt.proof)] == [base64.b64encode(node).decode() for node in receipt.proof]
        assert text.endswith("\n\n" + receipt.checkpoint)
        assert parse_tlog_proof(text) == receipt

    def test_tlog_proof_of_the_only_event_has_no_hashes(self, ten: LogReader) -> None:
        receipt = prove(ten, Position(1), note_at(ten, 1))
        assert f"\nindex 0\n\n{LOG_ID}\n1\n" in tlog_proof(receipt)
        assert parse_tlog_proof(tlog_proof(receipt)) == receipt

    def test_tlog_proof_may_come_without_the_event(self, receipt: Receipt) -> None:
        lines = tlog_proof(receipt).split("\n")
        bare = "\n".join([lines[0], *lines[2:]])
        assert parse_tlog_proof(bare, receipt.body) == receipt
        with pytest.raises(ReceiptMalformed, match="does not hold the event"):
            parse_tlog_proof(bare)

    def test_an_event_given_beside_it_counts(self, receipt: Receipt) -> None:
        read = parse_tlog_proof(tlog_proof(receipt), b"another")
        assert read == replace(receipt, body=b"another")

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda text: text.replace("@v1", "@v2"), id="version"),
            pytest.param(lambda text: " " + text, id="space-in-front"),
            pytest.param(lambda text: text.replace("extra ", "extra  "), id="two-spaces"),
            pytest.param(lambda text: text.replace("index 6", "index 06"), id="leading-zero"),
            pytest.param(lambda text: text.replace("index 6", "index -6"), id="negative"),
            pytest.param(lambda text: text.replace("index 6", f"index {2**63}"), id="too-large"),
            pytest.param(lambda text: text.replace("index 6\n", ""), id="no-index"),
            pytest.param(lambda text: text.replace("index 6\n", "index 6\nAAAA\n"), id="short-hash"),
            pytest.param(lambda text: text.replace("index 6\n", "index 6\n!\n"), id="no-base64"),
            pytest.param(lambda text: "c2sp.org/tlog-proof@v1\n", id="header-alone"),
            pytest.param(lambda text: text.replace("\n", "\r\n"), id="carriage-returns"),
            pytest.param(lambda text: "", id="empty"),
        ],
    )
    def test_what_is_no_tlog_proof(self, receipt: Receipt, change: Callable[[str], str]) -> None:
        with pytest.raises(ReceiptMalformed):
            parse_tlog_proof(change(tlog_proof(receipt)))

    def test_too_many_hashes(self, receipt: Receipt) -> None:
        long = replace(receipt, proof=receipt.proof * 30)
        with pytest.raises(ReceiptMalformed, match="at most 64"):
            parse_tlog_proof(tlog_proof(long))
        with pytest.raises(ReceiptMalformed, match="at most 64"):
            parse_json(receipt_json(long))

    @pytest.mark.parametrize("document", [None, [], 7, "text", {}])
    def test_what_is_no_object_with_a_proof(self, document: object) -> None:
        with pytest.raises(ReceiptMalformed):
            parse_json(document)

    @pytest.mark.parametrize("key", ["position", "index", "event", "proof", "checkpoint"])
    @pytest.mark.parametrize("value", [None, True, -1, 2**63, 1.0, "7", "!", ["AAAA"], [7], {}])
    def test_a_value_of_another_kind_is_refused(self, receipt: Receipt, key: str, value: object) -> None:
        document = receipt_json(receipt) | {key: value}
        if isinstance(value, str) and key == "checkpoint":
            return  # Whether it is a note is for the check to say.
        with pytest.raises(ReceiptMalformed, match=key):
            parse_json(document)

    @pytest.mark.parametrize("key", ["position", "index", "event", "proof", "checkpoint"])
    def test_a_missing_key_is_named(self, receipt: Receipt, key: str) -> None:
        document = receipt_json(receipt)
        del document[key]
        with pytest.raises(ReceiptMalformed, match=key):
            parse_json(document)


def refused_at(step: str, receipt: Receipt) -> ReceiptWrong:
    with pytest.raises(ReceiptWrong) as refused:
        check(receipt, KEYS)
    assert refused.value.step == step
    return refused.value


class TestWhatProvesNothing:
    """Each names the step that failed."""

    def test_a_note_of_another_key(self, receipt: Receipt, ten: LogReader) -> None:
        other = generate_key(LOG_ID, bytes(32))
        forged = sign(checkpoint_at(ten, TreeSize(10)), other)
        error = refused_at("signature", replace(receipt, checkpoint=forged))
        assert other.verifier.key in error.reason
        assert SIGNER.verifier.key in error.reason

    def test_a_note_that_was_changed(self, receipt: Receipt) -> None:
        changed = receipt.checkpoint.replace("\n10\n", "\n11\n")
        assert SIGNER.verifier.key in refused_at("signature", replace(receipt, checkpoint=changed)).reason

    @pytest.mark.parametrize("text", ["", "text", f"{LOG_ID}\n10\n"])
    def test_what_is_no_note(self, receipt: Receipt, text: str) -> None:
        refused_at("signature", replace(receipt, checkpoint=text))

    def test_a_signed_note_that_is_no_checkpoint(self, receipt: Receipt) -> None:
        line = base64.b64encode(SIGNER.verifier.key_id + SIGNER.private_key.sign(b"hello\n")).decode()
        refused_at("signature", replace(receipt, checkpoint=f"hello\n\n— {LOG_ID} {line}\n"))

    def test_a_checkpoint_of_another_log_signed_by_the_key(self, receipt: Receipt, ten: LogReader) -> None:
        foreign = replace(checkpoint_at(ten, TreeSize(10)), origin="another-log")
        error = refused_at("origin", replace(receipt, checkpoint=sign(foreign, SIGNER)))
        assert "another-log" in error.reason
        assert LOG_ID in error.reason

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"\xc0", id="nil"),
            pytest.param(b"\x80", id="empty-map"),
            pytest.param(msgpack.packb({"v": 1, "position": 7}), id="incomplete"),
            pytest.param(encode(build_event(7)) + b"\xc0", id="more-behind-it"),
            pytest.param(encode(build_event(7)).replace(b"\xa1v\x01", b"\xa1v\xcc\x01"), id="longer-number"),
            pytest.param(encode(build_event(7)).replace(b"\xa1v\x01", b"\xa1v\x02"), id="later-envelope"),
        ],
    )
    def test_bytes_that_are_no_event(self, body: bytes) -> None:
        """Although the log has them, and a checkpoint covers them: they are proven, and still no event."""
        bodies = [*(encode(build_event(position)) for position in range(2, 8)), body]
        checkpoint = Checkpoint(LOG_ID, TreeSize(7), root(extend(EMPTY_FRONTIER, map(leaf_hash, bodies))[0]))
        proof = inclusion_proof(LeafIndex(6), TreeSize(7), reader_of(bodies))
        receipt = Receipt(Position(7), LeafIndex(6), body, proof, sign(checkpoint, SIGNER))
        refused_at("event", receipt)

    def test_another_position(self, receipt: Receipt, ten: LogReader) -> None:
        refused_at("position", replace(receipt, position=Position(8)))
        refused_at("position", replace(receipt, index=LeafIndex(7)))
        refused_at("position", replace(receipt, position=Position(8), index=LeafIndex(7)))
        refused_at("position", replace(receipt, body=ten.body(Position(8))))

    def test_an_event_that_stands_elsewhere_than_it_says(self) -> None:
        """The log itself lies: its seventh event says that it is the eighth."""
        bodies = [encode(build_event(position)) for position in (2, 2, 3, 4, 5, 6, 8)]
        checkpoint = Checkpoint(LOG_ID, TreeSize(7), root(extend(EMPTY_FRONTIER, map(leaf_hash, bodies))[0]))
        proof = inclusion_proof(LeafIndex(6), TreeSize(7), reader_of(bodies))
        note = sign(checkpoint, SIGNER)
        for position in (7, 8):
            refused_at("position", Receipt(Position(position), LeafIndex(6), bodies[6], proof, note))

    def test_another_event_of_the_same_position(self, receipt: Receipt) -> None:
        forged = encode(build_event(7, actor="someone else"))
        refused_at("inclusion", replace(receipt, body=forged))

    def test_a_proof_of_another_tree(self, receipt: Receipt, ten: LogReader) -> None:
        for size in (7, 8, 9):
            refused_at("inclusion", replace(receipt, checkpoint=note_at(ten, size)))

    def test_a_proof_of_another_leaf(self, receipt: Receipt, ten: LogReader) -> None:
        other = prove(ten, Position(8), receipt.checkpoint)
        refused_at("inclusion", replace(receipt, proof=other.proof))

    def test_a_later_position_than_the_tree_has(self, receipt: Receipt, ten: LogReader) -> None:
        refused_at("inclusion", replace(receipt, checkpoint=note_at(ten, 6)))

    def test_a_first_event_that_creates_another_log(self) -> None:
        body = encode(
            build_event(1, version=1, stream="log", type="LogCreated", data={"log_id": "another-log"})
        )
        note = sign(Checkpoint(LOG_ID, TreeSize(1), leaf_hash(body)), SIGNER)
        error = refused_at("origin", Receipt(Position(1), LeafIndex(0), body, (), note))
        assert "another-log" in error.reason

    def test_every_byte_counts(self, receipt: Receipt) -> None:
        """Of the bytes of the event and the proof; the note has its own test."""
        for at in range(len(receipt.body)):
            for flip in (1, 128):
                body = bytearray(receipt.body)
                body[at] ^= flip
                with pytest.raises(ReceiptWrong):
                    check(replace(receipt, body=bytes(body)), KEYS)
        for number, node in enumerate(receipt.proof):
            for at in range(32):
                changed = bytearray(node)
                changed[at] ^= 1
                proof = (*receipt.proof[:number], bytes(changed), *receipt.proof[number + 1 :])
                refused_at("inclusion", replace(receipt, proof=proof))

    def test_the_message_says_what_it_is_good_for(self, receipt: Receipt) -> None:
        error = refused_at("inclusion", replace(receipt, proof=receipt.proof[1:]))
        assert str(error) == (
            "the proof fails at its inclusion: it has 3 hashes, that of leaf 6 in a tree of 10 leaves has 4; "
            "it proves nothing, ask for another one"
        )


class TestWhatDidNotGrow:
    def refused_at(self, step: str, consistency: Consistency, old_note: str) -> ReceiptWrong:
        with pytest.raises(ReceiptWrong) as refused:
            check_grown(consistency, old_note, KEYS)
        assert refused.value.step == step
        return refused.value

    def test_a_rewritten_log(self, ten: LogReader, consistency: Consistency) -> None:
        """The auditor kept a checkpoint of six events, one of which is another one now."""
        kept = replace(checkpoint_at(ten, TreeSize(6)), root=bytes(32))
        self.refused_at("consistency", consistency, sign(kept, SIGNER))

    def test_another_older_note(self, ten: LogReader, consistency: Consistency) -> None:
        for size in (5, 7, 10):
            self.refused_at("older note", consistency, note_at(ten, size))

    def test_an_older_note_of_another_log(self, ten: LogReader, consistency: Consistency) -> None:
        other = generate_key("another-log", bytes(32))
        foreign = replace(checkpoint_at(ten, TreeSize(6)), origin="another-log")
        with pytest.raises(ReceiptWrong) as refused:
            check_grown(consistency, sign(foreign, other), (*KEYS, other.verifier))
        assert refused.value.step == "older note"
        assert "another-log" in refused.value.reason

    def test_an_older_note_that_nobody_signed(self, ten: LogReader, consistency: Consistency) -> None:
        unsigned = sign(checkpoint_at(ten, TreeSize(6)), generate_key(LOG_ID, bytes(32)))
        self.refused_at("older note", consistency, unsigned)
        self.refused_at("older note", consistency, "")

    def test_a_newer_note_that_nobody_signed(self, ten: LogReader, consistency: Consistency) -> None:
        unsigned = sign(checkpoint_at(ten, TreeSize(10)), generate_key(LOG_ID, bytes(32)))
        self.refused_at("signature", replace(consistency, checkpoint=unsigned), note_at(ten, 6))

    def test_other_sizes_than_those_of_the_notes(self, ten: LogReader, consistency: Consistency) -> None:
        old_note = note_at(ten, 6)
        self.refused_at("older note", replace(consistency, size=TreeSize(11)), old_note)
        self.refused_at("older note", replace(consistency, old_size=TreeSize(5)), old_note)

    def test_every_byte_of_the_proof_counts(self, ten: LogReader, consistency: Consistency) -> None:
        old_note = note_at(ten, 6)
        for number, node in enumerate(consistency.proof):
            for at in range(32):
                changed = bytearray(node)
                changed[at] ^= 64
                proof = (*consistency.proof[:number], bytes(changed), *consistency.proof[number + 1 :])
                self.refused_at("consistency", replace(consistency, proof=proof), old_note)


class TestProving:
    @pytest.mark.parametrize("position", [0, -1, 11, 2**63])
    def test_a_position_that_is_not_there(self, ten: LogReader, note: str, position: int) -> None:
        with pytest.raises(NoSuchPosition):
            prove(ten, Position(position), note)

    def test_a_position_that_the_checkpoint_does_not_cover(self, ten: LogReader) -> None:
        with pytest.raises(NoSuchPosition, match="positions are 1 to 6"):
            prove(ten, Position(7), note_at(ten, 6))

    def test_a_foreign_checkpoint(self, ten: LogReader) -> None:
        foreign = replace(checkpoint_at(ten, TreeSize(6)), origin="another-log")
        with pytest.raises(ForeignCheckpoint, match="another-log"):
            prove(ten, Position(1), sign(foreign, SIGNER))
        with pytest.raises(ForeignCheckpoint):
            prove_consistency(ten, foreign, note_at(ten, 10))

    def test_a_checkpoint_beyond_the_head(self, ten: LogReader) -> None:
        beyond = Checkpoint(LOG_ID, TreeSize(11), bytes(32))
        with pytest.raises(NoSuchPosition):
            prove(ten, Position(1), sign(beyond, SIGNER))
        with pytest.raises(NoSuchPosition):
            prove_consistency(ten, beyond, note_at(ten, 10))

    def test_a_checkpoint_that_the_log_contradicts(self, ten: LogReader) -> None:
        other = Checkpoint(LOG_ID, TreeSize(6), bytes(32))
        with pytest.raises(CheckpointContradicted) as refused:
            prove_consistency(ten, other, note_at(ten, 10))
        assert refused.value.root == "00" * 32
        assert refused.value.actual == checkpoint_at(ten, TreeSize(6)).root.hex()

    def test_an_older_checkpoint_that_is_the_newer_one(self, ten: LogReader) -> None:
        newer = checkpoint_at(ten, TreeSize(10))
        with pytest.raises(NoSuchPosition):
            prove_consistency(ten, newer, note_at(ten, 6))

    def test_what_is_no_note(self, ten: LogReader) -> None:
        with pytest.raises(NoteMalformed):
            prove(ten, Position(1), "no note")

    def test_a_checkpoint_beyond_the_head_is_not_made(self, ten: LogReader) -> None:
        with pytest.raises(NoSuchPosition):
            checkpoint_at(ten, TreeSize(11))

    def test_a_checkpoint_of_its_own_agrees_with_the_log(self, ten: LogReader) -> None:
        for size in range(1, 11):
            check_log(ten, checkpoint_at(ten, TreeSize(size)))

    def test_a_proof_costs_a_few_reads_for_each_level(self, log: EventLog) -> None:
        log.append([build_event(p, at=20) for p in range(2, 3001)], expected_head=Position(1))
        note = note_at(log, 3000)
        with CountingReader.open(log.path) as counting:
            for position in (1, 2, 1500, 2048, 2049, 2999, 3000):
                counting.reads = 0
                prove(counting, Position(position), note)
                assert counting.reads <= 3 * (3000).bit_length() + 6

    def test_what_a_reader_reads_beside_the_writer_is_proven(self, log: EventLog) -> None:
        note = note_at(log, 1)
        with LogReader.open(log.path) as reader:
            log.append([build_event(2)], expected_head=Position(1))
            assert check(prove(reader, Position(1), note), KEYS).event.position == 1
            assert check(prove(reader, Position(2), note_at(reader, 2)), KEYS).event.position == 2


class CountingReader(LogReader):
    """Counts the queries sent to SQLite."""

    reads = 0

    def _rows(self, *arguments: Any, **keywords: Any) -> list[tuple[Any, ...]]:
        self.reads += 1
        return super()._rows(*arguments, **keywords)


@pytest.fixture
def damage(ten_path: Path, path: Path) -> Callable[[int, int], LogReader]:
    """A copy of the log in which a bit of the node of a level is flipped, in the row of a position."""

    def flip(position: int, level: int) -> LogReader:
        shutil.copy(ten_path, path)
        connection = sqlite3.connect(path)
        (hashes,) = connection.execute("SELECT hashes FROM event WHERE position = ?", [position]).fetchone()
        changed = bytearray(hashes)
        changed[32 * level] ^= 1
        connection.execute("DROP TRIGGER event_update")
        connection.execute("UPDATE event SET hashes = ? WHERE position = ?", [bytes(changed), position])
        connection.commit()
        connection.close()
        return LogReader.open(path)

    return flip


def test_a_damaged_node_is_proven_by_nothing(note: str, damage: Callable[[int, int], LogReader]) -> None:
    with damage(4, 2) as log, pytest.raises(LogCorrupt, match="prove nothing"):
        prove(log, Position(7), note)


def test_a_damaged_node_is_not_signed(note: str, damage: Callable[[int, int], LogReader]) -> None:
    with damage(8, 3) as log:
        with pytest.raises(LogCorrupt) as corrupt:
            checkpoint_at(log, TreeSize(10))
        assert corrupt.value.position == 8
        with pytest.raises(CheckpointContradicted):
            prove(log, Position(7), note)


def test_a_damaged_node_makes_no_consistency_proof(
    ten: LogReader, note: str, damage: Callable[[int, int], LogReader]
) -> None:
    older = checkpoint_at(ten, TreeSize(8))
    oldest = checkpoint_at(ten, TreeSize(2))
    with damage(4, 1) as log:
        with pytest.raises(LogCorrupt, match="prove nothing"):
            prove_consistency(log, oldest, note)
        assert check_grown(prove_consistency(log, older, note), sign(older, SIGNER), KEYS).old == older


@given(st.data())
def test_no_change_of_a_receipt_goes_unnoticed(receipt: Receipt, data: st.DataObject) -> None:
    """Whatever is changed in its text: it proves what it proved before, or it is refused."""
    text = json.dumps(receipt_json(receipt), ensure_ascii=False)
    at = data.draw(st.integers(0, len(text)))
    removed = data.draw(st.integers(0, 2))
    inserted = data.draw(st.text(alphabet='\\"{}[]:,0179AQz+/= n', max_size=2))
    try:
        document = parse_json(json.loads(text[:at] + inserted + text[at + removed :]))
        assert isinstance(document, Receipt)
        proven = check(document, KEYS)
    except (ValueError, ReceiptMalformed, ReceiptWrong):
        return
    assert proven == check(receipt, KEYS)


# A receipt that was given out proves for ever what it proved once; a released one is never made again.
RELEASED = {
    "receipt.json": "9ca8e95c745bbfdf6ea63add963c73df49d5935c2a92c1fd4efcd87ffb0b68e7",
    "receipt.tlog-proof": "9353f5fd761498b3aa0199a19125251e99a2d0b479247ba86e88722d7c27d749",
    "consistency.json": "d9ce3f0d6a2740bf24ea486cc3613a707c1bb59c6240a67bc1aa5a1279689585",
    "old.note": "c1f02ad17b34b0b848b0890328079c0b8d6ae6ad1baa1cdb4571f56f78c252d5",
    "log.vkey": "8c9fc9ca9a3f3f9fa88253bdd49648546b54e43e0ae6f454f5115fd2566ce1e1",
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_proofs_are_unchanged(name: str) -> None:
    assert sha256((GOLDEN / name).read_bytes()).hexdigest() == RELEASED[name]


def test_released_proofs_hold() -> None:
    keys = load_vkey_file(GOLDEN / "log.vkey")
    receipt = parse_json(json.loads((GOLDEN / "receipt.json").read_bytes()))
    consistency = parse_json(json.loads((GOLDEN / "consistency.json").read_bytes()))
    assert isinstance(receipt, Receipt)
    assert isinstance(consistency, Consistency)
    assert check(receipt, keys) == Proven(build_event(7), open_note(consistency.checkpoint, keys))
    assert parse_tlog_proof((GOLDEN / "receipt.tlog-proof").read_bytes().decode()) == receipt
    old_note = (GOLDEN / "old.note").read_bytes().decode()
    assert check_grown(consistency, old_note, keys).old.size == 6


def test_the_same_log_is_proven_by_the_same_text(
    receipt: Receipt, consistency: Consistency, ten: LogReader
) -> None:
    assert receipt_json(receipt) == json.loads((GOLDEN / "receipt.json").read_bytes())
    assert tlog_proof(receipt).encode() == (GOLDEN / "receipt.tlog-proof").read_bytes()
    assert consistency_json(consistency) == json.loads((GOLDEN / "consistency.json").read_bytes())
    assert note_at(ten, 6).encode() == (GOLDEN / "old.note").read_bytes()


def test_receipts_of_several_events_are_those_of_each(ten: LogReader, note: str) -> None:
    positions = [Position(position) for position in (7, 1, 10, 7)]
    assert prove_all(ten, positions, note) == [prove(ten, position, note) for position in positions]
    assert prove_all(ten, [], note) == []
    with pytest.raises(NoSuchPosition):
        prove_all(ten, [Position(7), Position(11)], note)


def test_receipts_of_several_events_read_the_way_they_share_once(
    ten_path: Path, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LogReader.open(ten_path) as log:
        reads: list[int] = []
        hashes = log.hashes
        monkeypatch.setattr(log, "hashes", lambda position: reads.append(position) or hashes(position))
        prove_all(log, [Position(position) for position in range(1, 11)], note)
    # Those of the root are read once more, before, to check the note.
    assert len(reads) == len(set(reads)) + 2
