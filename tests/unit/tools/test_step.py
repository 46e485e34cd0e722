"""`replay --step`: what each key shows, and the same keys at a real terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from eventstore.event import Position
from projections.steps import Walk
from tests.unit.projections.builders import Stand, created, registered, started, updated
from tools.step import Screen

LAST = 8


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with closing(Stand(tmp_path)) as made:
        made.say(
            [
                registered("disk"),
                started("a", name="one"),
                created("a"),
                started("b"),
                created("b"),
                updated("a", description="new"),
                updated("a", labels={"k": "v"}),
            ]
        )
        yield made


@pytest.fixture
def screen(stand: Stand) -> Screen:
    return Screen(stand.log, Walk(stand.log, first=Position(1), last=Position(LAST)))


def test_an_event_shows_what_it_changed(screen: Screen) -> None:
    screen.walk.go(Position(7))
    assert "#7" in screen.body()
    assert 'description: - → "new"' in screen.body()


def test_arrows_stop_at_both_ends(screen: Screen) -> None:
    screen.press("back")
    assert "before the first event" in screen.body()
    screen.press("back")
    assert (screen.walk.position, screen.note) == (0, "there is nothing before")
    screen.press("end")
    screen.press("next")
    assert (screen.walk.position, screen.note) == (LAST, "this is the last event")
    screen.press("home")
    assert screen.walk.position == 1


@pytest.mark.parametrize(
    ("follow", "expected"),
    [
        pytest.param("a", [3, 4, 7, 8], id="image"),
        pytest.param("a description", [7], id="field"),
        pytest.param("a labels", [8], id="last"),
    ],
)
def test_brackets_go_where_what_is_followed_changes(screen: Screen, follow: str, expected: list[int]) -> None:
    screen.follow(follow)
    assert list(places(screen, "onward")) == expected
    screen.press("end")
    assert list(places(screen, "backward")) == [place for place in reversed(expected) if place != LAST]


def places(screen: Screen, key: str) -> Iterator[int]:
    """Where a key leads until it says that there is nothing more."""
    screen.press(key)
    while not screen.note:
        yield screen.walk.position
        screen.press(key)


def test_a_question_about_nothing_says_so(screen: Screen) -> None:
    screen.press("onward")
    assert "nothing is followed" in screen.note
    screen.follow("a colour")
    assert "there is no field colour" in screen.note
    screen.go("yesterday")
    assert screen.note
    screen.go("99")
    assert "99" in screen.note
    assert screen.walk.position == 1


def test_the_image_as_of_here(screen: Screen) -> None:
    screen.walk.go(Position(7))
    screen.press("show")
    assert 'description: "new"' in screen.extra
    screen.walk.go(Position(4))
    screen.press("show")
    assert "description" not in screen.extra
    screen.follow("b")
    screen.press("show")
    assert screen.extra == "b is not there as of this event"


def test_what_differs_since_a_mark(screen: Screen) -> None:
    screen.walk.go(Position(6))
    screen.press("mark")
    screen.press("diff")
    assert screen.extra == "nothing differs"
    screen.press("end")
    screen.press("diff")
    assert screen.extra.splitlines() == ["@@ a", '  description: - → "new"', '  labels: - → {"k": "v"}']


def test_at_a_terminal(stand: Stand, tmp_path: Path) -> None:
    """Each key is sent once its predecessor's effect is on the screen."""
    command = [sys.executable, "-m", "tools.cli", "replay", "--data", str(tmp_path), "--step"]
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    environment = {**os.environ, "TERM": "xterm", "LINES": "40", "COLUMNS": "120"}
    with subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        try:
            shown(leader, "position 1 of 8")
            os.write(leader, b"\x1b[C")
            shown(leader, "2")
            os.write(leader, b"g7\r")
            shown(leader, "ImageUpdated")
            os.write(leader, b"?")
            shown(leader, "what differs between the mark and here")
            os.write(leader, b"q")
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(leader)


def shown(leader: int, text: str) -> None:
    """Wait until the terminal was sent a text."""
    seen = ""
    while text not in seen:
        if not select.select([leader], [], [], 20)[0]:
            raise AssertionError(f"{text!r} is not in {seen!r}")
        try:
            seen += os.read(leader, 65536).decode(errors="replace")
        except OSError:
            raise AssertionError(f"it ended: {seen!r}") from None


def test_without_a_terminal_it_names_the_remedy(stand: Stand, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.cli", "replay", "--data", str(tmp_path), "--step"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: FAILED_PRECONDITION: --step needs a terminal\n")
