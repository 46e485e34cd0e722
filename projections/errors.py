"""What is wrong with a question: the errors of the texts that callers write in it."""

from typing import Literal

QuestionField = Literal["filter", "order_by", "page_token", "x-as-of"]


class QuestionInvalid(Exception):
    """A question that cannot be understood; the caller must change `field` and ask again.

    The message names what was found, the rule and what is allowed, and never repeats more than a
    short piece of what the caller sent.
    """

    def __init__(self, *, field: QuestionField, message: str) -> None:
        super().__init__(message)
        self.field: QuestionField = field
        self.message = message


def shown(text: str, *, characters_max: int = 40) -> str:
    """A quoted, printable piece of a caller's text for a message, cut where it is long."""
    return repr(text if len(text) <= characters_max else text[:characters_max] + "...")
