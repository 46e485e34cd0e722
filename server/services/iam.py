"""yandex.cloud.iam.v1.IamTokenService in development mode: every identity is accepted and named."""

from __future__ import annotations

from server.call import Call
from server.gen.yandex.cloud.iam.v1 import iam_token_service_pb2 as pb
from server.handlers import Rpc
from server.identity import SUBJECT, Issued, Tokens, foreign_subject

SERVICE = "yandex.cloud.iam.v1.IamTokenService"


class IamTokenService:
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def rpcs(self) -> dict[str, Rpc]:
        return {
            f"{SERVICE}/Create": Rpc(pb.CreateIamTokenRequest, self.create, is_open=True),
            f"{SERVICE}/CreateForServiceAccount": Rpc(
                pb.CreateIamTokenForServiceAccountRequest, self.create_for_service_account
            ),
            f"{SERVICE}/Revoke": Rpc(pb.RevokeIamTokenRequest, self.revoke),
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
        return pb.RevokeIamTokenResponse(
            subject_id=self._tokens.revoke(request.iam_token)
        ).SerializeToString()


def _answer(issued: Issued) -> bytes:
    answer = pb.CreateIamTokenResponse(iam_token=issued.token)
    answer.expires_at.FromNanoseconds(issued.expires_at)
    return answer.SerializeToString()
