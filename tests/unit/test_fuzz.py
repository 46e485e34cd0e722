"""The parsers that have no generated input elsewhere. Found cases stay, as examples."""

from __future__ import annotations

import contextlib

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from projections.domain.image import UPDATABLE
from server.allowlist import AllowList, SourceRefused
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.http_source import _absolute
from server.validate import RequestInvalid, fields, parse
from tools.options import INT64_MAX, label, size
from tools.serve import duration, share

PATH = st.sampled_from(UPDATABLE) | st.text() | st.from_regex(r"[a-zA-Z_.*]{0,20}", fullmatch=True)


@given(st.lists(PATH, max_size=6))
@example(["labels.a"])
@example(["minDiskSize"])
@example(["*"])
@example([""])
@example(["name", "name"])
@example(["name\n"])
def test_a_mask_names_updatable_fields_or_is_refused(paths: list[str]) -> None:
    request = image_service_pb2.UpdateImageRequest(image_id="i", update_mask={"paths": paths})
    raw = request.SerializeToString()
    if set(paths) <= set(UPDATABLE):
        parsed = parse(image_service_pb2.UpdateImageRequest, raw)
        assert fields(parsed).get("update_mask", []) == sorted(set(paths))
        return
    with pytest.raises(RequestInvalid) as refused:
        parse(image_service_pb2.UpdateImageRequest, raw)
    assert all(violation.field.startswith("update_mask") for violation in refused.value.violations)
    assert len(str(refused.value)) < 8192


ALLOWED = AllowList.parse(["https://storage.example/images/"])
REFERENCE = st.text() | st.lists(
    st.sampled_from(
        [
            "/",
            "//",
            "..",
            ".",
            "%2e",
            "%2f",
            "\\",
            "@",
            ":",
            "?",
            "#",
            ";",
            "images",
            "x",
            "https:",
            "evil.example",
        ]
    )
).map("".join)


@given(REFERENCE)
@example("//evil.example/images/x")
@example("/images/../x")
@example("../x")
@example("/\\evil.example/images/x")
@example("https:evil.example/images/x")
@example("?x")
@example(":@evil.example/images/x")
def test_wherever_a_redirect_leads_is_below_the_prefix_or_refused(reference: str) -> None:
    base = ALLOWED.admit("https://storage.example/images/folder/disk")
    try:
        location = ALLOWED.admit(_absolute(base, reference))
    except SourceRefused:
        return
    assert (location.scheme, location.host, location.port) == ("https", "storage.example", 443)
    assert location.path.startswith("/images/") or location.path == "/images"
    assert ".." not in location.path.split("/")


NUMBER = st.text() | st.from_regex(r"\s?-?[0-9]{1,25}(\.[0-9]{1,3})?\s?(%|[a-zA-Z]{0,4})\s?", fullmatch=True)


@given(NUMBER)
@example("9223372036854775807")
@example("8388608T")
@example("9" * 400)
@example("1e3")
@example("nan%")
@example("inf")
@example("\u0665")
def test_any_text_is_a_size_a_time_and_a_share_or_refused(text: str) -> None:
    with contextlib.suppress(click.BadParameter):
        assert 0 <= size(text) <= INT64_MAX
    with contextlib.suppress(click.BadParameter):
        assert 0 <= duration(text) < float("inf")
    with contextlib.suppress(click.BadParameter):
        assert 0 <= share(text) < 1


@given(st.text())
@example("=")
@example("a=b=c")
def test_any_text_is_a_label_or_refused(text: str) -> None:
    try:
        key, value = label(text)
    except click.BadParameter:
        assert not text.partition("=")[0] or "=" not in text
    else:
        assert f"{key}={value}" == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15min", 900), ("2h", 7200), ("1.5s", 1.5), ("0", 0), ("1d", 86400), (" 3 m ", 180)],
)
def test_times(text: str, seconds: float) -> None:
    assert duration(text) == seconds
