"""Page tokens: where a list goes on, as of which position, and of which question.

A token holds no secret and grants nothing: it stands beside a request that is checked on its own. Its
checksum refuses tokens cut or changed on their way, its question those sent with another request.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from projections.errors import QuestionInvalid

QUESTION_BYTES = 8
LAST_ID_CHARACTERS_MAX = 50
# question, position, checksum and the longest id make 72 bytes, which base64 writes as 96 characters.
TOKEN_CHARACTERS_MAX = 96

_POSITION_BYTES = 8
_POSITION_MAX = 2**63 - 1
_CHECKSUM_BYTES = 6
_ID_OFFSET = QUESTION_BYTES + _POSITION_BYTES + _CHECKSUM_BYTES
# The layout's version is hashed, not sent: a token of another layout fails its checksum.
_LAYOUT = b"imageledger page 1\n"

# The reasons that decode_page gives; who reads the page may find others, a position beyond its log.
MALFORMED = "it is not as it was handed out, but cut or changed"
OTHER_QUESTION = "it is of a list with another method, folder, filter, order or as-of"


@dataclass(frozen=True, slots=True)
class Page:
    """A list's place to go on: answered as of `position`, from behind the resource `last_id`."""

    position: int
    last_id: str


class PageTokenInvalid(QuestionInvalid):
    """A token that cannot be used here: `reason` is MALFORMED, OTHER_QUESTION or a reader's own."""

    def __init__(self, reason: str) -> None:
        remedy = "send it unchanged with the request it came from, or start without one"
        super().__init__(field="page_token", message=f"the page token cannot be used: {reason}; {remedy}")
        self.reason = reason


def question(*parts: str | int) -> bytes:
    """Hash of all that makes two lists the same one: method, folder, filter, order, as-of; not page_size.

    8 bytes. Each part goes in with its type and length, so ("a", "bc") and ("ab", "c") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, int):
            digest.update(b"i%d:" % part)
        else:
            body = part.encode("utf-8", "surrogatepass")
            digest.update(b"s%d:" % len(body) + body)
    return digest.digest()[:QUESTION_BYTES]


def encode_page(page: Page, question: bytes) -> str:
    """The token for a page of a question: URL-safe base64 without padding, at most 96 characters."""
    if len(question) != QUESTION_BYTES:
        raise AssertionError(f"a question has {QUESTION_BYTES} bytes, not {len(question)}")
    if not _is_page(page):
        raise AssertionError(f"no token can hold {page}")
    place = page.position.to_bytes(_POSITION_BYTES, "big")
    last_id = page.last_id.encode("ascii")
    checksum = _checksum(question, place, last_id)
    return _to_text(question + place + checksum + last_id)


def decode_page(token: str, question: bytes) -> Page:
    """The page that a token of this question names. Inverse of encode_page.

    Exactly one text is the token of a page: spare base64 bits that are not zero are refused as well.
    Raises PageTokenInvalid.
    """
    raw = _to_bytes(token)
    asked, place = raw[:QUESTION_BYTES], raw[QUESTION_BYTES:][:_POSITION_BYTES]
    checksum, last_id = raw[_ID_OFFSET - _CHECKSUM_BYTES : _ID_OFFSET], raw[_ID_OFFSET:]
    if checksum != _checksum(asked, place, last_id):
        raise PageTokenInvalid(MALFORMED)
    # Whoever computes the checksum can still write an id or a position that we never would.
    page = Page(int.from_bytes(place, "big"), last_id.decode("latin-1"))
    if not _is_page(page):
        raise PageTokenInvalid(MALFORMED)
    if asked != question:
        raise PageTokenInvalid(OTHER_QUESTION)
    return page


def _is_page(page: Page) -> bool:
    ascii_id = page.last_id.isascii() and page.last_id.isprintable()
    return (
        0 <= page.position <= _POSITION_MAX and 1 <= len(page.last_id) <= LAST_ID_CHARACTERS_MAX and ascii_id
    )


def _checksum(question: bytes, place: bytes, last_id: bytes) -> bytes:
    return hashlib.sha256(_LAYOUT + question + place + last_id).digest()[:_CHECKSUM_BYTES]


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _to_bytes(token: str) -> bytes:
    if len(token) > TOKEN_CHARACTERS_MAX or not token.isascii():
        raise PageTokenInvalid(MALFORMED)
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except binascii.Error:
        raise PageTokenInvalid(MALFORMED) from None
    # The decoder skips characters it does not know and spare bits; writing it again shows both.
    if _to_text(raw) != token:
        raise PageTokenInvalid(MALFORMED)
    return raw
