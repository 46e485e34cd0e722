"""A verifier written from the page eventstore/README.md alone: it knows no line of this project's code.

python from_readme.py receipt RECEIPT VKEY
python from_readme.py consistency PROOF OLD_NOTE VKEY
python from_readme.py log LOG_DB NOTE VKEY
"""

import base64
import hashlib
import json
import sqlite3
import sys
from pathlib import Path

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEYS = """v position stream version type schema at operation_id resource_id actor auth request_id method key
request reason data"""


def must(holds, what):
    if not holds:
        raise SystemExit(f"does not hold: {what}")


def unbase64(text):
    data = base64.b64decode(text, validate=True)
    must(base64.b64encode(data).decode() == text, "base64 as an encoder writes it")
    return data


def leaf(data):
    return hashlib.sha256(b"\x00" + data).digest()


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def open_note(note, vkey):
    """The size and the root that a note vouches for."""
    name, key_id, key = vkey.strip().split("+", 2)
    key = unbase64(key)
    must(key[0] == 1 and len(key) == 33, "an Ed25519 key")
    expected_id = hashlib.sha256(name.encode() + b"\n" + key).digest()[:4]
    must(expected_id.hex() == key_id, "the id of the key")
    text, _, signatures = note.rpartition("\n\n")
    text += "\n"
    is_signed = False
    for line in signatures.splitlines():
        dash, signer, signature = line.split(" ")
        must(dash == "\u2014", "a signature line")
        signature = unbase64(signature)
        if (signer, signature[:4]) == (name, expected_id):
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature[4:], text.encode())
            is_signed = True
    must(is_signed, "a signature of the key")
    origin, size, root, *_ = text.split("\n")
    must(origin == name, "the origin is the name of the key")
    must(str(int(size)) == size, "the size")
    return int(size), unbase64(root)


def position_of(body):
    """The position of an event, which must be one."""
    event = msgpack.unpackb(body)
    keys = list(event)
    must(keys == [key for key in KEYS.split() if key in event], "the keys of an event")
    must(event["v"] == 1 and isinstance(event["data"], dict), "an event")
    must(msgpack.packb(event) == body, "the shortest form")
    return event["position"]


def check_receipt(receipt, vkey):
    size, root = open_note(receipt["checkpoint"], vkey)
    body = unbase64(receipt["event"])
    must(position_of(body) == receipt["position"] == receipt["index"] + 1 <= size, "the position")
    proof = [unbase64(each) for each in receipt["proof"]]
    level, i, value = 0, receipt["index"], leaf(body)
    while 2**level < size:
        if i % 2:
            value = node(proof.pop(0), value)
        elif (i + 1) * 2**level < size:
            value = node(value, proof.pop(0))
        level, i = level + 1, i // 2
    must(not proof and value == root, "the way to the root")


def check_consistency(document, old_note, vkey):
    size, root = open_note(document["checkpoint"], vkey)
    old_size, old_root = open_note(old_note, vkey)
    must((old_size, size) == (document["old_size"], document["size"]), "the sizes")
    must(0 < old_size <= size, "the order of the sizes")
    proof = [unbase64(each) for each in document["proof"]]
    if old_size == size:
        must(not proof and old_root == root, "the same root")
        return
    level = 0
    while old_size % 2 ** (level + 1) == 0:
        level += 1
    i = old_size // 2**level - 1
    old = new = old_root if i == 0 else proof.pop(0)
    while 2**level < size:
        if i % 2:
            beside = proof.pop(0)
            old, new = node(beside, old), node(beside, new)
        elif (i + 1) * 2**level < size:
            new = node(new, proof.pop(0))
        level, i = level + 1, i // 2
    must(not proof and old == old_root and new == root, "the way to the roots")


def check_log(path, note, vkey):
    size, root = open_note(note, vkey)
    stack, seen = [], None
    rows = sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute(
        "SELECT position, body, hashes FROM event ORDER BY position"
    )
    for count, (position, body, hashes) in enumerate(rows, 1):
        must(position == count == position_of(body), f"the position of event {count}")
        value = made = leaf(body)
        i = position - 1
        while i % 2:
            value = node(stack.pop(), value)
            made += value
            i //= 2
        stack.append(value)
        must(made == hashes, f"the hashes of event {count}")
        if position == 1:
            must(msgpack.unpackb(body)["data"]["log_id"] == vkey.split("+")[0], "the id of the log")
        if position == size:
            seen = stack[-1]
            for each in reversed(stack[:-1]):
                seen = node(each, seen)
    must(seen == root, "the root of the checkpoint")


def main(kind, path, *rest):
    texts = [Path(each).read_bytes().decode() for each in rest]
    if kind == "receipt":
        check_receipt(json.loads(Path(path).read_bytes()), *texts)
    elif kind == "consistency":
        check_consistency(json.loads(Path(path).read_bytes()), *texts)
    else:
        check_log(path, *texts)
    print("holds")


if __name__ == "__main__":
    main(*sys.argv[1:])
