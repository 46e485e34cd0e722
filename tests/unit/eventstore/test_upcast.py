from __future__ import annotations

from collections.abc import Callable

import pytest

from eventstore.errors import SchemaTooNew
from eventstore.event import Data, Event
from eventstore.upcast import newest_schema, upcast


def rename(data: Data) -> Data:
    return {"words": data["text"]}


def split(data: Data) -> Data:
    return {"words": list(str(data["words"]).split())}


STEPS = {("Said", 1): rename, ("Said", 2): split}


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        pytest.param(1, {"text": "to be"}, id="two-steps"),
        pytest.param(2, {"words": "to be"}, id="one-step"),
        pytest.param(3, {"words": ["to", "be"]}, id="none"),
    ],
)
def test_data_is_lifted_to_the_newest_schema(
    make_event: Callable[..., Event], schema: int, data: Data
) -> None:
    lifted = upcast(make_event(7, schema=schema, data=data), STEPS)
    assert lifted == make_event(7, schema=3, data={"words": ["to", "be"]})


@pytest.mark.parametrize(("type", "schema", "supported"), [("Said", 4, 3), ("Other", 2, 1)])
def test_a_newer_schema_is_refused(
    make_event: Callable[..., Event], type: str, schema: int, supported: int
) -> None:
    with pytest.raises(SchemaTooNew) as refused:
        upcast(make_event(7, type=type, schema=schema), STEPS)
    assert refused.value.args == (type, schema, supported, 7)
    assert newest_schema(type, STEPS) == supported


def test_an_event_at_the_newest_schema_is_the_same_object(make_event: Callable[..., Event]) -> None:
    event = make_event(7)
    assert upcast(event, {}) is event
