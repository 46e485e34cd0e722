"""`log checkpoint`, `prove` and `public-key` against a real server, and `log check` of what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eventstore.checkpoint import open_note
from eventstore.keys import load_vkey_file, parse_vkey
from projections.changes import IMAGE_FIELDS
from tests.harness import Client
from tests.unit.tools.conftest import Ended, Run, Spawn
from tests.unit.tools.test_client_commands import document, first_line, folder, image, lines

__all__ = ["folder", "image"]


@pytest.fixture
def key(imageledger: Run, tmp_path: Path) -> Path:
    """The file that an auditor has from the log's public key."""
    path = tmp_path / "log.vkey"
    path.write_text(imageledger("log", "public-key").out)
    return path


def head(imageledger: Run) -> int:
    return int(document(imageledger("log", "checkpoint", "--json"))["size"])


def checked(imageledger: Run, path: Path, key: Path, *options: str) -> list[dict[str, Any]]:
    """What `log check` says is proven."""
    ended = imageledger("log", "check", str(path), "--public-key", str(key), "--json", *options)
    assert ended.code == 0, ended.err
    return lines(ended)


def assert_refused(ended: Ended, code: str, *texts: str) -> None:
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith(f"error: {code}: ")
    for text in texts:
        assert text in ended.err


# log public-key


def test_the_public_key_is_one_line(imageledger: Run) -> None:
    ended = imageledger("log", "public-key")
    assert (ended.code, ended.err) == (0, "")
    (line,) = ended.out.splitlines()
    assert parse_vkey(line).name.startswith("imageledger-")


def test_all_public_keys_are_a_file_of_keys(imageledger: Run, tmp_path: Path) -> None:
    ended = imageledger("log", "public-key", "--all")
    path = tmp_path / "all.vkey"
    path.write_text(ended.out)
    newest = imageledger("log", "public-key").out.strip()
    assert load_vkey_file(path)[-1] == parse_vkey(newest)
    assert ended.out.splitlines()[-2] == "# checkpoints of 2 events on"
    assert lines(imageledger("log", "public-key", "--json"))[-1] == {
        "public_key": newest,
        "from": 2,
        "until": None,
    }


# log checkpoint


def test_a_checkpoint_is_the_bare_note(imageledger: Run, key: Path) -> None:
    ended = imageledger("log", "checkpoint")
    assert (ended.code, ended.err) == (0, "")
    assert open_note(ended.out, load_vkey_file(key)).size == head(imageledger)


def test_a_checkpoint_as_json_says_the_same(imageledger: Run) -> None:
    made = document(imageledger("log", "checkpoint", "--json"))
    assert list(made) == ["origin", "size", "root", "checkpoint", "public_key"]
    opened = open_note(made["checkpoint"], [parse_vkey(made["public_key"])])
    assert (opened.origin, opened.size, opened.root.hex()) == (made["origin"], made["size"], made["root"])


def test_a_checkpoint_into_a_file(imageledger: Run, tmp_path: Path) -> None:
    path = tmp_path / "friday.note"
    ended = imageledger("log", "checkpoint", "--to", str(path))
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert path.read_bytes().decode() == imageledger("log", "checkpoint").out
    assert [entry.name for entry in tmp_path.iterdir()] == ["friday.note"]


def test_evidence_is_not_written_over(imageledger: Run, tmp_path: Path) -> None:
    path = tmp_path / "friday.note"
    path.write_text("kept since Friday")
    for command in (("checkpoint",), ("prove", "1")):
        ended = imageledger("log", *command, "--to", str(path))
        assert_refused(ended, "ALREADY_EXISTS", str(path), "--overwrite")
        assert path.read_text() == "kept since Friday"
    assert imageledger("log", "checkpoint", "--to", str(path), "--overwrite").code == 0
    assert path.read_text() == imageledger("log", "checkpoint").out


def test_a_note_is_exact_in_a_locale_without_its_dash(
    spawn: Spawn, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = spawn("log", "checkpoint")
    note, _ = process.communicate(timeout=60)
    assert open_note(note.decode(), load_vkey_file(key)).size > 0


# log prove


def test_a_receipt_holds(imageledger: Run, key: Path, tmp_path: Path, image: str) -> None:
    position = head(imageledger)
    made = document(imageledger("log", "prove", str(position)))
    assert list(made) == ["position", "index", "event", "proof", "checkpoint"]
    assert (made["position"], made["index"]) == (position, position - 1)
    path = tmp_path / "receipt.json"
    assert imageledger("log", "prove", str(position), "--to", str(path)).out == ""
    (proven,) = checked(imageledger, path, key)
    assert proven["event"]["position"] == position
    (shown,) = lines(imageledger("log", "show", "--from", str(position), "--to", str(position), "--json"))
    assert proven["event"] == shown


def test_a_receipt_as_text_of_c2sp(imageledger: Run, key: Path, tmp_path: Path) -> None:
    path = tmp_path / "receipt.tlog-proof"
    ended = imageledger("log", "prove", "1", "--format", "tlog-proof")
    assert ended.out.startswith("c2sp.org/tlog-proof@v1\n")
    path.write_text(ended.out)
    (proven,) = checked(imageledger, path, key)
    assert proven["event"]["type"] == "LogCreated"


def test_an_image_is_proved_a_line_an_event(imageledger: Run, key: Path, tmp_path: Path, image: str) -> None:
    before = head(imageledger)
    assert imageledger("image", "update", image, "--name", "renamed").code == 0
    path, earlier = tmp_path / "image.jsonl", tmp_path / "earlier.jsonl"
    path.write_text(imageledger("log", "prove", "--image", image).out)
    ended = imageledger("log", "prove", "--image", image, "--as-of", str(before), "--to", str(earlier))
    assert (ended.code, ended.out, ended.err) == (0, "", f"2 receipts in {earlier}\n")
    shown = lines(imageledger("log", "show", "--image", image, "--json"))
    assert [one["event"] for one in checked(imageledger, path, key)] == shown
    assert [one["event"] for one in checked(imageledger, earlier, key)] == shown[:2]


def test_growth_is_proved_from_a_note_that_was_kept(
    imageledger: Run, key: Path, tmp_path: Path, image: str
) -> None:
    old, grown = tmp_path / "friday.note", tmp_path / "grown.json"
    assert imageledger("log", "checkpoint", "--to", str(old)).code == 0
    assert imageledger("image", "update", image, "--name", "renamed").code == 0
    assert imageledger("log", "prove", "--consistency", str(old), "--to", str(grown)).code == 0
    assert list(json.loads(grown.read_text())) == ["old_size", "size", "proof", "checkpoint"]
    (proven,) = checked(imageledger, grown, key, "--old", str(old))
    assert (proven["proven"], proven["checkpoint"]["size"]) == ("consistency", head(imageledger))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["0"], "INVALID_ARGUMENT", "at least 1"),
        (["1000000"], "OUT_OF_RANGE", "beyond the head of the log"),
        (["--image", "nobody"], "NOT_FOUND", '"nobody"'),
        (["--image", "nobody", "--as-of", "2200-01-01T00:00:00Z"], "OUT_OF_RANGE", "in the future"),
        (["--image", "nobody", "--as-of", "1000000"], "OUT_OF_RANGE", "beyond the head of the log"),
    ],
)
def test_what_cannot_be_proved(imageledger: Run, arguments: list[str], code: str, text: str) -> None:
    assert_refused(imageledger("log", "prove", *arguments), code, text)


@pytest.mark.parametrize(
    ("note", "code", "text"),
    [
        (b"", "INVALID_ARGUMENT", "old_checkpoint"),
        (b"no note\n", "INVALID_ARGUMENT", "no signed checkpoint"),
        (b"\xff", "INVALID_ARGUMENT", "not UTF-8"),
        ("log\n5\n{root}\n\n— log {signature}\n", "FAILED_PRECONDITION", "by no key of this log"),
    ],
)
def test_what_is_no_note_of_this_log(
    imageledger: Run, tmp_path: Path, note: bytes | str, code: str, text: str
) -> None:
    path = tmp_path / "old.note"
    if isinstance(note, str):
        note = note.format(root="A" * 43 + "=", signature="AAAA" * 24).encode()
    path.write_bytes(note)
    assert_refused(imageledger("log", "prove", "--consistency", str(path)), code, text)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["1", "--image", "i"],
        ["--image", "i", "--format", "tlog-proof"],
        ["one"],
        ["--consistency", "absent"],
    ],
)
def test_wrong_usage(imageledger: Run, arguments: list[str]) -> None:
    assert imageledger("log", "prove", *arguments).code == 2


# history blame --prove


def test_a_blame_is_proved_field_by_field(
    imageledger: Run, caller: Client, key: Path, tmp_path: Path, image: str
) -> None:
    assert imageledger("image", "update", image, "--name", "renamed").code == 0
    told = document(imageledger("history", "blame", image, "--prove", "--json"))
    plain = document(imageledger("history", "blame", image, "--json"))
    assert [field["field"] for field in told["fields"]] == list(IMAGE_FIELDS)
    receipts = [field.pop("receipt") for field in told["fields"]]
    assert told == plain
    assert len({receipt["checkpoint"] for receipt in receipts}) == 1
    path = tmp_path / "receipts.jsonl"
    path.write_text("".join(json.dumps(receipt) + "\n" for receipt in receipts))
    proven = [one["event"] for one in checked(imageledger, path, key)]
    for field, event in zip(told["fields"], proven, strict=True):
        assert (field["position"], field["at"], field["actor"]) == (
            event["position"],
            event["at"],
            event["actor"],
        )
    assert imageledger("history", "blame", image, "--prove").code == 2
