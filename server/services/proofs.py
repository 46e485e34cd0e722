"""imageledger.v1.ProofService: checkpoints, and what they prove."""

from __future__ import annotations

import logging
from collections.abc import Callable

from grpc import StatusCode

from eventstore.checkpoint import Checkpoint, open_note, parse_checkpoint, split_note
from eventstore.errors import (
    CheckpointContradicted,
    ForeignCheckpoint,
    NoSuchPosition,
    NoteMalformed,
    NoteUnverified,
    SignatureWrong,
)
from eventstore.keys import Verifier, format_vkey
from eventstore.lineage import LogKey
from eventstore.receipt import prove_consistency
from server.call import Call
from server.gen.imageledger.v1 import proof_service_pb2 as pb
from server.handlers import Rpc
from server.moments import Moments
from server.proofs import Proofs
from server.status import CallRefused

SERVICE = "imageledger.v1.ProofService"
OLD = "old_checkpoint"

_log = logging.getLogger(__name__)


class ProofService:
    def __init__(self, proofs: Proofs, moments: Moments, *, applied: Callable[[], int]) -> None:
        self._proofs = proofs
        self._moments = moments
        self._applied = applied

    def rpcs(self) -> dict[str, Rpc]:
        return {
            f"{SERVICE}/Checkpoint": Rpc(pb.CheckpointRequest, self.checkpoint),
            f"{SERVICE}/Prove": Rpc(pb.ProveRequest, self.prove),
            f"{SERVICE}/ProveConsistency": Rpc(pb.ProveConsistencyRequest, self.prove_consistency),
            f"{SERVICE}/PublicKeys": Rpc(pb.PublicKeysRequest, self.public_keys),
        }

    async def checkpoint(self, call: Call, request: pb.CheckpointRequest) -> bytes:
        kept = await self._proofs.newest(await self._present(call))
        said = await self._proofs.said(deadline=call.deadline())
        call.position = kept.size
        return pb.SignedCheckpoint(
            origin=parse_checkpoint(split_note(kept.note)[0]).origin,
            size=kept.size,
            root=kept.root,
            note=kept.note,
            public_key=format_vkey(_key_at(said.keys, kept.size)),
        ).SerializeToString()

    async def prove(self, call: Call, request: pb.ProveRequest) -> bytes:
        as_of = await self._moments.position(call)
        call.position = last = self._applied() if as_of is None else as_of
        if request.position > last:
            raise CallRefused(
                StatusCode.OUT_OF_RANGE,
                f"Position {request.position} is beyond the head of the log, {last}",
                reason="OUT_OF_RANGE",
                field="position",
            )
        kept = await self._proofs.newest(request.position)
        receipts = await self._proofs.receipts([request.position], kept.note, deadline=call.deadline())
        return pb.ProveResponse(receipt=receipts[0], checkpoint=kept.note).SerializeToString()

    async def prove_consistency(self, call: Call, request: pb.ProveConsistencyRequest) -> bytes:
        last = await self._present(call)
        said = await self._proofs.said(deadline=call.deadline())
        old = _old(request.old_checkpoint, said.verifiers)
        kept = await self._proofs.newest(last)
        call.position = kept.size
        try:
            made = await self._proofs.run(
                lambda log: prove_consistency(log, old, kept.note), deadline=call.deadline()
            )
        except ForeignCheckpoint as error:
            raise _refused(StatusCode.FAILED_PRECONDITION, str(error), "FOREIGN_CHECKPOINT") from None
        except NoSuchPosition:
            raise _gone(old, kept.size) from None
        except CheckpointContradicted as error:
            _log.error("a checkpoint that this log's key has signed is not of this log", extra=_extra(old))
            raise _refused(StatusCode.DATA_LOSS, str(error), "LOG_CONTRADICTED") from None
        return pb.ProveConsistencyResponse(
            old_size=made.old_size, size=made.size, proof=made.proof, checkpoint=made.checkpoint
        ).SerializeToString()

    async def public_keys(self, call: Call, request: pb.PublicKeysRequest) -> bytes:
        call.position = await self._present(call)
        said = await self._proofs.said(deadline=call.deadline())
        keys = [
            pb.PublicKey(public_key=format_vkey(key.verifier), from_size=key.since, until_size=key.until or 0)
            for key in said.keys
        ]
        return pb.PublicKeysResponse(keys=keys).SerializeToString()

    async def _present(self, call: Call) -> int:
        """The newest position. Raises CallRefused for a caller who asks about the past."""
        if "x-as-of" in call.metadata:
            message = "x-as-of asks about the past, and this is of the newest events: leave it out"
            raise CallRefused(
                StatusCode.INVALID_ARGUMENT, message, reason="AS_OF_ON_PRESENT", field="x-as-of"
            )
        await self._moments.position(call)
        return self._applied()


def _key_at(keys: tuple[LogKey, ...], size: int) -> Verifier:
    """The key that signs checkpoints of a size."""
    for key in reversed(keys):
        if key.since <= size:
            return key.verifier
    raise AssertionError(f"a checkpoint of {size} events, and no key that could have signed it")


def _old(note: str, verifiers: tuple[Verifier, ...]) -> Checkpoint:
    """What an older note says, which a key of this log has signed. Raises CallRefused."""
    try:
        return open_note(note, verifiers)
    except (NoteMalformed, SignatureWrong) as error:
        raise _refused(StatusCode.INVALID_ARGUMENT, str(error), "NOTE_MALFORMED") from None
    except NoteUnverified as error:
        message = (
            f"The checkpoint is signed by {', '.join(error.signed_by)}, and by no key of this log:"
            " give one that this log has given out"
        )
        raise _refused(StatusCode.FAILED_PRECONDITION, message, "FOREIGN_CHECKPOINT") from None


def _gone(old: Checkpoint, size: int) -> CallRefused:
    """It was signed, so there were that many events once."""
    if old.size == 0:
        message = "Every log begins with the checkpoint of no events: there is nothing to prove"
        return _refused(StatusCode.INVALID_ARGUMENT, message, "NOTE_EMPTY")
    _log.error("a checkpoint that this log's key has signed is of more events than it has", extra=_extra(old))
    message = (
        f"The checkpoint covers {old.size} events, and the log has {size}: it was put back to an earlier"
        " state since that was signed; keep the checkpoint, it proves that"
    )
    return _refused(StatusCode.DATA_LOSS, message, "LOG_ROLLED_BACK")


def _extra(old: Checkpoint) -> dict[str, object]:
    return {"size": int(old.size), "root": old.root.hex()}


def _refused(code: StatusCode, message: str, reason: str) -> CallRefused:
    return CallRefused(code, message, reason=reason, field=OLD)
