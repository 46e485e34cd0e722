"""Checkpoints: signed tree heads as C2SP signed-note and tlog-checkpoint define them, with Ed25519.

A note is a text that ends in a newline, an empty line, and a line for each signature. The text of a
checkpoint is three lines: the origin, the number of leaves, and the root in base64.
Sources: https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from eventstore.errors import NoteMalformed, NoteUnverified, SignatureWrong
from eventstore.event import INTEGER_MAX
from eventstore.keys import KEY_ID_SIZE_BYTES, Signer, Verifier, decode_base64, is_name, key_text
from eventstore.merkle import HASH_SIZE_BYTES, TreeSize

# The specification asks for at least 16 to be accepted; this many are what Go's reader accepts.
SIGNATURES_MAX: Final = 100
NOTE_SIZE_MAX_BYTES: Final = 1_000_000

_PREFIX: Final = "— "
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log says of itself: the root of its first `size` events. `extensions` are lines after these."""

    origin: str
    size: TreeSize
    root: bytes
    extensions: tuple[str, ...] = ()


class KeptCheckpoint(NamedTuple):
    """A checkpoint as a log keeps it: beside the note what it says, and when it was made."""

    size: TreeSize
    root: bytes
    note: str
    at: int  # Nanoseconds since the Unix epoch, UTC.


class Signature(NamedTuple):
    """A signature line of a note, unchecked. `key` is the name of the key and its id: name+id."""

    key: str
    signature: bytes


def sign(checkpoint: Checkpoint, signer: Signer, *others: Signer) -> str:
    """The note of a checkpoint, a signature line for each signer. Inverse: open_note.

    Raises ValueError for a checkpoint that has no such text.
    """
    text = format_checkpoint(checkpoint)
    return text + "\n" + "".join(_signature_line(by, text.encode()) for by in (signer, *others))


def open_note(note: str, verifiers: Iterable[Verifier]) -> Checkpoint:
    """The checkpoint of a note that one of these keys has signed.

    Raises NoteMalformed, NoteUnverified, SignatureWrong.
    """
    return parse_checkpoint(verify_note(note, verifiers)[0])


def verify_note(note: str, verifiers: Iterable[Verifier]) -> tuple[str, tuple[Verifier, ...]]:
    """The text of a note, and which of the keys have signed it: at least one.

    Signatures of unknown keys are ignored, as the specification asks: witnesses and later keys add theirs.
    One of a known key that is wrong refuses the whole note. Raises NoteMalformed, NoteUnverified,
    SignatureWrong.
    """
    known: dict[str, Verifier] = {}
    for verifier in verifiers:
        if known.setdefault(verifier.key, verifier) != verifier:
            raise ValueError(f"two of the keys to believe are called {verifier.key}")
    text, signatures = split_note(note)
    found: dict[str, Verifier] = {}
    for key, signature in signatures:
        if key not in known:
            continue
        if not known[key].is_signature(signature, text.encode()):
            raise SignatureWrong(key)
        found[key] = known[key]
    if not found:
        raise NoteUnverified(tuple(key for key, _ in signatures), tuple(known))
    return text, tuple(found.values())


def split_note(note: str) -> tuple[str, list[Signature]]:
    """The text of a note and its signature lines, at least one; none of them is checked.

    Raises NoteMalformed.
    """
    _check_characters(note)
    # The text may hold empty lines itself: the last one is what ends it.
    text, separator, lines = note.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise NoteMalformed(
            "a text, an empty line and lines of signatures must be there, ending in a newline"
        )
    signatures = lines.removesuffix("\n").split("\n")
    if len(signatures) > SIGNATURES_MAX:
        raise NoteMalformed(f"it has {len(signatures)} signatures, at most {SIGNATURES_MAX} are read")
    return text + "\n", [_parse_signature(line) for line in signatures]


def format_checkpoint(checkpoint: Checkpoint) -> str:
    """The text that is signed. Inverse: parse_checkpoint. Raises ValueError for what has none."""
    lines = (
        checkpoint.origin,
        str(int(checkpoint.size)),
        base64.b64encode(checkpoint.root).decode(),
        *checkpoint.extensions,
    )
    text = "".join(line + "\n" for line in lines)
    try:
        _check_characters(text)
        if parse_checkpoint(text) == checkpoint:
            return text
    except NoteMalformed as error:
        raise ValueError(f"{checkpoint} has no text: {error.reason}") from error
    raise ValueError(f"{checkpoint} has no text: it would be read as another one")


def parse_checkpoint(text: str) -> Checkpoint:
    """The checkpoint in the text of a note. Raises NoteMalformed."""
    lines = text.removesuffix("\n").split("\n")
    if not text.endswith("\n") or len(lines) < 3 or not all(lines):
        raise NoteMalformed("a checkpoint has three lines or more, and none of them is empty")
    origin, size, root_text, *extensions = lines
    if not _SIZE.fullmatch(size) or int(size) > INTEGER_MAX:
        raise NoteMalformed("its second line must be a number of events, with no zeros in front")
    try:
        root = decode_base64(root_text)
    except ValueError as error:
        raise NoteMalformed(f"its third line must be the root in base64: {error}") from error
    if len(root) != HASH_SIZE_BYTES:
        raise NoteMalformed(f"its root has {len(root)} bytes, a root has {HASH_SIZE_BYTES}")
    return Checkpoint(origin, TreeSize(int(size)), root, tuple(extensions))


def _signature_line(signer: Signer, text: bytes) -> str:
    verifier = signer.verifier
    signature = base64.b64encode(verifier.key_id + signer.private_key.sign(text)).decode()
    return f"{_PREFIX}{verifier.name} {signature}\n"


def _parse_signature(line: str) -> Signature:
    name, separator, encoded = line.removeprefix(_PREFIX).partition(" ")
    if not line.startswith(_PREFIX) or not separator or not is_name(name):
        raise NoteMalformed("a signature line is an em dash, the key's name and base64, a space between each")
    try:
        decoded = decode_base64(encoded)
    except ValueError as error:
        raise NoteMalformed(f"a signature must be base64: {error}") from error
    if len(decoded) <= KEY_ID_SIZE_BYTES:
        raise NoteMalformed(f"a signature of {len(decoded)} bytes holds no key id and signature")
    return Signature(key_text(name, decoded[:KEY_ID_SIZE_BYTES]), decoded[KEY_ID_SIZE_BYTES:])


def _check_characters(note: str) -> None:
    """Raises NoteMalformed for what is not UTF-8, for control characters, and for a size nobody needs."""
    try:
        size_bytes = len(note.encode())
    except UnicodeEncodeError as error:
        raise NoteMalformed("it has no UTF-8 form") from error
    if size_bytes > NOTE_SIZE_MAX_BYTES:
        raise NoteMalformed(f"it has {size_bytes} bytes, at most {NOTE_SIZE_MAX_BYTES} are read")
    for character in note:
        if character < " " and character != "\n":
            raise NoteMalformed(f"it holds the control character U+{ord(character):04X}")
