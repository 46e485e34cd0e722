from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.checkpoint import (
    SIGNATURES_MAX,
    Checkpoint,
    format_checkpoint,
    open_note,
    parse_checkpoint,
    sign,
    split_note,
    verify_note,
)
from eventstore.errors import NoteMalformed, NoteUnverified, SignatureWrong
from eventstore.keys import Verifier, generate_key, parse_private_key, parse_vkey
from eventstore.merkle import TreeSize
from tests.unit.eventstore.test_keys import GO_PRIVATE, GO_PUBLIC

ORIGIN = "imageledger-000102030405060708090a0b0c0d0e0f"
SIGNER = generate_key(ORIGIN, bytes(range(32)))
OTHER = generate_key(ORIGIN, bytes(32))
WITNESS = generate_key("witness.example/one", bytes(range(1, 33)))
CHECKPOINT = Checkpoint(ORIGIN, TreeSize(7), bytes(range(32)))
TEXT = f"{ORIGIN}\n7\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
NOTE = sign(CHECKPOINT, SIGNER)
LINE = NOTE.removeprefix(TEXT + "\n")

# Published in the documentation of Go's golang.org/x/mod/sumdb/note.
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_NOTE = (
    f"{GO_TEXT}\n— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
# Published as the example of https://c2sp.org/tlog-checkpoint, whose key is not.
EXAMPLE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q"
    "1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)


def test_a_note_is_text_an_empty_line_and_signatures() -> None:
    assert NOTE.startswith(TEXT + "\n— " + ORIGIN + " ")
    assert NOTE.count("\n") == 5
    signature = base64.b64decode(LINE.split(" ")[2])
    assert signature[:4] == SIGNER.verifier.key_id
    assert SIGNER.verifier.is_signature(signature[4:], TEXT.encode())


def test_what_was_signed_is_what_is_opened() -> None:
    assert open_note(NOTE, [SIGNER.verifier]) == CHECKPOINT


def test_a_note_of_gos_own() -> None:
    text, signers = verify_note(GO_NOTE, [parse_vkey(GO_PUBLIC)])
    assert text == GO_TEXT
    assert signers == (parse_vkey(GO_PUBLIC),)
    ((_, signature),) = split_note(GO_NOTE)[1]
    assert parse_private_key(GO_PRIVATE).private_key.sign(GO_TEXT.encode()) == signature


def test_the_example_of_the_specification() -> None:
    text, ((key, signature),) = split_note(EXAMPLE)
    assert key == "example.com/behind-the-sofa+033de0ae"
    assert len(signature) == 64
    read = parse_checkpoint(text)
    assert (read.origin, read.size) == ("example.com/behind-the-sofa", 20852163)
    assert format_checkpoint(read) == text


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_every_checkpoint_comes_back(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(ORIGIN, TreeSize(size), root)
    assert open_note(sign(checkpoint, SIGNER), [SIGNER.verifier]) == checkpoint


def test_signatures_of_unknown_keys_are_ignored() -> None:
    note = sign(CHECKPOINT, WITNESS, OTHER, SIGNER)
    assert open_note(note, [SIGNER.verifier]) == CHECKPOINT
    garbage = f"— {ORIGIN} {base64.b64encode(b'12345').decode()}\n"
    assert open_note(NOTE + garbage, [SIGNER.verifier]) == CHECKPOINT


def test_the_keys_that_have_signed_are_named() -> None:
    note = sign(CHECKPOINT, WITNESS, OTHER, SIGNER)
    known = (SIGNER.verifier, WITNESS.verifier)
    assert verify_note(note, known) == (TEXT, (WITNESS.verifier, SIGNER.verifier))


def test_no_known_key_is_no_proof() -> None:
    note = sign(CHECKPOINT, WITNESS, OTHER)
    with pytest.raises(NoteUnverified) as refused:
        open_note(note, [SIGNER.verifier])
    assert refused.value.signed_by == (WITNESS.verifier.key, OTHER.verifier.key)
    assert refused.value.known == (SIGNER.verifier.key,)
    with pytest.raises(NoteUnverified, match="none of the keys"):
        open_note(note, [])


def test_a_wrong_signature_of_a_known_key_refuses_the_note() -> None:
    """Also beside a right one, and beside a second one of the same key."""
    wrong = sign(replace(CHECKPOINT, size=TreeSize(8)), SIGNER).split("\n\n")[1]
    for note in (f"{TEXT}\n{wrong}", NOTE + wrong, f"{TEXT}\n{wrong}{LINE}"):
        with pytest.raises(SignatureWrong, match=SIGNER.verifier.key.replace("+", r"\+")):
            open_note(note, [SIGNER.verifier])
    with pytest.raises(SignatureWrong):
        open_note(sign(CHECKPOINT, WITNESS) + wrong, [SIGNER.verifier, WITNESS.verifier])
    assert open_note(NOTE + LINE, [SIGNER.verifier]) == CHECKPOINT


def test_a_signature_of_another_length_is_wrong() -> None:
    short = base64.b64encode(base64.b64decode(LINE.split(" ")[2])[:-1]).decode()
    with pytest.raises(SignatureWrong):
        open_note(f"{TEXT}\n— {ORIGIN} {short}\n", [SIGNER.verifier])


def test_no_bit_of_the_signed_text_may_differ() -> None:
    text = TEXT.encode()
    for at in range(len(text)):
        for bit in range(8):
            changed = bytes([*text[:at], text[at] ^ 1 << bit, *text[at + 1 :]])
            note = (changed + NOTE.encode()[len(text) :]).decode("latin-1").replace("â\x80\x94", "—")
            with pytest.raises((SignatureWrong, NoteMalformed, NoteUnverified)):
                open_note(note, [SIGNER.verifier])


def test_two_keys_of_one_name_and_id_cannot_both_be_believed() -> None:
    class Collision(Verifier):
        key = SIGNER.verifier.key  # type: ignore[assignment]

    with pytest.raises(ValueError, match="two of the keys"):
        open_note(NOTE, [SIGNER.verifier, Collision(ORIGIN, OTHER.verifier.public_key)])
    assert open_note(NOTE, [SIGNER.verifier, SIGNER.verifier]) == CHECKPOINT


def line_of(signature: bytes, name: str = ORIGIN) -> str:
    return f"— {name} {base64.b64encode(signature).decode()}\n"


MALFORMED = [
    pytest.param("", id="empty"),
    pytest.param(TEXT, id="text-alone"),
    pytest.param(TEXT + "\n", id="no-signature"),
    pytest.param(NOTE[:-1], id="no-line-end"),
    pytest.param(NOTE + "\n", id="empty-line-at-the-end"),
    pytest.param(NOTE.replace("\n\n", "\n"), id="no-empty-line"),
    pytest.param(NOTE.replace("\n", "\r\n"), id="carriage-returns"),
    pytest.param(NOTE.replace("7", "\t7"), id="tab"),
    pytest.param(NOTE.replace("7", "\x00"), id="nul"),
    pytest.param(NOTE.replace("7", "\x1f"), id="last-control-character"),
    pytest.param(NOTE.replace("7", "\ud800"), id="no-utf-8"),
    pytest.param(NOTE.replace("— ", "- "), id="hyphen"),
    pytest.param(NOTE.replace("— ", "—  "), id="two-spaces"),
    pytest.param(NOTE.replace("— ", "—"), id="no-space"),
    pytest.param(NOTE.replace("— " + ORIGIN + " ", "— "), id="no-name"),
    pytest.param(NOTE.replace("— " + ORIGIN + " ", "— " + ORIGIN), id="no-signature-part"),
    pytest.param(NOTE + "— \n", id="empty-signature"),
    pytest.param(NOTE + "words\n", id="words-after-it"),
    pytest.param(NOTE + line_of(bytes(68), "a+b"), id="plus-in-a-name"),
    pytest.param(NOTE + line_of(bytes(68), "a\u00a0b"), id="unicode-space-in-a-name"),
    pytest.param(NOTE + line_of(bytes(4)), id="key-id-alone"),
    pytest.param(NOTE.replace("=\n", "\n"), id="no-padding"),
    pytest.param(NOTE[:-1] + " \n", id="space-at-the-end"),
    pytest.param(f"{TEXT}\n" + LINE * (SIGNATURES_MAX + 1), id="too-many-signatures"),
    pytest.param(f"{TEXT}{'x' * 1_000_000}\n\n{LINE}", id="too-long"),
]


@pytest.mark.parametrize("note", MALFORMED)
def test_what_is_no_note(note: str) -> None:
    with pytest.raises(NoteMalformed):
        open_note(note, [SIGNER.verifier])


def test_as_many_signatures_as_are_read() -> None:
    unknown = line_of(bytes(68), "someone")
    assert open_note(f"{TEXT}\n" + unknown * (SIGNATURES_MAX - 1) + LINE, [SIGNER.verifier]) == CHECKPOINT


def test_the_text_of_a_note_may_hold_empty_lines() -> None:
    """The last one is what ends it: so a signed text cannot be cut there and shown without its end."""
    text = "first\n\n— looks like a signature\n\nlast\n"
    line = line_of(SIGNER.verifier.key_id + SIGNER.private_key.sign(text.encode()))
    assert verify_note(f"{text}\n{line}", [SIGNER.verifier])[0] == text


ROOT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
NO_CHECKPOINTS = [
    pytest.param("", id="empty"),
    pytest.param(f"o\n7\n{ROOT}", id="no-line-end"),
    pytest.param("o\n7\n", id="two-lines"),
    pytest.param(f"\n7\n{ROOT}\n", id="no-origin"),
    pytest.param(f"o\n\n{ROOT}\n", id="no-size"),
    pytest.param(f"o\n07\n{ROOT}\n", id="leading-zero"),
    pytest.param(f"o\n+7\n{ROOT}\n", id="plus"),
    pytest.param(f"o\n-7\n{ROOT}\n", id="minus"),
    pytest.param(f"o\n 7\n{ROOT}\n", id="space"),
    pytest.param(f"o\n7.0\n{ROOT}\n", id="fraction"),
    pytest.param(f"o\n٧\n{ROOT}\n", id="other-digits"),
    pytest.param(f"o\n{2**63}\n{ROOT}\n", id="too-large"),
    pytest.param(f"o\n7\n{ROOT[:-4]}\n", id="short-root"),
    pytest.param(f"o\n7\n{ROOT[:-1]}\n", id="no-padding"),
    pytest.param(f"o\n7\n{ROOT[:-2]}9=\n", id="stray-bits"),
    pytest.param(f"o\n7\n{ROOT[:-4]}AAECAwQF\n", id="long-root"),
    pytest.param(f"o\n7\n{ROOT}\n\n", id="empty-line"),
    pytest.param(f"o\n7\n{ROOT}\n\nmore\n", id="empty-extension-line"),
]


@pytest.mark.parametrize("text", NO_CHECKPOINTS)
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteMalformed):
        parse_checkpoint(text)


def test_further_lines_are_tolerated_and_signed() -> None:
    checkpoint = replace(CHECKPOINT, extensions=("one", "two = 2"))
    note = sign(checkpoint, SIGNER)
    assert note.startswith(TEXT + "one\ntwo = 2\n\n— ")
    assert open_note(note, [SIGNER.verifier]) == checkpoint
    with pytest.raises(SignatureWrong):
        open_note(note.replace("one\n", ""), [SIGNER.verifier])


def test_the_empty_tree_has_a_checkpoint() -> None:
    checkpoint = replace(CHECKPOINT, size=TreeSize(0))
    assert open_note(sign(checkpoint, SIGNER), [SIGNER.verifier]) == checkpoint


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(replace(CHECKPOINT, origin=""), id="no-origin"),
        pytest.param(replace(CHECKPOINT, origin="a\n8"), id="line-end-in-the-origin"),
        pytest.param(replace(CHECKPOINT, origin="a\tb"), id="control-character"),
        pytest.param(replace(CHECKPOINT, size=TreeSize(-1)), id="negative"),
        pytest.param(replace(CHECKPOINT, size=TreeSize(2**63)), id="too-large"),
        pytest.param(replace(CHECKPOINT, root=bytes(31)), id="short-root"),
        pytest.param(replace(CHECKPOINT, extensions=("",)), id="empty-extension"),
        pytest.param(replace(CHECKPOINT, extensions=("a\nb",)), id="line-end-in-an-extension"),
    ],
)
def test_what_would_be_read_differently_is_not_signed(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="has no text"):
        sign(checkpoint, SIGNER)


@given(st.text(alphabet="— \n+=AQz07\x00é" + ORIGIN[:3], max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises((NoteMalformed, NoteUnverified)):
        open_note(text, [SIGNER.verifier])


@given(st.data())
def test_no_change_of_a_note_goes_unnoticed(data: st.DataObject) -> None:
    """Whatever is changed: what it is opened as is what was signed, or it is refused."""
    at = data.draw(st.integers(0, len(NOTE)))
    removed = data.draw(st.integers(0, 3))
    inserted = data.draw(st.text(alphabet="— \n+=AQz07", max_size=3))
    try:
        opened = open_note(NOTE[:at] + inserted + NOTE[at + removed :], [SIGNER.verifier])
    except (NoteMalformed, NoteUnverified, SignatureWrong):
        return
    assert opened == CHECKPOINT
