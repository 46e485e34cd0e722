import base64
import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.errors import QuestionInvalid
from projections.pages import (
    MALFORMED,
    OTHER_QUESTION,
    Page,
    PageTokenInvalid,
    decode_page,
    encode_page,
    question,
)

LIST = question("ImageService/List", "b1gfolder", 'name = "web"', "id asc", "")
PAGE = Page(1234, "fd8kdq6d0p8sij7h5qe3")
LONGEST = Page(2**63 - 1, "i" * 50)
ALPHABET = string.ascii_letters + string.digits + "-_"

PAGES = st.builds(
    Page,
    st.integers(0, 2**63 - 1),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=50),
)
PARTS = st.lists(st.text() | st.integers(), max_size=5)


def reason_for(token: str, asked: bytes = LIST) -> str:
    with pytest.raises(PageTokenInvalid) as caught:
        decode_page(token, asked)
    assert caught.value.field == "page_token"
    return caught.value.reason


@given(PAGES, PARTS)
def test_round_trip(page: Page, parts: list[str | int]) -> None:
    token = encode_page(page, question(*parts))
    assert len(token) < 100
    assert set(token) <= set(ALPHABET)
    assert decode_page(token, question(*parts)) == page


@pytest.mark.parametrize("page", [PAGE, LONGEST, Page(0, "a"), Page(1, "ab")])
def test_every_changed_character_is_refused(page: Page) -> None:
    token = encode_page(page, LIST)
    for at, old in enumerate(token):
        for new in ALPHABET + "+/= \n\0é":
            if new != old:
                assert reason_for(token[:at] + new + token[at + 1 :]) == MALFORMED


@pytest.mark.parametrize("page", [PAGE, LONGEST, Page(0, "a"), Page(1, "ab")])
def test_every_cut_and_every_addition_is_refused(page: Page) -> None:
    token = encode_page(page, LIST)
    for at in range(len(token)):
        assert reason_for(token[:at]) == MALFORMED
        assert reason_for(token[at + 1 :]) == MALFORMED
        for extra in ("A", "=", "==", " ", "\n", "é"):
            assert reason_for(token[:at] + extra + token[at:]) == MALFORMED
    for extra in ("A", "=", "==", "\n", token):
        assert reason_for(token + extra) == MALFORMED


@given(PAGES, PARTS, PARTS)
def test_a_token_of_another_question_is_told_from_a_broken_one(
    page: Page, parts: list[str | int], others: list[str | int]
) -> None:
    token = encode_page(page, question(*parts))
    if parts == others:
        assert decode_page(token, question(*others)) == page
    else:
        assert reason_for(token, question(*others)) == OTHER_QUESTION


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("a", "bc"), ("ab", "c"), id="where-a-part-ends"),
        pytest.param(("a",), ("a", ""), id="an-empty-part"),
        pytest.param(("1",), (1,), id="text-or-number"),
        pytest.param(("a", "1:b"), ("as1:1:b",), id="text-that-looks-like-framing"),
        pytest.param((1, 23), (12, 3), id="where-a-number-ends"),
        pytest.param(("a", "b"), ("b", "a"), id="order"),
        pytest.param((), ("",), id="nothing-or-empty"),
    ],
)
def test_questions_differ(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert question(*one) != question(*other)


def test_golden_token() -> None:
    """Tokens outlive a restart and an upgrade; change the layout's version with the layout."""
    assert encode_page(PAGE, LIST) == GOLDEN
    assert decode_page(GOLDEN, LIST) == PAGE


GOLDEN = "YI-MQOcbUbIAAAAAAAAE0r2XeGiP_mZkOGtkcTZkMHA4c2lqN2g1cWUz"


@pytest.mark.parametrize(
    ("position", "last_id"),
    [
        pytest.param(2**63, b"fd8", id="position-beyond-int64"),
        pytest.param(1, b"", id="no-id"),
        pytest.param(1, b"fd\x00", id="control-character"),
        pytest.param(1, b"fd\xff", id="not-ascii"),
    ],
)
def test_forged_contents_are_refused(position: int, last_id: bytes) -> None:
    place = position.to_bytes(8, "big")
    checksum = hashlib.sha256(b"imageledger page 1\n" + LIST + place + last_id).digest()[:6]
    token = base64.urlsafe_b64encode(LIST + place + checksum + last_id).rstrip(b"=").decode()
    assert reason_for(token) == MALFORMED


@pytest.mark.parametrize(
    "page", [Page(-1, "a"), Page(2**63, "a"), Page(1, ""), Page(1, "i" * 51), Page(1, "é")]
)
def test_no_token_for_a_page_that_cannot_be(page: Page) -> None:
    with pytest.raises(AssertionError):
        encode_page(page, LIST)


def test_no_token_for_half_a_question() -> None:
    with pytest.raises(AssertionError):
        encode_page(PAGE, LIST[:7])


@given(
    st.text() | st.text(ALPHABET, max_size=120) | st.binary().map(lambda raw: base64.b64encode(raw).decode())
)
def test_any_text_is_refused_as_a_token(token: str) -> None:
    with pytest.raises(QuestionInvalid) as caught:
        decode_page(token, LIST)
    assert isinstance(caught.value, PageTokenInvalid)
