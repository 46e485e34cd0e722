"""Who a token names, what ends it, and that its text is nowhere."""

from __future__ import annotations

import base64
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import identity
from server.identity import (
    KEY_BYTES,
    LIFETIME_NS,
    PREFIX,
    PRUNED_FROM,
    REVOCATION_KEPT_NS,
    RevocationsFull,
    TokenRefused,
    Tokens,
    foreign_subject,
    load_key,
)

KEY = bytes(range(KEY_BYTES))


class Clock:
    now = 1_767_225_600 * 10**9

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(tmp_path: Path, clock: Clock) -> Tokens:
    return Tokens(KEY, revoked_path=tmp_path / "tokens.revoked", clock=clock)


def restarted(tmp_path: Path, clock: Clock) -> Tokens:
    return Tokens(KEY, revoked_path=tmp_path / "tokens.revoked", clock=clock)


def jwt(claims: object, header: object = None) -> str:
    parts = [{"alg": "PS256"} if header is None else header, claims]
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*texts, "c2lnbmF0dXJl"])


# Tokens of ours.


@pytest.mark.parametrize("subject", ["ann", "dev-0123456789abcdef", "a" * 50, "with space"])
def test_a_token_names_the_subject_it_was_issued_for(tokens: Tokens, subject: str) -> None:
    assert tokens.subject(tokens.issue(subject).token) == subject


def test_a_token_names_its_subject_after_a_restart(tokens: Tokens, tmp_path: Path, clock: Clock) -> None:
    token = tokens.issue("ann").token
    assert restarted(tmp_path, clock).subject(token) == "ann"


def test_a_token_ends_after_its_lifetime(tokens: Tokens, clock: Clock) -> None:
    issued = tokens.issue("ann")
    assert issued.expires_at == clock.now + LIFETIME_NS
    clock.now += LIFETIME_NS - 1
    assert tokens.subject(issued.token) == "ann"
    clock.now += 1
    with pytest.raises(TokenRefused, match=r"^The token has expired$"):
        tokens.subject(issued.token)


def test_two_tokens_of_one_subject_differ(tokens: Tokens) -> None:
    assert tokens.issue("ann").token != tokens.issue("ann").token


def test_a_revoked_token_is_refused_also_after_a_restart_and_others_are_not(
    tokens: Tokens, tmp_path: Path, clock: Clock
) -> None:
    kept, first, second = (tokens.issue("ann").token for _ in range(3))
    assert tokens.revoke(first) == "ann"
    assert tokens.revoke(second) == "ann"
    for some in (tokens, restarted(tmp_path, clock)):
        for token in (first, second):
            with pytest.raises(TokenRefused, match=r"^The token is invalid$"):
                some.subject(token)
        assert some.subject(kept) == "ann"


def test_a_revoked_token_cannot_be_revoked_again(tokens: Tokens) -> None:
    token = tokens.issue("ann").token
    tokens.revoke(token)
    with pytest.raises(TokenRefused):
        tokens.revoke(token)


def test_another_spelling_of_a_revoked_token_is_refused(tokens: Tokens) -> None:
    token = tokens.issue("ann").token
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    tokens.revoke(token)
    payload, signature = token.removeprefix(PREFIX).split(".")
    spellings = {
        token + "=",
        token.replace("-", "+").replace("_", "/"),
        *(f"{PREFIX}{payload[:-1]}{last}.{signature}" for last in alphabet),
        *(f"{PREFIX}{payload}.{signature[:-1]}{last}" for last in alphabet),
    }
    for spelling in spellings:
        with pytest.raises(TokenRefused):
            tokens.subject(spelling)


def test_a_torn_last_line_of_revocations_does_not_swallow_the_next(
    tokens: Tokens, tmp_path: Path, clock: Clock
) -> None:
    torn, whole = tokens.issue("ann").token, tokens.issue("ann").token
    tokens.revoke(torn)
    path = tmp_path / "tokens.revoked"
    path.write_bytes(path.read_bytes()[:-30])
    again = restarted(tmp_path, clock)
    again.revoke(whole)
    with pytest.raises(TokenRefused):
        restarted(tmp_path, clock).subject(whole)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t[:-1], id="cut"),
        pytest.param(lambda t: t + "A", id="longer"),
        pytest.param(lambda t: t.replace(".", "", 1), id="no-prefix-dot"),
        pytest.param(lambda t: t[: t.rindex(".")], id="no-signature"),
        pytest.param(lambda t: t[: t.rindex(".") + 1], id="empty-signature"),
        pytest.param(lambda t: PREFIX, id="prefix-alone"),
        pytest.param(lambda t: PREFIX + ".", id="empty-parts"),
        pytest.param(lambda t: f"{PREFIX}é.é", id="no-base64"),
        pytest.param(lambda t: f"{t}.{t}", id="too-many-parts"),
    ],
)
def test_a_changed_token_of_ours_never_names_its_subject(tokens: Tokens, change: object) -> None:
    token = tokens.issue("ann").token
    changed = change(token)  # type: ignore[operator]
    if changed.startswith(PREFIX):
        with pytest.raises(TokenRefused, match=r"^The token is invalid$"):
            tokens.subject(changed)
    else:
        assert tokens.subject(changed).startswith("dev-")


def test_every_changed_bit_is_refused(tokens: Tokens) -> None:
    token = tokens.issue("ann").token
    body = token.removeprefix(PREFIX)
    for index, character in enumerate(body):
        other = "A" if character != "A" else "B"
        with pytest.raises(TokenRefused):
            tokens.subject(f"{PREFIX}{body[:index]}{other}{body[index + 1 :]}")


def test_a_token_of_another_directory_is_refused(tokens: Tokens, tmp_path: Path, clock: Clock) -> None:
    other = Tokens(bytes(KEY_BYTES), revoked_path=tmp_path / "other", clock=clock)
    with pytest.raises(TokenRefused):
        tokens.subject(other.issue("ann").token)


# What is kept of revocations.


def lines(tmp_path: Path) -> list[str]:
    return [line for line in (tmp_path / "tokens.revoked").read_text().splitlines() if line]


def test_a_revocation_is_kept_until_a_day_after_its_token(
    tokens: Tokens, tmp_path: Path, clock: Clock
) -> None:
    """A clock that is set back by less than that day makes no revoked token good again."""
    token = tokens.issue("ann").token
    tokens.revoke(token)
    clock.now += LIFETIME_NS + REVOCATION_KEPT_NS - 1
    again = restarted(tmp_path, clock)
    again.prune()
    assert len(lines(tmp_path)) == 1
    clock.now -= REVOCATION_KEPT_NS
    with pytest.raises(TokenRefused, match=r"^The token is invalid$"):
        again.subject(token)
    clock.now += REVOCATION_KEPT_NS + 1
    again.prune()
    assert lines(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.revoked"]


def test_pruning_keeps_what_is_revoked(tokens: Tokens, tmp_path: Path, clock: Clock) -> None:
    tokens.revoke(tokens.issue("ann").token)
    clock.now += LIFETIME_NS + REVOCATION_KEPT_NS
    young = tokens.issue("bob").token
    tokens.revoke(young)
    tokens.prune()
    assert len(lines(tmp_path)) == 1
    for some in (tokens, restarted(tmp_path, clock)):
        with pytest.raises(TokenRefused, match=r"^The token is invalid$"):
            some.subject(young)


def test_revocations_are_pruned_as_they_grow(
    tokens: Tokens, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # A thousand of them take seconds.
    for _ in range(PRUNED_FROM):
        tokens.revoke(tokens.issue("ann").token)
    clock.now += LIFETIME_NS + REVOCATION_KEPT_NS
    tokens.revoke(tokens.issue("bob").token)
    assert len(lines(tmp_path)) == 1


def test_revocations_have_a_limit(
    tokens: Tokens, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "REVOCATIONS_MAX", 3)
    for _ in range(3):
        tokens.revoke(tokens.issue("ann").token)
    token = tokens.issue("bob").token
    with pytest.raises(RevocationsFull, match="has exceeded: 3"):
        tokens.revoke(token)
    assert tokens.subject(token) == "bob"
    clock.now += LIFETIME_NS + REVOCATION_KEPT_NS
    tokens.prune()
    tokens.revoke(tokens.issue("bob").token)


def test_revoking_from_many_threads_loses_none(tokens: Tokens, tmp_path: Path, clock: Clock) -> None:
    issued = [tokens.issue("ann").token for _ in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(tokens.revoke, issued))
    again = restarted(tmp_path, clock)
    for token in issued:
        with pytest.raises(TokenRefused):
            again.subject(token)


def test_no_file_holds_a_tokens_text(tokens: Tokens, tmp_path: Path) -> None:
    token = tokens.issue("ann").token
    tokens.revoke(token)
    kept = (tmp_path / "tokens.revoked").read_text()
    for part in token.removeprefix(PREFIX).split("."):
        assert part not in kept


# Texts of others.


@pytest.mark.parametrize(
    ("text", "then"),
    [
        pytest.param(jwt({"iss": "ajeservice"}), "ajeservice", id="jwt"),
        pytest.param(jwt({"iss": "a"}), "a", id="jwt-of-1"),
        pytest.param(jwt({"iss": "a" * 50}), "a" * 50, id="jwt-of-50"),
        pytest.param(jwt({"iss": "with space~"}), "with space~", id="jwt-printable"),
        pytest.param(jwt({"iss": "a" * 51}), None, id="jwt-of-51"),
        pytest.param(jwt({"iss": ""}), None, id="jwt-empty"),
        pytest.param(jwt({"iss": "é"}), None, id="jwt-not-ascii"),
        pytest.param(jwt({"iss": "a\n"}), None, id="jwt-line-end"),
        pytest.param(jwt({"iss": 7}), None, id="jwt-number"),
        pytest.param(jwt({}), None, id="jwt-without"),
        pytest.param(jwt(["iss"]), None, id="jwt-list"),
        pytest.param(jwt({"iss": "ann"}, header={}), None, id="jwt-without-alg"),
        pytest.param(jwt({"iss": "ann"}, header=[]), None, id="jwt-list-header"),
        pytest.param("a.b.c", None, id="three-parts"),
        pytest.param("local", None, id="word"),
        pytest.param("", None, id="empty"),
    ],
)
def test_a_foreign_text_names_its_issuer_or_its_hash(text: str, then: str | None) -> None:
    subject = foreign_subject(text)
    if then is not None:
        assert subject == then
    else:
        assert subject.startswith("dev-")
        assert len(subject) == 20


def test_the_hash_is_as_the_design_says() -> None:
    assert foreign_subject("local") == "dev-25bf8e1a2393f110"


@given(st.text(max_size=200))
def test_any_text_has_a_short_printable_subject_and_always_the_same(text: str) -> None:
    subject = foreign_subject(text)
    assert 1 <= len(subject) <= 50
    assert subject.isascii()
    assert subject.isprintable()
    assert foreign_subject(text) == subject


def test_a_bearer_and_an_exchanged_text_name_the_same_subject(tokens: Tokens) -> None:
    for text in ("local", jwt({"iss": "ann"})):
        assert tokens.subject(text) == foreign_subject(text)
        assert tokens.subject(text) == tokens.subject(tokens.issue(foreign_subject(text)).token)


# The key.


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    key = load_key(tmp_path)
    assert len(key) == KEY_BYTES
    assert load_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "token.key").stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["token.key"]


def test_a_draft_that_a_crash_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "token.new").write_bytes(b"half")
    assert len(load_key(tmp_path)) == KEY_BYTES


@pytest.mark.parametrize("size_bytes", [0, 31, 33])
def test_a_damaged_key_is_refused_with_the_remedy(tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "token.key").write_bytes(bytes(size_bytes))
    with pytest.raises(ValueError, match=f"holds {size_bytes} bytes.*remove it to make a new one"):
        load_key(tmp_path)
