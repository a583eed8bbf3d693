"""The hook: a signed call by which a linked phone is woken that holds no connection, for instance by its vendor's push service.

It is off unless it is configured. A call is one of `companion_push.serving.webhook`, with a secret of its own, and is made once: its
device waits. Whoever takes it tells the phone, which joins the tunnel as if it had been woken through its websocket.
"""

import json
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from companion_push.serving.webhook import Webhook
from companion_push.serving.webhook_client import WebhookClient
from program_parts.base64url import base64url

HOOK_SECONDS: Final = 5.0  # for the answer
PHONE_CONTACTED: Final = "phone.contacted"


class WakeHook:
    """Calls the hook. Logs and errors hold no ID."""

    def __init__(self, webhook: Webhook, *, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix seconds. `SetupError` for roots that cannot be read."""
        self._client, self._clock = WebhookClient(webhook, clock=clock, seconds=HOOK_SECONDS), clock

    async def wake(
        self, *, contact_id: bytes, routing_id: bytes, tunnel_id: bytes, client_payload: bytes
    ) -> str | None:
        """Have a phone told which tunnel to join; returns None when the call is taken, else why it was not."""
        now = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        members = {
            "contact_id": contact_id,
            "routing_id": routing_id,
            "tunnel_id": tunnel_id,
            "client_payload": client_payload,
        }
        content = {
            "type": PHONE_CONTACTED,
            "timestamp": now.replace("+00:00", "Z"),
            "data": {name: base64url(value) for name, value in members.items()},
        }
        body = json.dumps(content, separators=(",", ":")).encode()
        attempt = await self._client.post(base64url(secrets.token_bytes(16)), body)
        return None if attempt.taken else attempt.detail

    async def close(self) -> None:
        await self._client.close()
