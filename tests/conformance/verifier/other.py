"""Checks notes, proofs and tiles with the package aics-tlog: cases and answers as in main.go."""

import base64
import json
import sys
from typing import Any

from aics_tlog import (
    FileSystemTileReader,
    audit_tiles,
    parse_checkpoint,
    parse_note,
    parse_vkey,
    verify_consistency,
    verify_leaf_inclusion,
    verify_note,
)
from aics_tlog.checkpoint import Checkpoint


def main() -> None:
    json.dump([answer(case) for case in json.load(sys.stdin)], sys.stdout)


def answer(case: dict[str, Any]) -> dict[str, str]:
    try:
        return {"error": "", "text": check(case)}
    except (ValueError, OSError) as error:
        return {"error": str(error) or type(error).__name__, "text": ""}


def check(case: dict[str, Any]) -> str:
    """The text of the note of a case. Raises ValueError where something does not hold."""
    text, tree = opened(case["note"], case["vkey"])
    proof = [base64.b64decode(node) for node in case.get("proof", ())]
    holds = True
    match case["kind"]:
        case "note":
            pass
        case "inclusion":
            body = base64.b64decode(case["body"])
            holds = verify_leaf_inclusion(body, case["index"], tree.size, proof, tree.root)
        case "consistency":
            _, old = opened(case["old"], case["vkey"])
            holds = verify_consistency(old.size, tree.size, old.root, tree.root, proof)
        case "tiles":
            audit_tiles(FileSystemTileReader(case["folder"]), tree.size, tree.root)
        case kind:
            raise AssertionError(f"unknown kind {kind}")
    if not holds:
        raise ValueError("the proof does not hold")
    return text


def opened(text: str, vkey: str) -> tuple[str, Checkpoint]:
    """The text and the checkpoint of a note that the key has signed."""
    note, key = parse_note(text), parse_vkey(vkey)
    if not verify_note(note, [key]):
        raise ValueError("the note is not signed by the key")
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != key.name:
        raise ValueError("the origin is not the name of the key")
    return note.text, checkpoint


if __name__ == "__main__":
    main()
