"""Checkpoints, proofs and tiles of ours, checked by software that is not: Go's and a package's.

Go's `golang.org/x/mod/sumdb` is what the go command trusts its modules by; Debian packages it. The package
aics-tlog implements the specifications of C2SP on its own. Both read cases and answer what does not hold.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventstore.checkpoint import format_checkpoint, open_note, sign
from eventstore.event import Position
from eventstore.heads import checkpoint_at
from eventstore.keys import format_private_key, format_vkey, generate_key, parse_private_key, parse_vkey
from eventstore.log import EventLog
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from eventstore.receipt import prove, prove_consistency
from eventstore.tiles import write_tiles
from tests.unit.eventstore.conftest import LOG_ID, build_event

VERIFIER = Path(__file__).parent / "verifier"
GO_PATH = Path("/usr/share/gocode")
BUILD_TIMEOUT_S = 240

SIGNER = generate_key(LOG_ID, bytes(range(32)))
VKEY = format_vkey(SIGNER.verifier)

# Two full tiles above each other's first level, and something beside each of them.
EVENTS = 65_536 + 2 * 256 + 17
SIZES = [*range(1, 18), 31, 32, 33, 100, 255, 256, 257, 300, 65_535, 65_536, 65_537, EVENTS]

Case = dict[str, Any]
Answers = list[dict[str, str]]
Verify = Callable[[Sequence[Case]], Answers]


@pytest.fixture(scope="session")
def go(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Verify:
    """Go's verifier, built in pytest's cache; go itself knows when it has to be built again."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed (Debian: apt-get install golang-go)")
    if not (GO_PATH / "src/golang.org/x/mod/sumdb").is_dir():
        pytest.skip(f"no golang.org/x/mod in {GO_PATH} (Debian: apt-get install golang-golang-x-mod-dev)")
    folder = cache_folder(pytestconfig, tmp_path_factory, "go-verifier")
    # Without modules: what is there is all that is used, and no proxy is asked.
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": str(GO_PATH),
        "GOFLAGS": "",
        "GOCACHE": str(folder / "cache"),
        "GOTOOLCHAIN": "local",
    }
    program = folder / "verifier"
    command = ["go", "build", "-o", str(program), str(VERIFIER / "main.go")]
    subprocess.run(command, check=True, env=environment, cwd=folder, timeout=BUILD_TIMEOUT_S)
    return lambda cases: answers([str(program)], cases)


@pytest.fixture(scope="session")
def package(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Verify:
    """The package's verifier, in a folder of pytest's cache: nothing else here shall depend on it."""
    requirements = VERIFIER / "requirements.txt"
    folder = cache_folder(pytestconfig, tmp_path_factory, "aics-tlog")
    installed = folder / "installed.txt"
    if not installed.exists() or installed.read_bytes() != requirements.read_bytes():
        shutil.rmtree(folder / "site", ignore_errors=True)
        options = ("--quiet", "--no-deps", "--require-hashes", "--ignore-requires-python")
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site")]
        command += ["--requirement", str(requirements)]
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S)
        if made.returncode != 0:
            pytest.skip(f"cannot install aics-tlog: {made.stderr.strip()[-300:]}")
        installed.write_bytes(requirements.read_bytes())
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}
    return lambda cases: answers([sys.executable, str(VERIFIER / "other.py")], cases, env=environment)


@pytest.fixture(params=["go", "package"])
def verify(request: pytest.FixtureRequest) -> Verify:
    made: Verify = request.getfixturevalue(request.param)
    return made


def cache_folder(config: pytest.Config, folders: pytest.TempPathFactory, name: str) -> Path:
    cache = getattr(config, "cache", None)  # pytest -p no:cacheprovider has none.
    return folders.mktemp(name) if cache is None else Path(cache.mkdir(name))


def answers(command: list[str], cases: Sequence[Case], **options: Any) -> Answers:
    """What a verifier answers: for each case an error, empty where everything holds."""
    ended = subprocess.run(
        command, input=json.dumps(cases), capture_output=True, text=True, check=True, timeout=120, **options
    )
    made: Answers = json.loads(ended.stdout)
    assert len(made) == len(cases)
    return made


def assert_holds(verify: Verify, cases: Sequence[Case]) -> None:
    assert cases
    wrong = [(case, answer) for case, answer in zip(cases, verify(cases), strict=True) if answer["error"]]
    assert not wrong, wrong[:3]


def assert_refused(verify: Verify, cases: Sequence[Case]) -> None:
    assert cases
    held = [case for case, answer in zip(cases, verify(cases), strict=True) if not answer["error"]]
    assert not held, held[:3]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogReader]:
    path = tmp_path_factory.mktemp("log") / "log.db"
    with EventLog.open(path) as writer:
        writer.create_if_empty(log_id=LOG_ID, at=1)
        events = [build_event(position, at=20) for position in range(2, EVENTS + 1)]
        writer.append(events, expected_head=Position(1))
    with LogReader.open(path) as reader:
        yield reader


@pytest.fixture(scope="module")
def notes(log: LogReader) -> dict[int, str]:
    return {size: sign(checkpoint_at(log, TreeSize(size)), SIGNER) for size in SIZES}


def inclusion(log: LogReader, note: str, position: int) -> Case:
    receipt = prove(log, Position(position), note)
    return {
        "kind": "inclusion",
        "vkey": VKEY,
        "note": receipt.checkpoint,
        "index": receipt.index,
        "body": text(receipt.body),
        "proof": [text(node) for node in receipt.proof],
    }


def consistency(log: LogReader, old_note: str, note: str) -> Case:
    made = prove_consistency(log, open_note(old_note, [SIGNER.verifier]), note)
    return {
        "kind": "consistency",
        "vkey": VKEY,
        "note": made.checkpoint,
        "old": old_note,
        "proof": [text(node) for node in made.proof],
    }


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def some_positions(size: int) -> set[int]:
    """All of a small tree; of a larger one those around every power of two."""
    if size <= 33:
        return set(range(1, size + 1))
    around = {(1 << bit) + step for bit in range(17) for step in (-1, 0, 1)}
    return {position for position in around | {size - 1, size} if 1 <= position <= size}


def test_checkpoints(verify: Verify, notes: dict[int, str]) -> None:
    cases = [{"kind": "note", "vkey": VKEY, "note": note} for note in notes.values()]
    assert_holds(verify, cases)
    for note, answer in zip(notes.values(), verify(cases), strict=True):
        assert answer["text"] == format_checkpoint(open_note(note, [SIGNER.verifier]))


def test_a_checkpoint_with_signatures_of_others(verify: Verify, log: LogReader) -> None:
    witness = generate_key("witness.example/one", bytes(32))
    note = sign(checkpoint_at(log, TreeSize(7)), witness, SIGNER)
    assert_holds(verify, [{"kind": "note", "vkey": VKEY, "note": note}])


def test_inclusion(verify: Verify, log: LogReader, notes: dict[int, str]) -> None:
    assert_holds(
        verify,
        [
            inclusion(log, note, position)
            for size, note in notes.items()
            for position in sorted(some_positions(size))
        ],
    )


def test_consistency(verify: Verify, log: LogReader, notes: dict[int, str]) -> None:
    assert_holds(
        verify,
        [
            consistency(log, old_note, note)
            for old_size, old_note in notes.items()
            for size, note in notes.items()
            if old_size <= size
        ],
    )


def changed_hashes(case: Case) -> Iterator[Case]:
    """Copies whose proof has another bit, one hash more or less, or another order."""
    proof = case["proof"]
    for at in range(len(proof)):
        node = bytearray(base64.b64decode(proof[at]))
        for byte in (0, 31):
            node[byte] ^= 1
            yield case | {"proof": [*proof[:at], text(bytes(node)), *proof[at + 1 :]]}
        yield case | {"proof": [*proof[:at], *proof[at + 1 :]]}
        yield case | {"proof": [*proof[:at], proof[at], *proof[at:]]}
    yield case | {"proof": [*proof, text(bytes(32))]}
    if len(proof) > 1:
        yield case | {"proof": proof[::-1]}


def test_a_changed_inclusion_proof(verify: Verify, log: LogReader, notes: dict[int, str]) -> None:
    cases: list[Case] = []
    for size, position in ((1, 1), (2, 1), (7, 7), (13, 5), (256, 256), (300, 257), (EVENTS, 65_537)):
        case = inclusion(log, notes[size], position)
        cases += changed_hashes(case)
        cases += [case | {"index": index} for index in (case["index"] + 1, case["index"] - 1, size)]
        body = base64.b64decode(case["body"])
        cases += [case | {"body": text(body + b"\0")}, case | {"body": text(body[:-1] + b"\0")}]
        cases += [case | {"note": notes[other]} for other in notes if other != size]
    assert_refused(verify, cases)


def test_a_changed_consistency_proof(verify: Verify, log: LogReader, notes: dict[int, str]) -> None:
    cases: list[Case] = []
    for old_size, size in ((1, 2), (4, 7), (6, 8), (13, 300), (256, 257), (257, EVENTS), (65_536, EVENTS)):
        case = consistency(log, notes[old_size], notes[size])
        cases += changed_hashes(case)
        cases += [case | {"old": notes[other]} for other in notes if other != old_size]
        cases += [case | {"note": notes[other]} for other in notes if other != size]
        cases += [case | {"old": case["note"], "note": case["old"]}]
    assert_refused(verify, cases)


def test_a_rewritten_log(verify: Verify, log: LogReader, notes: dict[int, str], tmp_path: Path) -> None:
    """Its own proofs lead to its own roots, and never from a checkpoint that somebody kept."""
    with EventLog.open(tmp_path / "log.db") as rewritten:
        rewritten.create_if_empty(log_id=LOG_ID, at=1)
        events = [build_event(position, at=20) for position in range(2, 14)]
        events[3] = events[3]._replace(actor="someone else")
        rewritten.append(events, expected_head=Position(1))
        newer = sign(checkpoint_at(rewritten, TreeSize(13)), SIGNER)
        old = sign(checkpoint_at(rewritten, TreeSize(7)), SIGNER)
        case = consistency(rewritten, old, newer)
        assert_holds(verify, [case, inclusion(rewritten, newer, 5)])
        assert_refused(
            verify,
            [
                case | {"old": notes[7]},
                case | {"note": notes[13]},
                inclusion(log, notes[13], 5) | {"note": newer},
            ],
        )


def test_a_changed_note(verify: Verify, notes: dict[int, str]) -> None:
    note = notes[13]
    other = generate_key(LOG_ID, bytes(32))
    changes = [
        note.replace("\n13\n", "\n14\n"),
        note.replace("\n13\n", "\n013\n"),
        note.replace(LOG_ID, "another-log"),
        note.replace(LOG_ID, "another-log", 1),
        note.replace("\n\n", "\nmore\n\n"),
        note.replace("\n\n", "\n"),
        note.replace("\n13\n", "\n13\r\n"),
        note.replace("— ", "- "),
        note.partition("\n\n")[0] + "\n\n",
        sign(open_note(note, [SIGNER.verifier]), other),
    ]
    root = note.split("\n")[2]
    changes.append(note.replace(root, text(bytes(32))))
    signature = base64.b64decode(note.split(" ")[-1])
    for at in range(0, len(signature), 7):
        flipped = bytes([*signature[:at], signature[at] ^ 1, *signature[at + 1 :]])
        changes.append(note.replace(text(signature), text(flipped)))
    assert len(set(changes) - {note}) == len(changes)
    cases = [{"kind": "note", "vkey": VKEY, "note": changed} for changed in changes]
    cases.append({"kind": "note", "vkey": format_vkey(other.verifier), "note": note})
    assert_refused(verify, cases)


def tiles_case(folder: Path, note: str) -> Case:
    return {"kind": "tiles", "vkey": VKEY, "note": note, "folder": str(folder)}


def test_tiles(verify: Verify, log: LogReader, notes: dict[int, str], tmp_path: Path) -> None:
    """Each in a folder of its own, and one that grew through all sizes."""
    cases = []
    for size, note in notes.items():
        folders = [tmp_path / "grown"] if size > 300 else [tmp_path / "grown", tmp_path / str(size)]
        for folder in folders:
            write_tiles(log, folder, size=TreeSize(size), note=note)
            if folder.name != "grown":
                cases.append(tiles_case(folder, (folder / "checkpoint").read_text()))
    cases += [tiles_case(tmp_path / "grown", notes[size]) for size in (257, 65_536, EVENTS)]
    assert_holds(verify, cases)


def test_changed_tiles(verify: Verify, log: LogReader, notes: dict[int, str], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_tiles(log, whole, size=TreeSize(300), note=notes[300])
    cases = [tiles_case(whole, notes[size]) for size in (257, 65_537)]
    for number, (name, change) in enumerate(tile_changes()):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        change(folder / name)
        cases.append(tiles_case(folder, notes[300]))
    assert_holds(verify, [tiles_case(whole, notes[300])])
    assert_refused(verify, cases)


def tile_changes() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Files of a log of 300 events, and what may become of them."""

    def flip(at: int) -> Callable[[Path], object]:
        def flipped(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[at] ^= 1
            path.write_bytes(content)

        return flipped

    for name in (
        "tile/0/000",
        "tile/0/001.p/44",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/44",
    ):
        yield name, Path.unlink
        yield name, lambda path: path.write_bytes(path.read_bytes()[:-1])
        yield name, lambda path: path.write_bytes(path.read_bytes()[:-32])
        for at in (0, 31, -1):
            yield name, flip(at)
    yield "tile/entries/000", lambda path: path.write_bytes(path.read_bytes() + b"\0\0")


def test_our_key_signs_for_go_as_for_us(go: Verify, log: LogReader) -> None:
    checkpoint = checkpoint_at(log, TreeSize(7))
    (answer,) = go(
        [{"kind": "sign", "key": format_private_key(SIGNER), "text": format_checkpoint(checkpoint)}]
    )
    assert answer == {"error": "", "text": sign(checkpoint, SIGNER)}


def test_what_go_signs_is_what_we_open(go: Verify) -> None:
    """The key is the one in the documentation of its package."""
    key = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
    signed = "PeterNeumann\n7\n" + text(bytes(32)) + "\n"
    (answer,) = go([{"kind": "sign", "key": key, "text": signed}])
    assert answer["error"] == ""
    vkey = parse_vkey("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert parse_private_key(key).verifier == vkey
    assert format_checkpoint(open_note(answer["text"], [vkey])) == signed
