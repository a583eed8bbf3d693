"""The account code: a one-time secret with which the first companion founds an account's ring.

    text = "hpk-account:" base64url([label, relay URL, account, account name, code])

The account system chooses the account's id, makes the code and gives it to the person. It founds one ring.
"""

import secrets
from dataclasses import dataclass, field
from typing import Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.trust.fields import ACCOUNT_SIZE, PROJECT, Fields, is_account
from headless_passkey.trust.text_form import MAX_RELAY_URL, MAX_TEXT, check_relay_url, from_line, to_line
from program_parts.names import MAX_LABEL, why_not_plain

PREFIX: Final = "hpk-account:"
CODE_SIZE: Final = 32  # bytes
_LABEL: Final = f"{PROJECT} account v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountCode:
    """An account's relay, id and name, and the one-time secret that founds its ring."""

    relay_url: str
    account: str  # its id, 22 characters
    account_name: str  # a label
    code: bytes = field(repr=False)  # 32 random bytes

    def __post_init__(self) -> None:
        check_relay_url(self.relay_url)
        if not is_account(self.account):
            raise RemoteProtocolError(
                f"an account's id is base64url of 16 bytes, {ACCOUNT_SIZE} characters",
                reason=ProtocolReason.MALFORMED_ACCOUNT_CODE,
            )
        if wrong := why_not_plain(self.account_name):
            raise RemoteProtocolError(
                f"an account's name {wrong}", reason=ProtocolReason.MALFORMED_ACCOUNT_CODE
            )
        if len(self.code) != CODE_SIZE:
            raise RemoteProtocolError(
                f"an account code holds {CODE_SIZE} bytes", reason=ProtocolReason.MALFORMED_ACCOUNT_CODE
            )

    @classmethod
    def generate(cls, *, relay_url: str, account: str, account_name: str) -> "AccountCode":
        return cls(
            relay_url=relay_url,
            account=account,
            account_name=account_name,
            code=secrets.token_bytes(CODE_SIZE),
        )

    def encode(self) -> str:
        """Encode the code as one line of text, which is a secret."""
        return to_line(
            PREFIX, cbor.encode([_LABEL, self.relay_url, self.account, self.account_name, self.code])
        )

    @classmethod
    def parse(cls, line: str) -> "AccountCode":
        data = from_line(PREFIX, line, "account code", ProtocolReason.MALFORMED_ACCOUNT_CODE)
        fields = Fields.of(data, _LABEL, 4, limit=MAX_TEXT)
        return cls(
            relay_url=fields.text(MAX_RELAY_URL),
            account=fields.account(),
            account_name=fields.text(MAX_LABEL),
            code=fields.octets(CODE_SIZE),
        )
