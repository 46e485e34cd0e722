"""`imageledger log`: the events themselves."""

from __future__ import annotations

import click

from tools.log_check import check
from tools.log_events import show, watch
from tools.log_proofs import checkpoint, prove, public_key
from tools.log_verify import verify


@click.group()
def log() -> None:
    """The log itself: its events, and proofs that they are what was said."""


log.add_command(check)
log.add_command(checkpoint)
log.add_command(prove)
log.add_command(public_key)
log.add_command(show)
log.add_command(watch)
log.add_command(verify)
