from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.errors import KeyFileRefused, KeyMalformed
from eventstore.keys import (
    Verifier,
    create_key_file,
    decode_base64,
    format_private_key,
    format_vkey,
    generate_key,
    load_key_file,
    load_vkey_file,
    parse_private_key,
    parse_vkey,
)
from tests.unit.eventstore.traced import index_of, needs_strace, system_calls

# Published in the documentation of Go's golang.org/x/mod/sumdb/note.
GO_PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"

NAME = "imageledger-000102030405060708090a0b0c0d0e0f"
SIGNER = generate_key(NAME, bytes(range(32)))
# Written down once: whoever keeps such a file can always use it.
PRIVATE = f"PRIVATE+KEY+{NAME}+d16d419c+AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
PUBLIC = f"{NAME}+d16d419c+AQOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"


def test_keys_are_written_as_go_writes_them() -> None:
    signer = parse_private_key(GO_PRIVATE)
    assert signer.name == "PeterNeumann"
    assert signer.verifier.key_id.hex() == "c74f20a3"
    assert format_vkey(signer.verifier) == GO_PUBLIC
    assert format_private_key(signer) == GO_PRIVATE
    assert parse_vkey(GO_PUBLIC) == signer.verifier


def test_a_key_is_its_name_and_seed() -> None:
    assert format_private_key(SIGNER) == PRIVATE
    assert format_vkey(SIGNER.verifier) == PUBLIC
    assert SIGNER.verifier.key == f"{NAME}+d16d419c"


@given(st.binary(min_size=32, max_size=32))
def test_every_key_comes_back(seed: bytes) -> None:
    signer = generate_key(NAME, seed)
    again = parse_private_key(format_private_key(signer))
    assert again.verifier == signer.verifier == parse_vkey(format_vkey(signer.verifier))
    assert signer.verifier.is_signature(again.private_key.sign(b"text"), b"text")


def test_nothing_printed_shows_the_secret() -> None:
    secret = bytes(range(32))
    for shown in (repr(SIGNER), str(SIGNER)):
        assert secret.hex() not in shown
        assert "AAECAwQF" not in shown
        assert repr(secret) not in shown


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33), bytes(64)])
def test_a_seed_has_32_bytes(seed: bytes) -> None:
    with pytest.raises(ValueError, match=f"not of {len(seed)}"):
        generate_key(NAME, seed)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b", "a\u2003b", "a\tb", "\x1f", "a\x00"])
def test_what_cannot_name_a_key(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a key"):
        generate_key(name, bytes(32))


BROKEN = [
    pytest.param("", id="empty"),
    pytest.param("name", id="name-alone"),
    pytest.param("name+d16d419c", id="no-key"),
    pytest.param(PUBLIC.replace("d16d419c", "d16d419d"), id="another-id"),
    pytest.param(PUBLIC.replace("d16d419c", "D16D419C"), id="upper-case-id"),
    pytest.param(PUBLIC.replace("d16d419c", "d16d419"), id="short-id"),
    pytest.param(PUBLIC.replace("imageledger", "imageledge"), id="another-name"),
    pytest.param(PUBLIC.replace("imageledger", "image ledger"), id="space-in-name"),
    pytest.param(PUBLIC.replace("AQOh", "AQOi"), id="another-key"),
    pytest.param(PUBLIC.replace("+AQOh", "+AgOh"), id="another-algorithm"),
    pytest.param(PUBLIC[:-4], id="short-key"),
    pytest.param(PUBLIC + "AAAA", id="long-key"),
    pytest.param(PUBLIC[:-1] + "5", id="stray-bits"),
    pytest.param(PUBLIC[:-1] + "=", id="padding"),
    pytest.param(PUBLIC.replace("AQOh", "AQ\nOh"), id="line-break"),
    pytest.param(PUBLIC + "\n", id="line-end"),
    pytest.param(PUBLIC + "\u00e9", id="not-ascii"),
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(KeyMalformed):
        parse_vkey(text)


@pytest.mark.parametrize(
    "text",
    [
        PUBLIC,
        PRIVATE.removeprefix("PRIVATE+KEY+"),
        PRIVATE.replace("d16d419c", "d16d419d"),
        PRIVATE.replace("AQABAgME", "AQABAgMF"),
        PRIVATE[:-4],
        PRIVATE + "\n",
        PRIVATE.replace("+AQAB", "+BAAB"),
        PRIVATE[:-1] + "=",
        "PRIVATE+KEY+",
    ],
)
def test_what_is_no_private_key(text: str) -> None:
    with pytest.raises(KeyMalformed) as refused:
        parse_private_key(text)
    assert "AgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f" not in str(refused.value)


IDENTITY = (1).to_bytes(32, "little")
FIELD = 2**255 - 19


@pytest.mark.parametrize("y", [0, 1, FIELD - 1, FIELD, FIELD + 1])
@pytest.mark.parametrize("sign", [0, 2**255])
def test_a_key_under_which_anybody_can_sign_is_refused(y: int, sign: int) -> None:
    with pytest.raises(KeyMalformed, match="small order"):
        parse_vkey(format_vkey(Verifier(NAME, (y + sign).to_bytes(32, "little"))))


def test_why_a_key_of_small_order_is_refused() -> None:
    """Made without any secret, and the library takes it for a signature of every text."""
    forged = IDENTITY + bytes(32)
    assert Verifier(NAME, IDENTITY).is_signature(forged, b"anything at all")


def test_the_points_of_order_eight_are_those_of_the_curve() -> None:
    """-x² + y² = 1 + d·x²·y²; doubling a point twice gives y = -1 if its order is eight."""
    y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    d = -121665 * pow(121666, -1, FIELD) % FIELD
    for each in (y, FIELD - y):
        x_squared = (each * each - 1) * pow(d * each * each + 1, -1, FIELD) % FIELD
        # The y of the doubled point is (y² + x²)/(1 - d·x²·y²).
        doubled = (each * each + x_squared) * pow(1 - d * x_squared * each * each, -1, FIELD) % FIELD
        assert doubled == 0
        with pytest.raises(KeyMalformed, match="small order"):
            parse_vkey(format_vkey(Verifier(NAME, each.to_bytes(32, "little"))))


@pytest.mark.parametrize("text", ["A", "AA", "AA=", "AA==AA==", "A A=", "AB==", "AA==\n", "-_==", "é==="])
def test_base64_has_one_form(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode_base64(text)


class TestPrivateKeyFile:
    def test_what_is_made_is_what_is_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.key"
        create_key_file(path, SIGNER)
        assert path.read_text() == PRIVATE + "\n"
        assert load_key_file(path).verifier == SIGNER.verifier
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
    def test_nobody_else_may_read_it(self, tmp_path: Path, umask: int) -> None:
        path = tmp_path / "checkpoint.key"
        before = os.umask(umask)
        try:
            create_key_file(path, SIGNER)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) & 0o177 == 0

    def test_it_is_never_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.key"
        create_key_file(path, SIGNER)
        with pytest.raises(KeyFileRefused, match="never overwritten"):
            create_key_file(path, generate_key(NAME, bytes(32)))
        assert path.read_text() == PRIVATE + "\n"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_link_that_leads_nowhere_is_not_followed(self, tmp_path: Path) -> None:
        path, elsewhere = tmp_path / "checkpoint.key", tmp_path / "elsewhere"
        path.symlink_to(elsewhere)
        with pytest.raises(KeyFileRefused, match="never overwritten"):
            create_key_file(path, SIGNER)
        assert not elsewhere.exists()

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(KeyFileRefused, match=r"cannot be written: No such file.*; look at"):
            create_key_file(tmp_path / "absent" / "checkpoint.key", SIGNER)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601, 0o666])
    def test_one_that_others_may_have_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "checkpoint.key"
        create_key_file(path, SIGNER)
        path.chmod(mode)
        with pytest.raises(KeyFileRefused, match=f"mode {mode:04o}.*; chmod 600 {path}"):
            load_key_file(path)
        path.chmod(0o400)
        assert load_key_file(path).verifier == SIGNER.verifier

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            pytest.param(b"", "does not begin with PRIVATE", id="empty"),
            pytest.param(PRIVATE[:40].encode(), "must be a name", id="cut"),
            pytest.param(PUBLIC.encode(), "does not begin with PRIVATE", id="public"),
            pytest.param(b"\xff\xfe", "is not UTF-8 text", id="binary"),
            pytest.param(b"A" * 100_000, "is too long", id="long"),
            pytest.param(f"{PRIVATE}\n{PRIVATE}\n".encode(), "not base64", id="twice"),
        ],
    )
    def test_what_holds_no_key_is_refused(self, tmp_path: Path, content: bytes, reason: str) -> None:
        path = tmp_path / "checkpoint.key"
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(KeyFileRefused, match=reason) as refused:
            load_key_file(path)
        assert str(path) in str(refused.value)
        assert "AgMEBQYHCAkK" not in str(refused.value)

    def test_an_absent_one_and_a_folder_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(KeyFileRefused, match="No such file"):
            load_key_file(tmp_path / "absent")
        with pytest.raises(KeyFileRefused, match="Is a directory"):
            load_key_file(tmp_path)

    @needs_strace
    def test_it_is_durable_and_private_before_it_has_its_name(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        code = (
            "import sys, pathlib; from eventstore.keys import *; "
            f"create_key_file(pathlib.Path(sys.argv[1]), generate_key({NAME!r}, bytes(range(32))))"
        )
        calls = system_calls(code, folder / "checkpoint.key", output=tmp_path / "calls")
        made = index_of(calls, "openat(", ".checkpoint.key.", "O_CREAT|O_EXCL", "0600")
        written = index_of(calls, "write(", "PRIVATE+KEY+")
        synced = index_of(calls, "fsync(", ".checkpoint.key.")
        named = index_of(calls, "link", "/checkpoint.key")
        folder_synced = index_of(calls, "fsync(", f"<{folder}>")
        assert made < written < synced < named < folder_synced
        assert not [call for call in calls if call.startswith(("chmod", "fchmod", "rename"))]


class TestPublicKeyFile:
    def test_one_key_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.vkey"
        path.write_text(f"# the log's keys\n\n{PUBLIC}\r\n  {GO_PUBLIC}\n")
        assert load_vkey_file(path) == (SIGNER.verifier, parse_vkey(GO_PUBLIC))

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "holds no public key"),
            ("#\n", "holds no public key"),
            (f"{PUBLIC}\nx\n", "no public key: it"),
        ],
    )
    def test_what_holds_none_is_refused(self, tmp_path: Path, text: str, reason: str) -> None:
        path = tmp_path / "checkpoint.vkey"
        path.write_text(text)
        with pytest.raises(KeyFileRefused, match=f"{reason}.*; give what `log public-key` printed"):
            load_vkey_file(path)

    def test_a_private_key_given_for_a_public_one_is_not_shown(self, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.vkey"
        path.write_text(PRIVATE)
        with pytest.raises(KeyFileRefused) as refused:
            load_vkey_file(path)
        assert "AgMEBQYHCAkK" not in str(refused.value)
