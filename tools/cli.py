"""The `imageledger` command: groups, exit codes and errors. Each group of commands has a file of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

from tools.errors import explain
from tools.serve import serve

EXIT_FAILED = 1
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


cli.add_command(serve)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done and true, 1 refused or failed, 2 wrong usage, 130 Ctrl-C."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command line."""
    try:
        result = cli.main(args=arguments, prog_name="imageledger", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _failed(error)
    return result if isinstance(result, int) else 0


def _failed(error: Exception) -> int:
    explained = explain(error)
    if explained is None:
        raise error
    code, message, remedy = explained
    print(f"error: {code}: {message}", file=sys.stderr)
    if remedy is not None:
        print(remedy, file=sys.stderr)
    return EXIT_FAILED


if __name__ == "__main__":
    main()
