"""`imageledger serve`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from projections.moments import format_time
from server.config import Config
from server.main import serve as run_server
from tools.options import data_option, option

FILE = click.Path(path_type=Path, dir_okay=False)
RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


@click.command()
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
    "--allow-source", multiple=True, metavar="PREFIX", help="URL prefix that images may be imported from."
)
@option(
    "--accept-clock", is_flag=True, help="Go on although the clock is far behind the log; recorded in it."
)
@option("--log-format", type=click.Choice(["text", "json"]), default="text", help="The form of log lines.")
def serve(
    data: Path,
    listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    advertise: str | None,
    allow_source: tuple[str, ...],
    accept_clock: bool,
    log_format: str,
) -> None:
    """Serve the ImageService API from the log in a data directory.

    Prints `listening on HOST:PORT` once calls are answered; SIGTERM or Ctrl-C stops it after the calls in
    flight are answered.

    \b
    Example:
      imageledger serve --data /var/lib/imageledger --listen 127.0.0.1:50051
    """
    _log_to_stderr(log_format)
    config = Config(
        data=data,
        listen=listen,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
        advertise=advertise,
        allow_source=allow_source,
        accept_clock=accept_clock,
    )
    run_server(config, say=lambda line: print(line, flush=True))


def _log_to_stderr(log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in RECORD_FIELDS}


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
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
