"""The `imageledger` command: groups, exit codes and errors. Each group of commands has a file of its own."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

# Else gRPC tells stderr of every failed handshake; it reads this when it is loaded. Errors of its own stay.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from tools.errors import explain
from tools.export import export
from tools.history import history
from tools.image import image
from tools.log import log
from tools.operation import operation
from tools.rebuild import rebuild
from tools.replay import replay
from tools.scrub import scrub
from tools.serve import serve
from tools.source import source
from tools.status import status

EXIT_FAILED = 1
TRACEBACK = "IMAGELEDGER_TRACEBACK"
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("imageledger"), prog_name="imageledger")
def cli() -> None:
    """A self-hosted image registry whose only truth is an append-only, provable event log.

    \b
    Start:   imageledger serve --data ./imageledger-data
    Then, in another terminal:
             imageledger source add disk.qcow2 --kind disk --folder standard-images
             imageledger image create --folder standard-images --name web --disk-id ID
    """


cli.add_command(export)
cli.add_command(rebuild)
cli.add_command(replay)
cli.add_command(scrub)
cli.add_command(serve)
cli.add_command(status)
cli.add_command(image)
cli.add_command(operation)
cli.add_command(history)
cli.add_command(log)
cli.add_command(source)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done and true, 1 refused or failed, 2 wrong usage, 130 Ctrl-C."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the locale has no code for is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = cli.main(args=arguments, prog_name="imageledger", standalone_mode=False)
        _flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # Out of standalone mode click exits by itself only for a broken pipe.
        _drop_output()
        return 0
    except Exception as error:
        return _failed(error)
    return result if isinstance(result, int) else 0


def _flush() -> None:
    # There is no stdout at all where the caller closed it.
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_output() -> None:
    """Whoever read the output has seen enough; the interpreter must not complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: Exception) -> int:
    explained = explain(error)
    if explained is None and TRACEBACK in os.environ:
        raise error
    code, message, remedy = explained or (
        "INTERNAL",
        f"{type(error).__name__}: {error}",
        f"this is a defect of imageledger; with {TRACEBACK}=1 the same command prints where it is",
    )
    print(f"error: {code}: {message}", file=sys.stderr)
    if remedy is not None:
        print(remedy, file=sys.stderr)
    try:
        _flush()
    except OSError:
        _drop_output()
    return EXIT_FAILED


if __name__ == "__main__":
    main()
