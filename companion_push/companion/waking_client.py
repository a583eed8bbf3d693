"""The phone's websocket to its tunnel service, over which it registers contact IDs and is woken (`companion_push.waking`).

As in `headless_passkey.net.tunnel`: TLS is always verified, no redirect is followed, messages are bounded, and errors hold the
host and never a secret.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp import WSCloseCode, WSMsgType

from companion_push.waking import (
    MAX_WAKING_SIZE,
    PATH,
    SUBPROTOCOL,
    Forget,
    Forgotten,
    FromPhone,
    FromService,
    Register,
    Registered,
    Wake,
    encode_waking,
    parse_from_service,
)
from headless_passkey.errors import (
    ProtocolReason,
    RemoteProtocolError,
    TransportError,
    TransportReason,
)
from headless_passkey.hybrid.tunnel_url import CloseReason
from headless_passkey.net.tunnel import open_websocket

ANSWER_TIMEOUT: Final = 10.0  # seconds for the answer to a registration
MAX_WOKEN: Final = 64  # calls that come before such an answer; our own service has half as many in its queue


# by close code, and the reason of 1001
_CLOSED: Final[dict[tuple[int | None, str | None], str]] = {
    (WSCloseCode.GOING_AWAY, CloseReason.DRAINING): "it is being shut down",
    (WSCloseCode.GOING_AWAY, CloseReason.STOOD_STILL): "this phone took nothing for too long",
    (WSCloseCode.UNSUPPORTED_DATA, ""): "it does not take what this phone sends (close code 1003)",
    (WSCloseCode.POLICY_VIOLATION, ""): "it does not take what this phone sends (close code 1008)",
    (WSCloseCode.MESSAGE_TOO_BIG, ""): "it does not take what this phone sends (close code 1009)",
    (WSCloseCode.INTERNAL_ERROR, ""): "something failed there (close code 1011)",
    (
        WSCloseCode.TRY_AGAIN_LATER,
        "",
    ): "it has no room for this phone, or for a new contact ID, for now (close code 1013)",
}


class WakingClient:
    """One connection to the tunnel service."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, host: str) -> None:
        self._websocket, self._host = websocket, host
        self._woken: list[Wake] = []  # that came before an answer

    async def register(self, secrets: Sequence[bytes]) -> None:
        """Register these secrets; on return their contact IDs are known. `TransportError` when the service refuses."""
        await self._ask(Register(secrets=tuple(secrets)), Registered)

    async def forget(self, secrets: Sequence[bytes]) -> None:
        """Give up the contact IDs of these secrets; on return they answer 410."""
        await self._ask(Forget(secrets=tuple(secrets)), Forgotten)

    async def wake(self) -> Wake:
        """Wait until a device asks for the phone; `TransportError` when the connection ends."""
        if self._woken:
            return self._woken.pop(0)
        message = await self._receive()
        if not isinstance(message, Wake):
            raise self._out_of_turn()
        return message

    async def _ask(self, message: FromPhone, answer: type[FromService]) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._websocket.send_str(encode_waking(message))
                while isinstance(given := await self._receive(), Wake):
                    if len(self._woken) == MAX_WOKEN:
                        raise self._out_of_turn()
                    self._woken.append(given)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            what = f"the tunnel service {self._host} did not answer a registration"
            raise TransportError(what, reason=TransportReason.UNREACHABLE) from error
        if not isinstance(given, answer):
            raise self._out_of_turn()

    async def _receive(self) -> FromService:
        try:
            message = await self._websocket.receive()
        except (aiohttp.ClientError, OSError) as error:
            raise self._lost() from error
        match message.type:
            case WSMsgType.TEXT:
                return parse_from_service(message.data)
            case WSMsgType.BINARY:
                raise self._out_of_turn()
            case WSMsgType.CLOSE:
                raise self._closed(message.data, message.extra)
        raise self._lost()

    def _closed(self, code: int | None, why: str | None) -> TransportError:
        """Say why the service closed the connection. code, why: of the close frame (RFC 6455 §7.4); of `why` only words of ours count."""
        told = _CLOSED.get((code, why if code == WSCloseCode.GOING_AWAY else ""))
        if told is None and code != WSCloseCode.OK:
            told = f"close code {code:d}" if code else "it does not say why"
        what = f"the tunnel service {self._host} closed the connection over which it wakes this phone"
        return TransportError(what if told is None else f"{what}: {told}", reason=TransportReason.UNREACHABLE)

    def _lost(self) -> TransportError:
        what = f"the connection over which the tunnel service {self._host} wakes this phone broke off"
        return TransportError(what, reason=TransportReason.UNREACHABLE)

    def _out_of_turn(self) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"the tunnel service {self._host} said something about waking out of turn",
            reason=ProtocolReason.UNEXPECTED_MESSAGE,
        )


@asynccontextmanager
async def open_waking(base: str, *, tls: ssl.SSLContext | None) -> AsyncIterator[WakingClient]:
    """A connection to the tunnel service at `base` (``wss://host``), closed when the context is left.

    `TransportError` when it cannot be reached or refuses, `TunnelRefused` with 404 when it wakes no phones, `SetupError`
    (wrong-server) when it is something else.
    """
    async with open_websocket(
        base + PATH, subprotocol=SUBPROTOCOL, tls=tls, max_message_size=MAX_WAKING_SIZE
    ) as opened:
        yield WakingClient(opened.websocket, opened.host)
