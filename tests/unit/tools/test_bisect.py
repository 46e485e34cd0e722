"""The search by halves, and the command around it against a real server."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.harness import IMAGES, Client
from tests.unit.tools.conftest import Run, Spawn
from tests.unit.tools.test_client_commands import document, first_line, folder, image
from tools.bisect import Open, Verdict, first_bad

__all__ = ["folder", "image"]


@given(st.integers(1, 5000), st.data())
def test_the_first_bad_one_is_found_in_so_many_tests_as_its_number_has_bits(
    count: int, data: st.DataObject
) -> None:
    bad = data.draw(st.integers(1, count))
    tested: list[int] = []

    def test(index: int) -> Verdict:
        assert 0 < index < count
        tested.append(index)
        return Verdict.BAD if index >= bad else Verdict.GOOD

    assert first_bad(count, test) == bad
    assert len(tested) == len(set(tested)) <= math.ceil(math.log2(count))


@given(st.integers(1, 60), st.data())
def test_skips_are_gone_around_or_leave_it_open(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(1, count))
    skipped = data.draw(st.sets(st.integers(1, max(count - 1, 1))))
    tested: list[int] = []

    def test(index: int) -> Verdict:
        tested.append(index)
        if index in skipped:
            return Verdict.SKIP
        return Verdict.BAD if index >= bad else Verdict.GOOD

    found = first_bad(count, test)
    assert len(tested) == len(set(tested))
    # What the tests that tell something leave open, found by asking about each of them.
    good = max(index for index in range(bad) if index == 0 or index not in skipped)
    known_bad = min(index for index in range(bad, count + 1) if index == count or index not in skipped)
    if known_bad - good == 1:
        assert found == bad
    else:
        assert found == Open(good + 1, known_bad)


@pytest.fixture
def broken(caller: Client, image: str) -> list[int]:
    """The positions of six updates, the fourth of which sets a label `broken`."""
    positions = []
    for number in range(6):
        labels = {"broken": "yes"} if number >= 3 else {"n": str(number)}
        request = image_service_pb2.UpdateImageRequest(
            image_id=image, update_mask={"paths": ["labels"]}, labels=labels
        )
        _, call = caller.full_call(IMAGES, "Update", request, operation_pb2.Operation)
        positions.append(int(dict(call.trailing_metadata())["x-log-position"]))
    return positions


def script(path: Path, text: str) -> str:
    """A command that runs this Python on `state`, which is what it gets on stdin."""
    path.write_text(f"import json, sys\nstate = json.load(sys.stdin)\n{text}\n")
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(path))}"


LABELS = "labels = state['images'][0].get('labels', {})\n"


def test_the_event_is_found_with_who_did_it_and_what_it_changed(
    imageledger: Run, spawn: Spawn, folder: str, image: str, broken: list[int], tmp_path: Path
) -> None:
    # It says what it was asked, and what it got, in a file of its own.
    asked = tmp_path / "asked"
    text = f"open({str(asked)!r}, 'a').write(json.dumps(state) + '\\n')\n{LABELS}"
    command = script(tmp_path / "check.py", text + "print('to stderr')\nsys.exit('broken' in labels)")
    arguments = ("--folder", folder, "--good", str(broken[0]), "--bad", "head", "--run", command)
    found = document(imageledger("history", "bisect", *arguments, "--json"))

    (event,) = [
        json.loads(line)
        for line in imageledger(
            "log", "show", "--from", str(broken[3]), "--to", str(broken[3]), "--json"
        ).out.splitlines()
    ]
    assert found == {
        "position": broken[3],
        "event": event,
        "operation_id": event["operation_id"],
        "actor": event["actor"],
        "diff": document(
            imageledger("history", "diff", str(broken[3] - 1), str(broken[3]), "--folder", folder, "--json")
        ),
    }
    assert found["diff"]["changed"][0]["changes"] == [
        {"field": "labels", "old": {"n": "2"}, "new": {"broken": "yes"}}
    ]
    states = [json.loads(line) for line in asked.read_text().splitlines()]
    # Both ends first, then by halves, among the folder's own positions alone.
    assert [state["position"] for state in states] == [broken[0], broken[5], broken[2], broken[3]]
    for state in states:
        listed = imageledger("image", "list", "--folder", folder, "--as-of", str(state["position"]), "--json")
        assert state["images"] == [json.loads(line) for line in listed.out.splitlines()]

    process = spawn("history", "bisect", *arguments, "--json")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, json.loads(out)) == (0, found)
    assert b"to stderr" in err

    text_answer = imageledger("history", "bisect", *arguments)
    assert text_answer.code == 0
    assert f"#{broken[3]}  " in text_answer.out
    assert '+  labels: {"broken": "yes"}' in text_answer.out
    assert f"position {broken[2]}: good\n" in text_answer.err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("1", "--good is position {0}, and there the command says bad", id="always bad"),
        pytest.param("124", "--good is position {0}, and there the command says bad", id="always 124"),
        pytest.param("0", "--bad is position {5}, and there the command says good", id="always good"),
        pytest.param("125", "--good is position {0}, and there the command says skip", id="always skip"),
        pytest.param("126", "ended with 126, which says neither good nor bad", id="126"),
        pytest.param("127", "ended with 127, which says neither good nor bad", id="127"),
        pytest.param("200", "ended with 200, which says neither good nor bad", id="200"),
    ],
)
def test_an_end_that_is_not_what_it_was_said_to_be(
    imageledger: Run, folder: str, broken: list[int], code: str, said: str
) -> None:
    arguments = ("--folder", folder, "--good", str(broken[0]), "--bad", str(broken[5]))
    ended = imageledger("history", "bisect", *arguments, "--run", f"exit {code}", "--json")
    assert (ended.code, ended.out) == (1, "")
    (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert said.format(*broken) in error


def test_a_command_that_a_signal_ends_says_nothing(imageledger: Run, folder: str, broken: list[int]) -> None:
    arguments = ("--folder", folder, "--good", str(broken[0]), "--bad", str(broken[5]))
    ended = imageledger("history", "bisect", *arguments, "--run", "kill -9 $$")
    assert ended.code == 1
    assert "ended by signal 9" in ended.err


def test_skips_that_leave_it_open(imageledger: Run, folder: str, broken: list[int], tmp_path: Path) -> None:
    skip = f"sys.exit(125 if state['position'] in {broken[2:5]} else 'broken' in labels)"
    command = script(tmp_path / "check.py", LABELS + skip)
    arguments = ("--folder", folder, "--good", str(broken[0]), "--bad", str(broken[5]))
    ended = imageledger("history", "bisect", *arguments, "--run", command, "--json")
    assert (ended.code, ended.out) == (1, "")
    assert f"it is one of positions {broken[2]} to {broken[5]}" in ended.err


def test_a_skip_that_is_gone_around(imageledger: Run, folder: str, broken: list[int], tmp_path: Path) -> None:
    command = script(
        tmp_path / "check.py",
        f"{LABELS}sys.exit(125 if state['position'] == {broken[1]} else 'broken' in labels)",
    )
    arguments = ("--folder", folder, "--good", str(broken[0]), "--bad", str(broken[5]))
    found = document(imageledger("history", "bisect", *arguments, "--run", command, "--json"))
    assert found["position"] == broken[3]


def test_nothing_happened_between(imageledger: Run, folder: str, broken: list[int]) -> None:
    arguments = ("--good", str(broken[5]), "--bad", str(broken[5]), "--run", "exit 1")
    ended = imageledger("history", "bisect", "--folder", folder, *arguments)
    assert (ended.code, ended.out) == (1, "")
    assert first_line(ended).startswith("error: FAILED_PRECONDITION: nothing happened in folder")
    ended = imageledger(
        "history", "bisect", "--folder", folder, "--good", "head", "--bad", "1", "--run", "exit 1"
    )
    assert first_line(ended).startswith("error: INVALID_ARGUMENT: ")


def test_a_command_that_does_not_read_its_stdin(imageledger: Run, folder: str, broken: list[int]) -> None:
    arguments = ("--folder", folder, "--good", str(broken[0]), "--bad", str(broken[5]))
    ended = imageledger("history", "bisect", *arguments, "--run", "exec 0<&-; exit 1")
    assert "and there the command says bad" in ended.err
