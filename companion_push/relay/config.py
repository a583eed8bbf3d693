"""The relay's settings, read once at the edge."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from companion_push.relay.mailbox import CEILING, LEASE, Quota
from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.trust.text_form import check_relay_url


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """Everything `make_app` needs to know."""

    public_url: str  # what clients call it by, with the prefix it is mounted under; no slash at the end
    store: Path
    ceiling: int = CEILING  # seconds until an unclaimed request expires; 300 at the most
    lease: int = LEASE  # seconds a companion may hold a claim without another call; 60 at the most
    quota: Quota = field(default_factory=Quota)
    held_per_member: int = 4  # the oldest held request is let go when a member has more
    held_per_address: int = 256  # more are told to come back; 0: no limit, for a relay behind a proxy
    clock: Callable[[], float] = time.time  # Unix seconds

    def __post_init__(self) -> None:
        if not 1 <= self.ceiling <= CEILING:
            raise LocalProtocolError(f"the ceiling is 1 to {CEILING} seconds, got {self.ceiling}")
        if not 1 <= self.lease <= LEASE:
            raise LocalProtocolError(f"the lease is 1 to {LEASE} seconds, got {self.lease}")
        if self.held_per_member < 1 or self.held_per_address < 0:
            raise LocalProtocolError("held_per_member is 1 or more, held_per_address 0 or more")
        object.__setattr__(self, "public_url", check_public_url(self.public_url))


def check_public_url(url: str) -> str:
    """`url` as invitations hold it; refuses what they could not, such as plain http elsewhere."""
    try:
        return check_relay_url(str(BaseUrl.parse(url)))
    except (LocalProtocolError, RemoteProtocolError) as error:
        raise LocalProtocolError(f"public_url: {error}") from error
