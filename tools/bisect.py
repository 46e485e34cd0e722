"""`imageledger history bisect`: the first event of a folder after which a command fails, found by halves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import click

from eventstore.event import Event, decode
from projections.moments import AtPosition, Moment
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from tools.client import HISTORY, IMAGES, Client, client_options, pages
from tools.differences import Diff, diff_json, diff_lines, read_diff
from tools.errors import CommandFailed
from tools.events_json import event_json, event_text
from tools.moments import moment, moment_message
from tools.options import folder_option, json_option, option
from tools.output import document, note, print_json, shown

STDERR = 2
GOOD = 0
SKIP = 125
BAD_MAX = 124


class Verdict(Enum):
    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Open:
    """Skips leave open which one it is: one of the candidates from `first` to `last`."""

    first: int
    last: int


def first_bad(count: int, test: Callable[[int], Verdict]) -> int | Open:
    """Which of the candidates 1 to count is the first bad one, where 0 is good and `count` is bad.

    Tests about log2(count) of them, and others beside those that are skipped. None is tested twice.
    """
    good, bad = 0, count
    skipped: set[int] = set()
    while bad - good > 1:
        left = [index for index in range(good + 1, bad) if index not in skipped] if skipped else None
        if left == []:
            return Open(good + 1, bad)
        middle = (good + bad) // 2
        chosen = middle if left is None else min(left, key=lambda index: abs(index - middle))
        match test(chosen):
            case Verdict.GOOD:
                good = chosen
            case Verdict.BAD:
                bad = chosen
            case Verdict.SKIP:
                skipped.add(chosen)
    return bad


@click.command()
@folder_option
@option("--good", required=True, type=moment, metavar="MOMENT", help="When CMD still succeeded.")
@option("--bad", required=True, type=moment, metavar="MOMENT", help="When CMD failed.")
@option("--run", "command", required=True, metavar="CMD", help="What tells good from bad, run by the shell.")
@json_option
@client_options
def bisect(client: Client, folder_id: str, good: Moment, bad: Moment, command: str, as_json: bool) -> None:
    """Find the first event of a folder after which CMD fails: whose it was, and what it changed.

    CMD gets the folder's images as they were on stdin: {"position": P, "images": [...]}. It ends with 0 for
    good, 125 for "cannot tell, skip", any other code up to 124 for bad. With 126 or 127 (the shell could not
    run it) or a signal the search ends. What it prints goes to stderr. Both ends are tried first, then about
    log2 of the number of events between them.

    Exit 0 when the event was found; 1 when skips leave it open, or an end is not what it was said to be.

    \b
    Examples:
      imageledger history bisect --folder standard-images --good 1200 --bad head \\
        --run 'jq -e ".images | any(.family == \\"web\\")"'
      imageledger history bisect --folder f --good 2026-11-20T00:00:00Z --bad head --run ./boots.sh --json
    """
    search = _Search(client, folder_id, command)
    positions = search.candidates(good, bad)
    search.check_ends(positions)
    found = first_bad(len(positions) - 1, lambda index: search.verdict(positions[index]))
    if isinstance(found, Open):
        first, last = positions[found.first], positions[found.last]
        raise CommandFailed(
            "FAILED_PRECONDITION",
            f"the skips leave it open: it is one of positions {first} to {last}",
            remedy=f"`imageledger log show --folder {folder_id} --from {first} --to {last}` shows them",
        )
    _print(search.event(positions[found]), search.change(positions[found]), as_json=as_json)


class _Search:
    """The questions that a search asks, of the server and of the command."""

    def __init__(self, client: Client, folder_id: str, command: str) -> None:
        self._client = client
        self._folder_id = folder_id
        self._command = command

    def candidates(self, good: Moment, bad: Moment) -> list[int]:
        """The good position, then those of the folder's events up to the bad one. Raises CommandFailed."""
        request = pb.ReadPositionsRequest(
            folder_id=self._folder_id, from_moment=moment_message(good), to_moment=moment_message(bad)
        )
        answers = self._client.download(f"{HISTORY}/ReadPositions", request, pb.ReadPositionsResponse)
        first, *others = answers
        found = [position for answer in (first, *others) for position in answer.positions]
        if not found:
            raise CommandFailed(
                "FAILED_PRECONDITION",
                f"nothing happened in folder {self._folder_id} after position {first.from_position}"
                f" up to position {first.to_position}",
                remedy="give a --good that is before the event that is looked for, and a --bad after it",
            )
        return [first.from_position, *found]

    def check_ends(self, positions: Sequence[int]) -> None:
        """Raises CommandFailed where an end is not what it was said to be."""
        for name, position, expected in (
            ("--good", positions[0], Verdict.GOOD),
            ("--bad", positions[-1], Verdict.BAD),
        ):
            verdict = self.verdict(position)
            if verdict is not expected:
                raise CommandFailed(
                    "FAILED_PRECONDITION",
                    f"{name} is position {position}, and there the command says {verdict.value}",
                    remedy=f"give a {name} at which the command says {expected.value}",
                )

    def verdict(self, position: int) -> Verdict:
        """What the command says of the folder as of a position. Raises CommandFailed where it did not run."""
        state = json.dumps({"position": position, "images": self._images(position)}).encode()
        # stdout is for the answer alone.
        code = subprocess.run(self._command, shell=True, input=state, stdout=STDERR, check=False).returncode
        verdict = _verdict(code)
        if verdict is None:
            how = f"ended by signal {-code}" if code < 0 else f"ended with {code}"
            raise CommandFailed(
                "ABORTED",
                f"at position {position} the command {how}, which says neither good nor bad",
                remedy="0 is good, 125 is skip, other codes up to 124 are bad; the shell gives 126 and 127"
                " for what it cannot run",
            )
        note(f"position {position}: {verdict.value}")
        return verdict

    def _images(self, position: int) -> list[dict[str, Any]]:
        def ask(page_size: int, page_token: str) -> tuple[Sequence[Any], str]:
            request = image_service_pb2.ListImagesRequest(
                folder_id=self._folder_id, page_size=page_size, page_token=page_token
            )
            answer = self._client.call(
                f"{IMAGES}/List",
                request,
                image_service_pb2.ListImagesResponse,
                metadata=(("x-as-of", str(position)),),
            )
            return answer.images, answer.next_page_token

        return [document(image) for images in pages(ask) for image in images]

    def event(self, position: int) -> Event:
        moment = moment_message(AtPosition(position))
        request = pb.ReadEventsRequest(from_moment=moment, to_moment=moment)
        (answer,) = self._client.download(f"{HISTORY}/ReadEvents", request, pb.ReadEventsResponse)
        return decode(answer.events[0].body)

    def change(self, position: int) -> Diff:
        """What the event at a position changed in the folder."""
        before, after = AtPosition(position - 1), AtPosition(position)
        return read_diff(self._client, before, after, folder_id=self._folder_id)


def _verdict(code: int) -> Verdict | None:
    """None for a command that did not come to say."""
    if code == GOOD:
        return Verdict.GOOD
    if code == SKIP:
        return Verdict.SKIP
    return Verdict.BAD if 0 < code <= BAD_MAX else None


def _print(event: Event, change: Diff, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "position": event.position,
                "event": event_json(event),
                "operation_id": event.operation_id,
                "actor": event.actor,
                "diff": diff_json(change),
            }
        )
        return
    print("the first event after which the command fails:")
    print(event_text(event))
    print(f"    operation: {shown(event.operation_id or '-')}")
    for line in diff_lines(change):
        print(line)
