"""The related origins request: it asks an RP ID's host which other origins may use it (WebAuthn Level 3 §5.11.1, step 2).

The request goes over https, without cookies or other credentials. No redirect is followed, which is stricter than
WebAuthn, and the answer is bounded in size and time.
"""

from typing import Final

import aiohttp

from headless_passkey.errors import ProtocolReason, RemoteProtocolError, TransportError
from headless_passkey.net.proxy import ProxyFailed, read_bounded, sending
from headless_passkey.webauthn.origins import MAX_DOCUMENT_SIZE, RelatedOrigins, well_known_url

FETCH_TIMEOUT: Final = 10.0  # seconds


async def fetch_related_origins(http: aiohttp.ClientSession, rp_id: str) -> RelatedOrigins:
    """Fetch ``https://RP_ID/.well-known/webauthn``; `RemoteProtocolError` when it does not answer with related origins.

    http: as `open_session` makes it, without cookies. An unreachable host raises the same error: an RP ID
    of another domain is refused unless that domain lists the origin. `ProxyFailed` is raised as it is.
    """
    url = well_known_url(rp_id)
    try:
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT)
        async with sending(http, "GET", url, timeout=timeout) as response:
            if response.status != 200 or response.content_type != "application/json":
                raise RemoteProtocolError(
                    f"the RP ID does not belong to the origin, and {rp_id} lists no related origins: {url}"
                    f" answers {response.status}, {response.content_type}; expected 200, application/json",
                    reason=ProtocolReason.RP_ID_NOT_OF_ORIGIN,
                )
            document = await read_bounded(response, MAX_DOCUMENT_SIZE)
    except ProxyFailed:
        raise
    except TransportError as error:
        raise RemoteProtocolError(
            f"the RP ID does not belong to the origin, and whether it is related cannot be asked: {error}",
            reason=ProtocolReason.RP_ID_NOT_OF_ORIGIN,
        ) from error
    return RelatedOrigins.parse(document, rp_id=rp_id)
