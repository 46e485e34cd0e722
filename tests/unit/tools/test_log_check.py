"""`log check` over receipts that were released, and over what became of them."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eventstore.keys import format_vkey, generate_key
from tools.cli import run

GOLDEN = Path(__file__).parents[2] / "golden" / "proof"
LOG_ID = "imageledger-000102030405060708090a0b0c0d0e0f"
ROOT = "e44376fda2bef1ec929aff0e008a0471ce9805dda797757a02a78036dd54754b"
OLD_ROOT = "f477179a2bad4c8fef4c471fe385e0cb33a2608a176dbbe06d8a047501ac3988"
KEY = ("--public-key", GOLDEN / "log.vkey")
OLD = ("--old", GOLDEN / "old.note")


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Check = Callable[..., Ran]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """Runs `log check` in this process, `stdin` being what it reads there."""
    for name in [name for name in os.environ if name.startswith("IMAGELEDGER_")]:
        monkeypatch.delenv(name)

    def ran(*arguments: object, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = run(["log", "check", *map(str, arguments)])
        return Ran(code, *capsys.readouterr())

    return ran


@pytest.fixture
def receipt() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GOLDEN / "receipt.json").read_bytes())
    return document


def assert_refused(ran: Ran, code: str, *words: str) -> None:
    assert ran.code == 1
    assert ran.out == ""
    first, *rest = ran.err.splitlines()
    assert first.startswith(f"error: {code}: ")
    assert len(rest) == 1, f"one line of remedy, not {rest}"
    for word in words:
        assert word in ran.err


@pytest.mark.parametrize("name", ["receipt.json", "receipt.tlog-proof"])
def test_a_receipt_tells_what_it_proves(check: Check, name: str) -> None:
    ran = check(GOLDEN / name, *KEY)
    assert (ran.code, ran.err) == (0, "")
    assert dict(line.split(maxsplit=1) for line in ran.out.splitlines()) == {
        "proven": "event 7 of the 10 that the log had",
        "type": "Said",
        "resource": "r1",
        "at": "1970-01-01T00:00:00.000000070Z",
        "operation": "op7",
        "actor": "someone (dev)",
        "data": '{"text": "word 7"}',
        "log": LOG_ID,
        "root": ROOT,
    }


@pytest.mark.parametrize("name", ["receipt.json", "receipt.tlog-proof"])
def test_a_receipt_as_json(check: Check, name: str) -> None:
    ran = check(GOLDEN / name, *KEY, "--json")
    assert (ran.code, ran.err) == (0, "")
    (document,) = ran.lines
    assert document["proven"] == "inclusion"
    assert (document["position"], document["index"]) == (7, 6)
    assert document["event"]["operation_id"] == "op7"
    assert document["event"]["at"] == "1970-01-01T00:00:00.000000070Z"
    assert document["checkpoint"] == {"origin": LOG_ID, "size": 10, "root": ROOT}


def test_a_consistency_proof_tells_what_it_proves(check: Check) -> None:
    ran = check(GOLDEN / "consistency.json", *KEY, *OLD, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == [
        {
            "proven": "consistency",
            "old": {"origin": LOG_ID, "size": 6, "root": OLD_ROOT},
            "checkpoint": {"origin": LOG_ID, "size": 10, "root": ROOT},
        }
    ]
    ran = check(GOLDEN / "consistency.json", *KEY, *OLD)
    assert "the log of 10 events begins with the 6 it had before" in ran.out
    assert OLD_ROOT in ran.out
    assert ROOT in ran.out


@pytest.mark.parametrize("joined", ["\n", "", " "])
def test_several_from_stdin(check: Check, receipt: dict[str, Any], joined: str) -> None:
    consistency = (GOLDEN / "consistency.json").read_text()
    text = joined.join([json.dumps(receipt), consistency, json.dumps(receipt, indent=2)])
    ran = check("-", *KEY, *OLD, "--json", stdin=text)
    assert ran.code == 0
    assert [line["proven"] for line in ran.lines] == ["inclusion", "consistency", "inclusion"]


def test_one_that_does_not_hold_among_several(check: Check, receipt: dict[str, Any]) -> None:
    """The others are told, it is named, and the exit code says that something was found."""
    wrong = receipt | {"proof": receipt["proof"][::-1]}
    ran = check("-", *KEY, "--json", stdin="\n".join(json.dumps(each) for each in (receipt, wrong, receipt)))
    assert ran.code == 1
    assert len(ran.lines) == 2
    first, remedy = ran.err.splitlines()
    assert first.startswith(
        "error: DATA_LOSS: proof 2: the proof fails at its inclusion: it leads to the root "
    )
    assert remedy == "it proves nothing, ask for another one"


class TestWhatProvesNothing:
    def test_every_step_has_its_name(self, check: Check, receipt: dict[str, Any]) -> None:
        other = base64.b64encode(base64.b64decode(receipt["event"]).replace(b"word 7", b"word 8")).decode()
        for change, step in (
            ({"checkpoint": receipt["checkpoint"].replace("\n10\n", "\n11\n")}, "signature"),
            ({"event": receipt["event"][:-4]}, "event"),
            ({"position": 8}, "position"),
            ({"index": 7}, "position"),
            ({"event": other}, "inclusion"),
            ({"proof": receipt["proof"][:-1]}, "inclusion"),
        ):
            ran = check("-", *KEY, stdin=json.dumps(receipt | change))
            assert_refused(ran, "DATA_LOSS", f"fails at its {step}: ")

    def test_another_key_than_the_logs(self, check: Check, tmp_path: Path) -> None:
        key = tmp_path / "other.vkey"
        key.write_text(format_vkey(generate_key(LOG_ID, bytes(32)).verifier))
        ran = check(GOLDEN / "receipt.json", "--public-key", key)
        assert_refused(ran, "DATA_LOSS", "fails at its signature", "none of the keys to believe")

    def test_another_older_note(self, check: Check, receipt: dict[str, Any], tmp_path: Path) -> None:
        old = tmp_path / "old.note"
        old.write_text(receipt["checkpoint"])
        ran = check(GOLDEN / "consistency.json", *KEY, "--old", old)
        assert_refused(ran, "DATA_LOSS", "fails at its older note", "from 6 to 10 events")

    def test_a_tlog_proof_of_another_event(self, check: Check, tmp_path: Path) -> None:
        body = tmp_path / "event"
        body.write_bytes(b"another")
        ran = check(GOLDEN / "receipt.tlog-proof", *KEY, "--event", body)
        assert_refused(ran, "DATA_LOSS", "fails at its event")


def test_a_tlog_proof_without_the_event(check: Check, receipt: dict[str, Any], tmp_path: Path) -> None:
    first, _, *rest = (GOLDEN / "receipt.tlog-proof").read_text().split("\n")
    bare = "\n".join([first, *rest])
    assert_refused(check("-", *KEY, stdin=bare), "INVALID_ARGUMENT", "does not hold the event")
    body = tmp_path / "event"
    body.write_bytes(base64.b64decode(receipt["event"]))
    assert check("-", *KEY, "--event", body, stdin=bare).code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "it is empty", id="empty"),
        pytest.param(" \n", "it is empty", id="blank"),
        pytest.param("words", "from line 1 on", id="no-json"),
        pytest.param("[]", "a receipt is an object", id="list"),
        pytest.param("{}", "proof must be there", id="empty-object"),
        pytest.param("[" * 100_000, "from line 1 on", id="deep"),
        pytest.param('{"position": 1, "position": 2}', "there twice", id="key-twice"),
        pytest.param('{"position": NaN}', "NaN is no JSON", id="nan"),
        pytest.param('{"position": ' + "9" * 5000 + "}", "from line 1 on", id="huge"),
        pytest.param("c2sp.org/tlog-proof@v1\n", "a line `index N`", id="tlog-proof"),
    ],
)
def test_what_is_no_receipt(check: Check, text: str, words: str) -> None:
    assert_refused(check("-", *KEY, stdin=text), "INVALID_ARGUMENT", words)


def test_the_line_that_is_no_json_is_named(check: Check, receipt: dict[str, Any]) -> None:
    text = json.dumps(receipt) + "\n" + json.dumps(receipt) + "\n{broken"
    assert_refused(check("-", *KEY, stdin=text), "INVALID_ARGUMENT", "from line 3 on")


def test_a_file_that_is_no_text(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(b"\xff\xfe")
    assert_refused(check(path, *KEY), "INVALID_ARGUMENT", "is not UTF-8 text")


def test_a_key_file_without_a_key(check: Check) -> None:
    ran = check(GOLDEN / "receipt.json", "--public-key", GOLDEN / "old.note")
    assert_refused(ran, "FAILED_PRECONDITION", "no public key", "log public-key")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="nothing"),
        pytest.param([GOLDEN / "receipt.json"], id="no-key"),
        pytest.param([GOLDEN / "absent.json", *KEY], id="absent"),
        pytest.param([GOLDEN, *KEY], id="folder"),
        pytest.param([GOLDEN / "consistency.json", *KEY], id="no-older-note"),
    ],
)
def test_wrong_usage(check: Check, arguments: list[object]) -> None:
    ran = check(*arguments)
    assert (ran.code, ran.out) == (2, "")


def test_a_line_end_that_was_changed_is_seen(check: Check, tmp_path: Path) -> None:
    """A note is bytes: no reader may mend its line ends on the way."""
    old = tmp_path / "old.note"
    old.write_bytes((GOLDEN / "old.note").read_bytes().replace(b"\n", b"\r\n"))
    ran = check(GOLDEN / "consistency.json", *KEY, "--old", old)
    assert_refused(ran, "DATA_LOSS", "U+000D")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_it_asks_nobody(tmp_path: Path) -> None:
    """No socket is opened, and no data directory looked for."""
    calls = tmp_path / "calls"
    command = [sys.executable, "-m", "tools.cli", "log", "check", GOLDEN / "receipt.json", *KEY]
    strace = ["strace", "-f", "-e", "trace=socket,connect,openat", "-o", calls]
    subprocess.run([*map(str, strace), *map(str, command)], check=True, timeout=60, capture_output=True)
    seen = calls.read_text()
    assert "receipt.json" in seen
    assert "AF_INET" not in seen
    assert "log.db" not in seen
