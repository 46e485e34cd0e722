"""yandex.cloud.iam.v1.IamTokenService in development mode: every identity is accepted and named."""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import Executor

from grpc import StatusCode

from server.call import Call
from server.gen.yandex.cloud.iam.v1 import iam_token_service_pb2 as pb
from server.handlers import Rpc
from server.identity import SUBJECT, Issued, RevocationsFull, Tokens, foreign_subject
from server.status import CallRefused

SERVICE = "yandex.cloud.iam.v1.IamTokenService"


class IamTokenService:
    def __init__(self, tokens: Tokens, *, threads: Executor) -> None:
        self._tokens = tokens
        self._threads = threads

    def rpcs(self) -> dict[str, Rpc]:
        return {
            f"{SERVICE}/Create": Rpc(pb.CreateIamTokenRequest, self.create, is_open=True),
            f"{SERVICE}/CreateForServiceAccount": Rpc(
                pb.CreateIamTokenForServiceAccountRequest, self.create_for_service_account
            ),
            f"{SERVICE}/Revoke": Rpc(pb.RevokeIamTokenRequest, self.revoke, reads=False),
        }

    async def create(self, call: Call, request: pb.CreateIamTokenRequest) -> bytes:
        text = request.jwt or request.yandex_passport_oauth_token
        return _answer(self._tokens.issue(foreign_subject(text)))

    async def create_for_service_account(
        self, call: Call, request: pb.CreateIamTokenForServiceAccountRequest
    ) -> bytes:
        account = request.service_account_id
        subject = account if SUBJECT.fullmatch(account) else foreign_subject(account)
        return _answer(self._tokens.issue(subject))

    async def revoke(self, call: Call, request: pb.RevokeIamTokenRequest) -> bytes:
        run = asyncio.get_running_loop().run_in_executor
        try:
            # In a thread, since it waits for the disk; there it ends also when its caller hangs up.
            subject = await run(self._threads, self._tokens.revoke, request.iam_token)
        except RevocationsFull as error:
            raise CallRefused(
                StatusCode.RESOURCE_EXHAUSTED, str(error), reason="TOO_MANY_REVOCATIONS"
            ) from None
        except OSError as error:
            raise _not_kept(error) from error
        return pb.RevokeIamTokenResponse(subject_id=subject).SerializeToString()


def _not_kept(error: OSError) -> CallRefused:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return CallRefused(
        StatusCode.RESOURCE_EXHAUSTED if is_full else StatusCode.UNAVAILABLE,
        f"The token is not revoked, since the disk did not keep it: {error.strerror}",
        reason="DISK_FULL" if is_full else "REVOCATION_NOT_KEPT",
    )


def _answer(issued: Issued) -> bytes:
    answer = pb.CreateIamTokenResponse(iam_token=issued.token)
    answer.expires_at.FromNanoseconds(issued.expires_at)
    return answer.SerializeToString()
