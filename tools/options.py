"""Options, each of them read from IMAGELEDGER_<OPTION> too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def option(name: str, *names: str, **settings: Any) -> Callable[[Command], Command]:
    """A click option whose environment variable is IMAGELEDGER_ and its long name.

    `name` is the long one, like `--listen`; further ones and all of click's settings may follow.
    """
    variable = "IMAGELEDGER_" + name.split("/")[0].removeprefix("--").replace("-", "_").upper()
    settings.setdefault("envvar", variable)
    settings.setdefault("show_default", settings.get("default") is not None)
    return click.option(name, *names, **settings)


data_option = option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("imageledger-data"),
    help="The data directory.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
