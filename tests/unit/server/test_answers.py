"""Kept list answers: given only while nothing else can have been seen."""

from __future__ import annotations

import pytest

from server.answers import ANSWER_BYTES_MAX, ENTRY_BYTES, Answers, Kept

ONE = ("one", 100, "", "")
ONE_BY_NAME = ("one", 100, "", "name")
TWO = ("two", 100, "", "")
ANSWER = Kept(b"answer", 5)


@pytest.fixture
def answers() -> Answers:
    made = Answers(bytes_max=100 + 3 * ENTRY_BYTES)
    for key in (ONE, ONE_BY_NAME, TWO):
        made.keep(key, ANSWER, begun=made.begin())
    return made


def test_an_unchanged_folder_is_answered_again(answers: Answers) -> None:
    assert answers.find(ONE) == (b"answer", 5)
    assert answers.find(("three", 100, "", "")) is None


def test_a_change_ends_every_answer_of_its_folder_before_it_is_visible(answers: Answers) -> None:
    answers.changing({"one"})
    assert answers.find(ONE) is None
    assert answers.find(ONE_BY_NAME) is None


def test_while_a_change_becomes_visible_no_answer_names_the_position_before_it(answers: Answers) -> None:
    past = ("one", "Get", 3)
    answers.keep(past, Kept(b"then", 3, is_past=True), begun=answers.begin())
    answers.changing({"one"})
    assert answers.find(TWO) is None
    assert answers.find(past) == (b"then", 3)
    answers.changed(9)
    assert answers.find(TWO) == (b"answer", 9)


def test_an_answer_of_an_unchanged_folder_is_right_as_of_the_newest_position(answers: Answers) -> None:
    answers.changing({"one"})
    answers.changed(9)
    assert answers.find(TWO) == (b"answer", 9)


def test_what_was_begun_before_a_change_is_not_kept(answers: Answers) -> None:
    begun = answers.begin()
    answers.changing({"one"})
    answers.changed(9)
    answers.keep(ONE, ANSWER, begun=begun)
    assert answers.find(ONE) is None


def test_what_was_begun_while_a_change_became_visible_is_not_kept(answers: Answers) -> None:
    answers.changing({"one"})
    begun = answers.begin()
    answers.keep(ONE, ANSWER, begun=begun)
    assert answers.find(ONE) is None
    answers.changed(9)
    answers.keep(ONE, Kept(b"new", 9), begun=answers.begin())
    assert answers.find(ONE) == (b"new", 9)


def test_what_was_read_while_a_change_became_visible_is_not_kept_after_it(answers: Answers) -> None:
    answers.changing({"one"})
    begun = answers.begin()
    answers.changed(9)
    answers.keep(ONE, ANSWER, begun=begun)
    assert answers.find(ONE) is None


def test_after_a_failure_nothing_is_given(answers: Answers) -> None:
    answers.forget_all()
    assert answers.find(TWO) is None
    answers.keep(TWO, ANSWER, begun=answers.begin())
    assert answers.find(TWO) is None
    answers.changed(9)
    answers.keep(TWO, ANSWER, begun=answers.begin())
    assert answers.find(TWO) is not None


def test_the_least_recently_asked_goes_first(answers: Answers) -> None:
    answers.find(ONE)
    answers.keep(("three", 1, "", ""), Kept(b"x" * 90, 5), begun=answers.begin())
    assert answers.find(ONE_BY_NAME) is None
    assert answers.find(TWO) is None
    assert answers.find(ONE) == (b"answer", 5)


def test_a_huge_answer_is_not_kept() -> None:
    answers = Answers()
    answers.keep(ONE, Kept(b"x" * (ANSWER_BYTES_MAX + 1), 5), begun=answers.begin())
    assert answers.find(ONE) is None


def test_a_change_elsewhere_leaves_an_answer_about_the_past_as_it_was(answers: Answers) -> None:
    past = ("one", "Get", 3)
    answers.keep(past, Kept(b"then", 3, is_past=True), begun=answers.begin())
    answers.changing({"one"})
    answers.changed(9)
    assert answers.find(past) == (b"then", 3)
    answers.forget_all()
    assert answers.find(past) is None


def test_the_room_for_answers_about_the_past_is_given_back() -> None:
    answers = Answers(bytes_max=10 * ENTRY_BYTES)
    for position in range(100):
        answers.keep(("one", "Get", position), Kept(b"", position, is_past=True), begun=answers.begin())
    assert sum(answers.find(("one", "Get", position)) is not None for position in range(100)) == 10
