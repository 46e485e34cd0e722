"""What concurrent clients see, with kills in between, is explained by one order of their calls: the log's."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.reader import LogReader
from projections.moments import format_time
from tests.crash import planted
from tests.crash.callers import Caller, Place, check_callers, joined
from tests.crash.linear import (
    ALREADY_EXISTS,
    NEVER,
    NOT_FOUND,
    Answer,
    Asked,
    Call,
    Create,
    Delete,
    Describe,
    Get,
    GetLatest,
    Image,
    ListAll,
    ListNamed,
    Rename,
    State,
    step,
    unexplained,
)
from tests.crash.prefixes import Prefixes, changed_answers, questions_of, steps_back, wrong_answers
from tests.crash.recorded import FOLDERS, Book, JustNow, Past, Present, Recording, Seen
from tests.harness import Client, Server

KILLS = 6
PRESENT, PAST, JUST_NOW = 6, 1, 3
WAIT_S = 60
A = Image("a", "one", "web", "")


@dataclass(frozen=True, slots=True)
class History:
    """What a run of clients has seen, and the log that they have left."""

    seen: tuple[Seen, ...]
    prefixes: Prefixes

    def faults(self) -> dict[str, list[str]]:
        """What no right server can have answered, by the check that found it."""
        found = {name: check(self) for name, check in CHECKS.items()}
        return {name: faults for name, faults in found.items() if faults}


def no_order(history: History) -> list[str]:
    """The folders whose answers about the present no order of their calls explains."""
    found = []
    for folder in FOLDERS:
        calls = [one.call for one in history.seen if one.folder == folder and not one.as_of]
        stuck = unexplained(calls)
        if stuck is not None:
            found.append(f"{folder}: {stuck}")
    return found


CHECKS: dict[str, Callable[[History], list[str]]] = {
    "order": no_order,
    "prefix": lambda history: wrong_answers(history.prefixes, history.seen),
    "change": lambda history: changed_answers(history.seen),
    "step back": lambda history: steps_back(history.seen),
}


class Run:
    """A server and the clients that record it."""

    def __init__(self, data: Path, seed: int, *, program: Sequence[str] = Server.program) -> None:
        self.server = Server(data)
        self.server.program = program
        self.place = Place()
        self.book = Book()
        self.seed = seed
        self.callers: list[Caller] = []

    def start(self) -> None:
        self.server.start()
        self.place.move_to(self.server.address)
        with Client(self.server.address) as client:
            self.book.disk_id = client.disk("sources")

    def begin(self, kind: type[Recording], count: int) -> None:
        for number in range(count):
            caller = kind(self.place, self.book, f"{kind.__name__.lower()}-{number}", self.seed)
            self.callers.append(caller)
            caller.start()

    def wait_for(self, is_enough: Callable[[Book], bool]) -> None:
        with self.book.grown:
            came = self.book.grown.wait_for(
                lambda: is_enough(self.book) or any(caller.failure for caller in self.callers), WAIT_S
            )
        check_callers(self.callers)
        assert came, "the clients got no further"

    def wait_for_more(self, calls: int) -> None:
        enough = len(self.book.seen) + calls
        self.wait_for(lambda book: len(book.seen) >= enough)

    def wait_for_just_now(self) -> None:
        """An answer about a time that was just past takes the server two seconds."""
        enough = self.book.just_now + 1
        self.wait_for(lambda book: book.just_now >= enough)

    def kill(self, *, program: Sequence[str] = Server.program) -> None:
        self.server.kill()
        self.server.program = program
        self.server.start()
        self.place.move_to(self.server.address)

    def end(self) -> History:
        """Let the clients end, ask every question about the past once more, and read the log."""
        self.place.end()
        joined(self.callers)
        again = Recording(self.place, self.book, "again", self.seed)
        with again.client:
            for question in questions_of(self.book.seen):
                again.read(*question)
        assert self.server.stop() == 0
        with LogReader.open(self.server.data / "log.db") as log:
            return History(tuple(self.book.seen), Prefixes(log.events(), self.book.seen))

    def close(self) -> None:
        self.place.end()
        self.server.stop()
        for caller in self.callers:
            caller.join()


def recorded(data: Path, *, kills: int, more: int = 300, program: Sequence[str] = Server.program) -> History:
    """The history of a run with kills at random moments, and with so many calls after the last of them."""
    seed = int(os.environ.get("IMAGELEDGER_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"IMAGELEDGER_TEST_SEED={seed}")
    choices = random.Random(seed)
    run = Run(data, seed, program=program)
    try:
        run.start()
        run.begin(Present, PRESENT)
        run.begin(Past, PAST)
        run.begin(JustNow, JUST_NOW)
        for number in range(kills):
            run.wait_for_more(choices.randrange(100, 800))
            if number % 2 == 0:
                run.wait_for_just_now()
            run.kill(program=program)
        run.wait_for_more(more)
        return run.end()
    finally:
        run.close()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return recorded(tmp_path_factory.mktemp("linear") / "data", kills=KILLS)


def test_one_order_explains_every_answer(history: History) -> None:
    assert history.faults() == {}
    # Otherwise this test would have tested nothing.
    kinds = Counter((type(one.call.asked), one.as_of != "") for one in history.seen)
    reads, writes = (Get, GetLatest, ListAll, ListNamed), (Create, Describe, Rename, Delete)
    assert all(kinds[kind, False] > 100 for kind in (*reads, *writes)), kinds
    assert all(kinds[kind, True] > 20 for kind in reads), kinds
    refused = Counter(one.call.answer for one in history.seen if isinstance(one.call.answer, str))
    assert min(refused[NOT_FOUND], refused[ALREADY_EXISTS]) > 10
    assert any(one.call.returned == NEVER for one in history.seen)


# What is planted in answers that were right.


def forget_an_update(history: History) -> Seen:
    """A Get after an Update, and before any other answer about it, told of what was before."""
    described: dict[str, int] = {}
    for one in history.seen:
        if isinstance(one.call.asked, Describe) and isinstance(one.call.answer, tuple):
            described.setdefault(one.call.asked.tag, one.call.returned)
    for one in history.seen:
        asked, answer = one.call.asked, one.call.answer
        if not isinstance(asked, Get) or not isinstance(answer, tuple) or one.as_of:
            continue
        # Every Update gives another description, and none gives the first one, so it never comes back.
        if described.get(asked.tag, NEVER) < one.call.invoked:
            return answered(one, (answer[0]._replace(description=""),))
    raise AssertionError("no image was read after its description had been updated")


def forget_a_deletion(history: History) -> Seen:
    deleted = {one.call.asked: one.call.returned for one in history.seen if one.call.answer == ()}
    for one in history.seen:
        asked = one.call.asked
        if not isinstance(asked, Get) or one.call.answer != NOT_FOUND or one.as_of:
            continue
        if deleted.get(Delete(asked.tag), NEVER) < one.call.invoked:
            return answered(one, (Image(asked.tag, "", "web", ""),))
    raise AssertionError("no image was asked for after its deletion")


def change_the_past(history: History) -> Seen:
    asked = Counter((one.folder, one.call.asked, one.as_of) for one in history.seen if one.as_of)
    for one in reversed(history.seen):
        if asked[one.folder, one.call.asked, one.as_of] > 1 and one.call.answer == ():
            return answered(one, (A,))
    raise AssertionError("no question about the past was asked twice")


def name_an_old_position(history: History) -> Seen:
    for one in reversed(history.seen):
        if one.position is not None and not one.as_of:
            return replace(one, position=one.position - 100)
    raise AssertionError("no answer names a position")


def answered(one: Seen, answer: Answer) -> Seen:
    return replace(one, call=replace(one.call, answer=answer))


@pytest.mark.parametrize(
    ("tamper", "check"),
    [
        pytest.param(forget_an_update, "order", id="stale-get"),
        pytest.param(forget_an_update, "prefix", id="stale-get-as-of-its-position"),
        pytest.param(forget_a_deletion, "order", id="deleted-and-read"),
        pytest.param(change_the_past, "change", id="past-changes"),
        pytest.param(change_the_past, "prefix", id="past-was-never-so"),
        pytest.param(name_an_old_position, "step back", id="position-steps-back"),
    ],
)
def test_one_wrong_answer_among_all_is_found(
    history: History, tamper: Callable[[History], Seen], check: str
) -> None:
    wrong = tamper(history)
    # A call has one asking, and its moment is nobody else's but by chance.
    seen = tuple(wrong if _is_same(one, wrong) else one for one in history.seen)
    assert sum(one is wrong for one in seen) == 1
    assert CHECKS[check](History(seen, history.prefixes))


def _is_same(one: Seen, other: Seen) -> bool:
    return (one.call.asked, one.call.invoked, one.key) == (other.call.asked, other.call.invoked, other.key)


# What is planted in the server.


@pytest.mark.parametrize(
    ("faults", "check"),
    [
        pytest.param([planted.keep_answers], "order", id="stale-answers"),
        pytest.param([planted.answer_unsettled, planted.slow_disk], "change", id="past-changes"),
        pytest.param([planted.resolve_early], "prefix", id="time-resolved-too-early"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, faults: list[Callable[[], None]], check: str) -> None:
    history = recorded(tmp_path / "data", kills=0, more=800, program=planted.program(*faults))
    assert CHECKS[check](history)


@pytest.mark.parametrize(
    ("faults", "changes"),
    [
        pytest.param([], [], id="right"),
        pytest.param([planted.forget_closed], ["prefix", "change"], id="promise-forgotten"),
    ],
)
def test_an_answer_about_the_past_stands_when_the_clock_goes_back(
    tmp_path: Path, faults: list[Callable[[], None]], changes: list[str]
) -> None:
    run = Run(tmp_path / "data", seed=0)
    try:
        run.start()
        client = Recording(run.place, run.book, "client", 0)
        client.write("a", Create("before", "one", "web"))
        just_now = format_time(time.time_ns())
        assert client.read("a", ListAll(), just_now)
        run.kill(program=planted.program(planted.set_clock_back, *faults))
        client.follow()
        client.write("a", Create("after", "two", "web"))
        client.client.channel.close()
        run.kill()
        assert list(run.end().faults()) == changes
    finally:
        run.close()


# The search itself.


def call(asked: Asked, answer: Answer | None, invoked: int, returned: int = NEVER) -> Call:
    return Call(asked, invoked, returned, answer)


CREATED = call(Create("a", "one", "web"), (A,), 1, 2)
AS_TWO, AS_THREE, B = A._replace(name="two"), A._replace(name="three"), A._replace(tag="b", name="")


@pytest.mark.parametrize(
    ("calls", "is_right"),
    [
        pytest.param([call(Get("a"), (A,), 3, 4)], True, id="read-after-write"),
        pytest.param([call(Get("a"), NOT_FOUND, 3, 4)], False, id="write-forgotten"),
        pytest.param([call(Get("a"), NOT_FOUND, 1, 4)], True, id="read-beside-write"),
        pytest.param(
            [
                call(Rename("a", "two"), (AS_TWO,), 3, 9),
                call(Get("a"), (AS_TWO,), 4, 5),
                call(Get("a"), (A,), 6, 7),
            ],
            False,
            id="seen-and-unseen",
        ),
        pytest.param(
            [
                call(Rename("a", "two"), (AS_TWO,), 3, 9),
                call(Get("a"), (A,), 4, 5),
                call(Get("a"), (AS_TWO,), 6, 7),
            ],
            True,
            id="unseen-and-seen",
        ),
        pytest.param(
            [
                call(Rename("a", "two"), (AS_TWO,), 3, 9),
                call(Rename("a", "one"), (A,), 4, 10),
                call(GetLatest("web"), (A,), 11, 12),
            ],
            True,
            id="what-changes-nothing-now-undoes-another-later",
        ),
        pytest.param([call(Create("b", "one", "web"), ALREADY_EXISTS, 3, 4)], True, id="name-taken"),
        pytest.param([call(Create("b", "one", "web"), (B,), 3, 4)], False, id="name-given-twice"),
        pytest.param(
            [call(Delete("a"), None, 3), call(Get("a"), (A,), 4, 5), call(ListAll(), (), 6, 7)],
            True,
            id="cut-off-and-happened-late",
        ),
        pytest.param(
            [call(Delete("a"), None, 3), call(Get("a"), (A,), 4, 5)], True, id="cut-off-and-never-happened"
        ),
        pytest.param(
            [call(Delete("a"), None, 8), call(Get("a"), NOT_FOUND, 4, 5)],
            False,
            id="happened-before-it-was-asked",
        ),
        pytest.param(
            [call(Delete("a"), None, 3), call(ListAll(), (), 4, 5), call(Get("a"), (A,), 6, 7)],
            False,
            id="happened-and-undone",
        ),
        pytest.param(
            [call(Create("b", "", "web"), (B,), 3, 4), call(GetLatest("web"), (A,), 5, 6)],
            False,
            id="older-of-a-family",
        ),
        pytest.param(
            [call(Rename("a", "three"), (AS_THREE,), 3, 4), call(ListNamed("one"), (A,), 5, 6)],
            False,
            id="listed-by-an-old-name",
        ),
    ],
)
def test_the_search_knows_right_from_wrong(calls: list[Call], is_right: bool) -> None:
    assert (unexplained([CREATED, *calls]) is None) is is_right


writes: st.SearchStrategy[Asked] = st.sampled_from(
    [
        Create("a", "one", "web"),
        Create("b", "one", "web"),
        Rename("a", "two"),
        Rename("a", "one"),
        Delete("a"),
    ]
)
reads: st.SearchStrategy[Asked] = st.sampled_from([Get("a"), ListAll(), ListNamed("one"), GetLatest("web")])


@st.composite
def histories(draw: st.DrawFn) -> list[Call]:
    """A few calls at random times, answered as one order has it, or otherwise."""
    asked = draw(st.lists(writes | reads, min_size=1, max_size=5))
    state: State = ()
    calls = []
    for one in draw(st.permutations(asked)):
        state, answer = step(state, one)
        answer = draw(st.sampled_from((answer, answer, answer, NOT_FOUND, (A,), ())))
        begin, end = sorted((draw(st.integers(0, 9)), draw(st.integers(10, 14)) - draw(st.integers(0, 9))))
        calls.append(call(one, answer, begin, end) if draw(st.integers(0, 4)) else call(one, None, begin))
    return calls


@given(histories())
@settings(max_examples=500, deadline=None)
def test_the_search_finds_what_trying_every_order_finds(calls: list[Call]) -> None:
    known = [one for one in calls if one.returned < NEVER]
    cut_off = [one for one in calls if one.returned == NEVER]
    orders = (
        order
        for count in range(len(cut_off) + 1)
        for happened in itertools.combinations(cut_off, count)
        for order in itertools.permutations([*known, *happened])
    )
    assert (unexplained(calls) is None) is any(map(explains, orders))


def explains(order: Sequence[Call]) -> bool:
    state: State = ()
    for number, one in enumerate(order):
        if any(later.returned < one.invoked for later in order[number + 1 :]):
            return False
        state, answer = step(state, one.asked)
        if one.returned < NEVER and answer != one.answer:
            return False
    return True
