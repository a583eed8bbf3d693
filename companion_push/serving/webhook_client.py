"""One attempt at calling the account service; `companion_push.serving.webhook` has what is sent."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

import aiohttp
from yarl import URL

from companion_push.serving.retry_after import retry_after
from companion_push.serving.webhook import Attempt, Webhook
from headless_passkey.errors import TransportError
from headless_passkey.net.connector import Connector
from headless_passkey.net.proxy import read_bounded, sending, tracing
from headless_passkey.net.tls import tls_context

SECONDS: Final = 20.0  # for one attempt
BODY_SECONDS: Final = 2.0  # for the rest of an answer whose status is known
MAX_ANSWER: Final = 4096  # bytes that are read of an answer's body, and thrown away
_GONE: Final = 410


class WebhookClient:
    """Calls one account service."""

    def __init__(
        self, webhook: Webhook, *, clock: Callable[[], float] = time.time, seconds: float = SECONDS
    ) -> None:
        """clock: Unix seconds. seconds: for one attempt. `SetupError` for roots that cannot be read."""
        self._webhook, self._clock, self._seconds = webhook, clock, seconds
        self._url = URL(webhook.url)
        self._tls = tls_context(webhook.ca)
        self._opened: aiohttp.ClientSession | None = None

    async def post(self, event_id: str, body: bytes) -> Attempt:
        """Try once. Only a status from 200 to 299 takes the event, redirects are not followed, and a body means nothing."""
        try:
            async with sending(
                self._session(),
                "POST",
                self._url,
                data=body,
                headers=self._webhook.headers(event_id, body, now=self._clock()),
                timeout=aiohttp.ClientTimeout(total=self._seconds),
            ) as response:
                status = response.status
                pause = retry_after(response.headers.get("Retry-After"), self._clock())
                with contextlib.suppress(aiohttp.ClientError, OSError):  # TimeoutError is an OSError
                    async with asyncio.timeout(BODY_SECONDS):
                        await read_bounded(response, MAX_ANSWER)
        except TransportError as error:  # it names the host, and no path
            return Attempt(detail=str(error))
        return Attempt(
            taken=200 <= status < 300, gone=status == _GONE, retry_after=pause, detail=f"status {status}"
        )

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _session(self) -> aiohttp.ClientSession:
        """The session of all attempts, made in the loop that sends."""
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=Connector(ssl=self._tls, force_close=True),  # a kept one may be dead
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "companion-push", "Accept-Encoding": "identity"},
                auto_decompress=False,  # no decompression bombs
                trace_configs=[tracing()],
            )
        return self._opened
