"""Receipts and consistency proofs as JSON, and receipts as C2SP tlog-proof text.

JSON: `{position, index, event, proof, checkpoint}` and `{old_size, size, proof, checkpoint}`, bytes in
base64, the checkpoint as the note's text. Further keys are for others and not looked at.
tlog-proof (https://c2sp.org/tlog-proof): the event's bytes travel as the extra data of that format.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

from eventstore.errors import ReceiptMalformed
from eventstore.event import INTEGER_MAX, Position
from eventstore.keys import decode_base64
from eventstore.merkle import HASH_SIZE_BYTES, LeafIndex, TreeSize, position_of
from eventstore.proofs import HASHES_MAX, Proof
from eventstore.receipt import Consistency, Receipt

TLOG_PROOF: Final = "c2sp.org/tlog-proof@v1"

_EXTRA: Final = "extra "
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


def receipt_json(receipt: Receipt) -> dict[str, Any]:
    """The receipt as a JSON object. Inverse: parse_json."""
    return {
        "position": receipt.position,
        "index": receipt.index,
        "event": _text(receipt.body),
        "proof": [_text(node) for node in receipt.proof],
        "checkpoint": receipt.checkpoint,
    }


def consistency_json(consistency: Consistency) -> dict[str, Any]:
    """The consistency proof as a JSON object. Inverse: parse_json."""
    return {
        "old_size": consistency.old_size,
        "size": consistency.size,
        "proof": [_text(node) for node in consistency.proof],
        "checkpoint": consistency.checkpoint,
    }


def parse_json(document: object) -> Receipt | Consistency:
    """What a JSON object says, unchecked. Raises ReceiptMalformed."""
    if not isinstance(document, Mapping):
        raise ReceiptMalformed(f"it is a JSON {type(document).__name__}, a receipt is an object")
    proof, checkpoint = _proof(document.get("proof")), document.get("checkpoint")
    if not isinstance(checkpoint, str):
        raise ReceiptMalformed("checkpoint must be there, and be the text of a signed note")
    if "old_size" in document:
        return Consistency(
            TreeSize(_number(document, "old_size")), TreeSize(_number(document, "size")), proof, checkpoint
        )
    return Receipt(
        Position(_number(document, "position")),
        LeafIndex(_number(document, "index")),
        _bytes(document.get("event"), "event"),
        proof,
        checkpoint,
    )


def tlog_proof(receipt: Receipt) -> str:
    """The receipt as the text of a .tlog-proof file. Inverse: parse_tlog_proof."""
    head = (TLOG_PROOF, _EXTRA + _text(receipt.body), f"index {receipt.index}")
    lines = (*head, *map(_text, receipt.proof))
    return "".join(line + "\n" for line in lines) + "\n" + receipt.checkpoint


def parse_tlog_proof(text: str, body: bytes | None = None) -> Receipt:
    """The receipt in the text of a .tlog-proof file, unchecked.

    The event is `body`, or else the extra data, which need not be trusted: it is checked as the event.
    Raises ReceiptMalformed, also where neither is there.
    """
    head, _, checkpoint = text.partition("\n\n")
    first, *lines = head.split("\n")
    if first != TLOG_PROOF:
        raise ReceiptMalformed(f"its first line must be {TLOG_PROOF}")
    if lines and lines[0].startswith(_EXTRA):
        extra = _bytes(lines.pop(0).removeprefix(_EXTRA), "extra")
        body = extra if body is None else body
    index = _INDEX.fullmatch(lines[0]) if lines else None
    if index is None or int(index[1]) > INTEGER_MAX:
        raise ReceiptMalformed("a line `index N` must follow")
    if body is None:
        raise ReceiptMalformed("it does not hold the event, whose bytes are needed as well")
    leaf = LeafIndex(int(index[1]))
    return Receipt(position_of(leaf), leaf, body, _proof(lines[1:]), checkpoint)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(value: object, name: str) -> bytes:
    """The bytes of a base64 text. Raises ReceiptMalformed."""
    if not isinstance(value, str):
        raise ReceiptMalformed(f"{name} must be there, and be base64")
    try:
        return decode_base64(value)
    except ValueError as error:
        raise ReceiptMalformed(f"{name} is not base64: {error}") from error


def _proof(value: object) -> Proof:
    """The hashes of a list of base64 texts. Raises ReceiptMalformed."""
    if not isinstance(value, list) or len(value) > HASHES_MAX:
        raise ReceiptMalformed(f"proof must be there, and be a list of at most {HASHES_MAX} hashes")
    hashes = tuple(_bytes(node, "a hash of the proof") for node in value)
    for node in hashes:
        if len(node) != HASH_SIZE_BYTES:
            raise ReceiptMalformed(f"a hash of the proof has {len(node)} bytes, a hash has {HASH_SIZE_BYTES}")
    return hashes


def _number(document: Mapping[Any, Any], name: str) -> int:
    """A number that a log can hold. Raises ReceiptMalformed."""
    value = document.get(name)
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise ReceiptMalformed(f"{name} must be there, and be a number from 0 to 2**63 - 1")
    return value
