"""What people and scripts read: JSON on stdout, aligned text, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

# Imported for the types that an Operation may carry: they are found in the pool only then.
import server.encode  # noqa: F401
from server.gen.pool import POOL


def document(message: Message) -> dict[str, Any]:
    """The message in protobuf's JSON mapping with proto field names; what has its default is left out."""
    made: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, descriptor_pool=POOL
    )
    return _labels_sorted(made)


def full_document(message: Message) -> dict[str, Any]:
    """As `document`, with the defaults of plain fields, too."""
    made: dict[str, Any] = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=POOL,
    )
    return _labels_sorted(made)


def _labels_sorted(value: dict[str, Any]) -> dict[str, Any]:
    """A map has no order of its own; the same answer should print the same text."""
    return {
        key: dict(sorted(inner.items()))
        if key == "labels"
        else _labels_sorted(inner)
        if isinstance(inner, dict)
        else inner
        for key, inner in value.items()
    }


def print_json(value: Any) -> None:
    """One JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=not _speaks_utf8()))


def print_json_line(value: Any) -> None:
    """One line of JSON Lines."""
    print(json.dumps(value, ensure_ascii=not _speaks_utf8()))


def _speaks_utf8() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def shown(text: str) -> str:
    """The text on one line and harmless to a terminal: control characters are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size_text(size_bytes: int) -> str:
    """`1.5 GiB`, `512 B`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        # What would be rounded to 1024.0 belongs to the next unit.
        if size < 1023.95 or unit == "TiB":
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit takes every size")


def exact_size_text(size_bytes: int) -> str:
    """`1.5 GiB (1610612736)`; empty for 0, which is "not given" in the API."""
    return f"{size_text(size_bytes)} ({size_bytes})" if size_bytes else ""


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, a line each; pairs without a value are left out."""
    kept = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        print(f"{name:<{width}}  {shown(value)}")


class Table:
    """Aligned columns, printed a page at a time: the widths grow with what comes."""

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._widths = [len(column) for column in columns]
        self._printed = False

    def print(self, rows: Iterable[Sequence[str]]) -> None:
        cells = [[shown(cell) for cell in row] for row in rows]
        if not cells:
            return
        for row in cells:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)]
        if not self._printed:
            self._line(self._columns)
            self._printed = True
        for row in cells:
            self._line(row)

    def _line(self, cells: Sequence[str]) -> None:
        padded = (f"{cell:<{width}}" for cell, width in zip(cells, self._widths, strict=True))
        print("  ".join(padded).rstrip())


def note(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)
