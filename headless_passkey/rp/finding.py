"""Where a relying party is: the first request of a ceremony, for which little has to be loaded."""

from contextlib import suppress
from typing import Final

import aiohttp

from headless_passkey.errors import (
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.mends import setup_error
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import ProblemAnswer, ProvenHttp
from headless_passkey.trust.signing import SigningKey

WELL_KNOWN: Final = "/.well-known/headless-passkey"
_PATIENCE: Final = 10.0  # seconds in which transient failures are retried


async def find_relying_party(
    http: aiohttp.ClientSession, base: BaseUrl, key: SigningKey, *, patience: float = _PATIENCE
) -> BaseUrl:
    """Find the relying party of `base`: there, or where ``/.well-known/headless-passkey`` says.

    It is asked for a session, which a relying party refuses in words of its own; nothing is begun. key: the one
    the ceremony will be proved with, so that a wrong clock shows here, before anybody is asked to approve.
    `SetupError` (wrong-server) when there is none. A place is looked up only where `base` names no path,
    and only one of the same origin is taken.
    """
    strange = await _what_is_there(http, base, key, patience)
    if strange is None:
        return base
    if not base.path:
        with suppress(RemoteProtocolError, SetupError, UsageError):
            answer = await ProvenHttp(http, base.origin, key).get(WELL_KNOWN, patience=patience)
            told = BaseUrl.parse(answer.text("relying_party", 1024))
            if told.origin == base.origin and await _what_is_there(http, told, key, patience) is None:
                return told
    raise setup_error(
        f"{base} answers, but not as a relying party ({strange})",
        SetupReason.WRONG_SERVER,
        "path",
        host=base.authority,
    )


async def _what_is_there(
    http: aiohttp.ClientSession, base: BaseUrl, key: SigningKey, patience: float
) -> str | None:
    """Ask a URL; None for a relying party, else a description of what answered."""
    try:
        await ProvenHttp(http, str(base), key).call("GET", "/session", patience=patience, meets_nonce=False)
    except ProblemAnswer as problem:
        # it demands a nonce from a proof in which nothing else is wrong, and gives it for the next request
        if problem.slug in ("not-signed-in", "use-dpop-nonce"):
            return None
        if problem.status in (404, 405) or problem.slug.startswith("http-"):
            return f"HTTP status {problem.status}"
        raise refusal(problem) from problem
    except (RemoteProtocolError, SetupError):
        return "with a malformed answer"
    return "with a session, although the request had no token"


def refusal(problem: ProblemAnswer) -> Exception:
    """Translate a relying party's refusal."""
    match problem.slug:
        case "verification-failed":
            return TrustError(TrustReason.RP_REFUSED, "the relying party did not accept the phone's response")
        case "user-exists":
            return UsageError(
                "this user name is taken; sign in with it, or choose another one",
                advice="a passkey is added to an account on its page, in a browser",
            )
        case "browsers-only":
            return UsageError(
                "the account is not managed from a device's session",
                advice="open the relying party's page in a browser, and sign in there",
            )
        case "proof-invalid":
            return RemoteProtocolError(
                "the relying party does not take our proof: perhaps it does not know itself by this address",
                reason=ProtocolReason.REFUSED,
            )
        case "ceremony-gone":
            return TransportError("the relying party no longer knows the ceremony", advice="try again")
        case _:
            return RemoteProtocolError(
                f"the relying party refused the request: {problem.slug}", reason=ProtocolReason.REFUSED
            )
