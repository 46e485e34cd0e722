from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from eventstore import errors

ALL = [
    pytest.param(errors.EventMalformed(7, "no"), ["7", "no"], id="malformed"),
    pytest.param(errors.EventMalformed(None, "no"), ["an event", "no"], id="malformed-anywhere"),
    pytest.param(errors.SchemaTooNew("T", 3, 2, 7), ["T", "3", "2", "7", "run the version"], id="schema"),
    pytest.param(errors.EnvelopeTooNew(7, 3, 2), ["7", "v = 3", "v = 2", "run the version"], id="envelope"),
    pytest.param(errors.EnvelopeTooNew(None, 3, 2), ["an event", "v = 3"], id="envelope-anywhere"),
    pytest.param(errors.HeadMoved(7, 8), ["7", "8", "decide again"], id="head"),
    pytest.param(errors.StampTooOld(5, 6, 7), ["5", "6", "7", "stamp the batch again"], id="stamp"),
    pytest.param(errors.NoSuchPosition(9, 8), ["9", "1 to 8"], id="position"),
    pytest.param(errors.AppendFailed("no", full=True), ["nothing was written", "free space"], id="full"),
    pytest.param(errors.AppendFailed("no", full=False), ["nothing was written", "try again"], id="failed"),
    pytest.param(errors.OutcomeUnknown("no", full=True), ["unknown", "reopen"], id="unknown"),
    pytest.param(errors.LogCorrupt(7, "no"), ["position 7", "backup"], id="corrupt"),
    pytest.param(errors.LogCorrupt(None, "no"), ["the log is corrupt"], id="corrupt-somewhere"),
    pytest.param(errors.LogUnreadable("no"), ["could not be read"], id="unreadable"),
    pytest.param(errors.LogLocked(Path("d/lock"), "pid 1"), ["d/lock", "pid 1", "stop"], id="locked"),
    pytest.param(errors.FormatTooNew(Path("d/log.db"), 2, 1), ["log.db", "2", "1"], id="format"),
    pytest.param(errors.NotALog(Path("d/log.db"), "no"), ["d/log.db", "no"], id="foreign"),
    pytest.param(errors.ProofWrong("inclusion", "no"), ["inclusion", "no", "believe nothing"], id="proof"),
    pytest.param(errors.NoteMalformed("no"), ["no", "byte for byte"], id="note"),
    pytest.param(errors.NoteUnverified(("a+1",), ("b+2",)), ["a+1", "b+2", "same log"], id="unverified"),
    pytest.param(errors.SignatureWrong("a+1"), ["a+1", "take the original"], id="signature"),
    pytest.param(errors.KeyMalformed("public key", "no"), ["public key", "no", "one line"], id="key"),
    pytest.param(
        errors.KeyFileRefused(Path("d/k"), "is no key", "make one"),
        ["d/k", "is no key", "make one"],
        id="file",
    ),
    pytest.param(errors.ForeignCheckpoint("log-1", "log-2"), ["log-1", "log-2", "of this log"], id="origin"),
    pytest.param(
        errors.CheckpointContradicted(7, "aa", "bb"), ["7", "aa", "bb", "backup"], id="contradicted"
    ),
    pytest.param(errors.ReceiptMalformed("no"), ["no", "unchanged"], id="receipt"),
    pytest.param(
        errors.ReceiptWrong("inclusion", "no"), ["inclusion", "no", "another one"], id="receipt-wrong"
    ),
    pytest.param(
        errors.EntryTooLarge(7, 70_000, 65_535), ["7", "70000", "65535", "another format"], id="entry"
    ),
    pytest.param(errors.TilesRefused(Path("d/t"), "no"), ["d/t", "no", "another folder"], id="tiles"),
    pytest.param(
        errors.PublishedDiffers(Path("d/7.note"), 7), ["d/7.note", "7 events", "find out"], id="differs"
    ),
    pytest.param(
        errors.PublishedRefused(Path("d/7.note"), "is none", "move it"),
        ["d/7.note", "is none", "move it"],
        id="published",
    ),
]


@pytest.mark.parametrize(("error", "parts"), ALL)
def test_a_message_names_thing_value_and_remedy(error: errors.EventStoreError, parts: list[str]) -> None:
    assert all(part in str(error) for part in parts)


@pytest.mark.parametrize(("error", "parts"), ALL)
def test_an_error_survives_the_way_between_processes(error: errors.EventStoreError, parts: list[str]) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
