"""Ids: their shape, and that time orders them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import ids

SHAPE = re.compile(r"[a-v0-9]{20}")
YEAR_3000_NS = 32_503_680_000 * 10**9
KINDS = [ids.IMAGE, ids.OPERATION, *ids.SOURCE.values()]


@given(st.sampled_from(KINDS), st.integers(0, YEAR_3000_NS), st.binary(min_size=5, max_size=5))
def test_an_id_has_20_characters_of_32(prefix: str, now: int, chance: bytes) -> None:
    made = ids.make(prefix, now_ns=now, random_bytes=chance)
    assert SHAPE.fullmatch(made)
    assert made.startswith(prefix)


@given(st.integers(0, YEAR_3000_NS), st.integers(0, YEAR_3000_NS), st.binary(min_size=5, max_size=5))
def test_a_later_millisecond_is_a_greater_id(one: int, other: int, chance: bytes) -> None:
    early, late = sorted((one // 1_000_000, other // 1_000_000))
    if early == late:
        return
    first = ids.make(ids.IMAGE, now_ns=early * 1_000_000, random_bytes=b"\xff" * 5)
    assert first < ids.make(ids.IMAGE, now_ns=late * 1_000_000, random_bytes=chance)


@given(st.binary(min_size=5, max_size=5), st.binary(min_size=5, max_size=5))
def test_other_chance_is_another_id(one: bytes, other: bytes) -> None:
    made = {ids.make(ids.IMAGE, now_ns=1, random_bytes=chance) for chance in (one, other)}
    assert len(made) == len({one, other})


def test_an_images_id_begins_as_clients_expect() -> None:
    made = ids.make(ids.IMAGE, now_ns=1_767_225_600_123_456_789, random_bytes=bytes(range(5)))
    assert made == "fd81jdr7f6bro000g4g4"[:3] + made[3:]
    assert len(set(KINDS)) == len(KINDS)


@pytest.mark.parametrize(("prefix", "chance"), [("fd", b"\0" * 5), ("fd8x", b"\0" * 5), ("fd8", b"\0" * 4)])
def test_what_gives_no_20_characters_is_refused(prefix: str, chance: bytes) -> None:
    with pytest.raises(ValueError, match="an id needs"):
        ids.make(prefix, now_ns=0, random_bytes=chance)
