"""Options, each of them read from IMAGELEDGER_<OPTION> too, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

INT64_MAX = 2**63 - 1
_SIZE = re.compile(r"([0-9]{1,19})\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def option(name: str, *names: str, **settings: Any) -> Callable[[Command], Command]:
    """A click option whose environment variable is IMAGELEDGER_ and its long name.

    `name` is the long one, like `--listen`; further ones and all of click's settings may follow. A repeatable
    option reads several values from its variable, separated by spaces.
    """
    variable = "IMAGELEDGER_" + name.split("/")[0].removeprefix("--").replace("-", "_").upper()
    settings.setdefault("envvar", variable)
    settings.setdefault("show_default", settings.get("default") is not None)
    return click.option(name, *names, **settings)


def size(text: str) -> int:
    """Bytes of a number, or of one with K, M, G or T: KiB, MiB, GiB and TiB. Raises BadParameter."""
    parts = _SIZE.fullmatch(text.strip())
    made = int(parts[1]) << _SUFFIXES[parts[2].upper()] if parts else -1
    if not 0 <= made <= INT64_MAX:
        raise click.BadParameter(f"{text!r} is no size: give bytes, or a number with K, M, G or T, like 20G")
    return made


def label(text: str) -> tuple[str, str]:
    """Key and value of `key=value`. Raises BadParameter."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} is no label: write key=value, like env=prod")
    return key, value


def _as_map(
    context: click.Context, parameter: click.Parameter, labels: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    made = dict(labels)
    if len(made) < len(labels):
        repeated = next(key for key in made if sum(key == other for other, _ in labels) > 1)
        raise click.BadParameter(f"the key {repeated!r} is given twice", context, parameter)
    return made


data_option = option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("imageledger-data"),
    help="The data directory.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
folder_option = option("--folder", "folder_id", required=True, metavar="FOLDER", help="The folder's id.")
name_option = option("--name", help="Unique in its folder: lower-case letters, digits and -.")
description_option = option("--description", help="At most 256 characters.")
size_option = option("--min-disk-size", type=size, metavar="SIZE", help="Bytes, or with a suffix, like 20G.")
label_option = option(
    "--label",
    "labels",
    type=label,
    multiple=True,
    metavar="KEY=VALUE",
    callback=_as_map,
    help="Repeat it for more labels.",
)
