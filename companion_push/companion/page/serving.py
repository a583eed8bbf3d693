"""Where the page is served, and the links that open it.

The address is a file in the companion's state directory while the page is served, under a lock, so that
`companion page --link` finds it.
"""

import contextlib
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

from companion_push.companion.keys import CompanionState
from companion_push.companion.page.app import make_app
from companion_push.companion.page.asking import AtPage
from companion_push.companion.page.sessions import Sessions, new_link, take_link
from companion_push.serving.listening import listening, serving
from headless_passkey.errors import TransportError, UsageError
from headless_passkey.net.base_url import MAX_SIZE, BaseUrl
from headless_passkey.process.private_file import lock, read_private, remove_private, write_private
from headless_passkey.text.members import file_members
from http_serving.addresses import Network
from http_serving.connections import ConnectionLimits
from http_serving.listening import Listener
from program_parts.json_text import decode_json

CONNECTIONS: Final = 128  # at a time; each browser has at most six
CONNECTIONS_PER_ADDRESS: Final = 32
_LIMIT: Final = 2 * MAX_SIZE  # bytes of the address's file


def link_to(state: CompanionState, *, now: float) -> str:
    """Make a link that opens the page that is served, once; a secret. now: Unix seconds."""
    try:
        with lock(state.page):
            content = None  # whoever serves holds the lock
    except TransportError:
        content = read_private(state.page, limit=_LIMIT)
    try:
        origin = None if content is None else file_members(decode_json(content), "").text("origin", MAX_SIZE)
    except ValueError:
        origin = None
    if origin is None:
        raise UsageError(
            "this companion serves no page now", advice="`companion-push companion page` serves one"
        )
    return f"{origin}/#{new_link(state.page_link, now=now)}"


@contextlib.asynccontextmanager
async def serving_page(
    page: AtPage,
    state: CompanionState,
    sessions: Sessions,
    *,
    at: tuple[str, int],
    cert: Path | None,
    key: Path | None,
    trusted_proxies: Sequence[Network],
    public_url: str | None,
    say: Callable[[str], None],
    clock: Callable[[], float],
) -> AsyncIterator[str]:
    """Serve `page` while the context is open; yields its origin.

    at: host and port to listen at. cert, key, trusted_proxies: as for other servers. public_url: what browsers call it by; None: as
    it listens. `UsageError` where browsers could not call it so.
    """
    with (
        lock(state.page),
        listening(*at, cert=cert, key=key, anywhere=bool(trusted_proxies)) as listener,
    ):
        origin = _origin(listener, public_url, proxied=bool(trusted_proxies))
        app = make_app(
            page,
            sessions,
            origin=origin,
            take_link=lambda secret: take_link(state.page_link, secret, now=clock()),
        )
        async with serving(
            app,
            listener,
            say=say,
            trusted_proxies=trusted_proxies,
            handler_cancellation=True,
            limits=ConnectionLimits(total=CONNECTIONS, per_address=CONNECTIONS_PER_ADDRESS),
        ):
            remove_private(state.page_link)  # of a run that was killed
            write_private(state.page, json.dumps({"origin": origin.origin}).encode())
            try:
                yield origin.origin
            finally:
                page.end()
                remove_private(state.page)
                remove_private(state.page_link)


def _origin(listener: Listener, public_url: str | None, *, proxied: bool) -> BaseUrl:
    """What browsers call the page by: one origin, of its own."""
    if public_url is None:
        if proxied or _is_any(listener.host):
            raise UsageError("--public-url is needed: what browsers call the page by")
        return BaseUrl.parse(listener.base_url())
    origin = BaseUrl.parse(public_url)
    if origin.path:
        raise UsageError("--public-url has no path: what else is at its origin could approve, too")
    if origin.scheme == "http" and (listener.tls or not origin.is_loopback):
        raise UsageError("--public-url is https, except on loopback without a certificate")
    return origin


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
