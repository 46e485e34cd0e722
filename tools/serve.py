"""`imageledger serve`."""

from __future__ import annotations

import json
import logging
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from projections.moments import format_time
from server.config import Config
from server.main import serve as run_server
from tools.options import data_option, option, size

FILE = click.Path(path_type=Path, dir_okay=False)
RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
PLAIN = re.compile(r"[\w./:@+-]+")
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|m|min|h|d)?")
SECONDS = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Seconds of a number, or of one with s, min, h or d. Raises BadParameter."""
    found = DURATION.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(
            f"{text!r} is no time: give seconds, or a number with s, m, h or d, like 15m"
        )
    return float(found[1]) * SECONDS[found[2]]


def share(text: str) -> float:
    """A share, 0 to 1, of a percentage like 5%. Raises BadParameter."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise click.BadParameter(f"{text!r} is no percentage from 0% to 99%")
    return value


def read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Options from a TOML file, below the command line and the environment. Raises BadParameter."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"cannot read {path}: {error}", context, parameter) from None
    known = {str(option.name): option for option in context.command.params if option is not parameter}
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            names = ", ".join(sorted(known)).replace("_", "-")
            problem = f"has {key!r}, which is no option of serve; there are {names}"
        elif name in given:
            problem = f"has {key!r} twice"
        else:
            given[name], problem = _as_given(known[name], value)
        if problem:
            raise click.BadParameter(f"{path} {problem}", context, parameter)
    context.default_map = {**(context.default_map or {}), **given}
    return path


def _as_given(option: click.Parameter, value: Any) -> tuple[Any, str]:
    """A TOML value as the command line would have it, so that one converter reads both; or what is wrong."""
    name = str(option.name).replace("_", "-")
    if isinstance(option, click.Option) and option.is_flag:
        return value, "" if isinstance(value, bool) else f"has {name!r}, which must be true or false"
    if option.multiple:
        items = value if isinstance(value, list) else [value]
        if all(isinstance(item, str) for item in items):
            return items, ""
        return None, f"has {name!r}, which must be a list of texts"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None, f"has {name!r}, which must be a text or a number"
    return str(value), ""


@click.command()
@option("--config", type=FILE, is_eager=True, callback=read_config, help="TOML file of these options.")
@data_option
@option(
    "--listen",
    default="127.0.0.1:50051",
    metavar="HOST:PORT",
    help="Where to listen; port 0 takes a free one.",
)
@option("--tls-cert", type=FILE, help="PEM file of the certificate chain; turns TLS on, with --tls-key.")
@option("--tls-key", type=FILE, help="PEM file of the certificate's private key.")
@option("--insecure", is_flag=True, help="Listen beyond loopback without TLS: tokens travel in plain text.")
@option("--advertise", metavar="HOST:PORT", help="The address that ApiEndpointService names to clients.")
@option(
    "--allow-source",
    multiple=True,
    metavar="PREFIX",
    help="URL prefix that images may be imported from, like https://storage.example/images/ or"
    " file:///srv/images/; repeat it for more. Without any, no URI is fetched.",
)
@option(
    "--max-image-size",
    type=size,
    default="10G",
    metavar="SIZE",
    help="The most bytes an import or upload may bring.",
)
@option(
    "--blob-grace",
    type=duration,
    default="15m",
    metavar="TIME",
    help="How long bytes that nothing refers to any more are kept.",
)
@option(
    "--min-free",
    type=share,
    default="5%",
    metavar="PERCENT",
    help="Imports and uploads stop when less of the disk is free.",
)
@option(
    "--accept-clock", is_flag=True, help="Go on although the clock is far behind the log; recorded in it."
)
@option(
    "--checkpoint-key",
    type=FILE,
    metavar="FILE",
    help="Sign checkpoints with the key in this file, which must be called like the log. A new one takes over"
    " from the one before for good.  [default: checkpoint.key in the data directory, made if need be]",
)
@option(
    "--rotate-checkpoint-key",
    is_flag=True,
    help="Make a new key that signs from this start on; the one before it is removed. Give it once.",
)
@option(
    "--checkpoint-interval",
    type=duration,
    default="60s",
    metavar="TIME",
    help="How often a checkpoint is made, if the log has grown.",
)
@option(
    "--publish-checkpoints",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write each of these checkpoints into a folder, best on another machine. A start whose log does not"
    " lead to the newest one there is refused.",
)
@option(
    "--accept-rollback",
    metavar="REASON",
    help="Go on although more was published than the log has; the reason is recorded in it. Give it once.",
)
@option(
    "--read-only",
    is_flag=True,
    help="Serve a copy of a data directory: every read and history call, and no write.",
)
@option(
    "--projection-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where --read-only keeps the projection that it makes.  [default: a temporary one]",
)
@option("--log-format", type=click.Choice(["text", "json"]), default="text", help="The form of log lines.")
def serve(
    config: Path | None,
    log_format: str,
    max_image_size: int,
    blob_grace: float,
    checkpoint_interval: float,
    **options: Any,
) -> None:
    """Serve the ImageService API from the log in a data directory.

    Prints `listening on HOST:PORT` once calls are answered; SIGTERM or Ctrl-C stops it after the calls in
    flight are answered. A --config file has the options by their long names: `listen = "127.0.0.1:50051"`,
    `allow-source = ["file:///srv/images/"]`.

    \b
    Examples:
      imageledger serve --data /var/lib/imageledger --allow-source https://storage.example/images/
      imageledger serve --read-only --data /mnt/copy --listen 127.0.0.1:50052
    """
    _log_to_stderr(log_format)
    run_server(
        Config(
            image_bytes_max=max_image_size,
            blob_grace_s=blob_grace,
            checkpoint_interval_s=checkpoint_interval,
            **options,
        ),
        say=lambda line: print(line, flush=True),
    )


def _log_to_stderr(log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in RECORD_FIELDS}


def _quoted(value: Any) -> str:
    """A value that cannot be taken for another field, or another line: a request id is the caller's text."""
    text = str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {key}={_quoted(value)}" for key, value in _extra(record).items())
        time = format_time(int(record.created * 1e9))
        text = f"{time} {record.levelname} {record.name}: {record.getMessage()}{extra}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": format_time(int(record.created * 1e9)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
