"""A relay whose calls meet name servers that never answer ends as it always does; the programs run as they are."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from companion_push.push.vapid import VapidKey
from headless_passkey.text.base64url import base64url
from tests.dead_names import dead_names
from tests.programs import running
from tests.push.receiver import Subscription
from tests.relay.account_service import new_secret
from tests.relay.household import fresh_id
from tests.relay.stores import place_of
from tests.relay.test_channels import handle
from tests.relay.test_killed_before_the_push import ProgramRelay

PATIENCE = 60.0  # seconds, a safety net: a lookup that is waited for does not end at all


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_relay_ends_while_push_services_and_webhook_are_looked_up(loop: str, tmp_path: Path) -> None:
    VapidKey.generate().write(tmp_path / "vapid.pem")
    (tmp_path / "secret").write_text(new_secret())
    (tmp_path / "secret").chmod(0o600)
    store = tmp_path / "relay.sqlite3"
    words = ("relay", "--listen", "127.0.0.1:0", "--store", str(place_of(store)), "--event-loop", loop)
    pushing = ("--vapid-key", tmp_path / "vapid.pem", "--vapid-contact", "mailto:push@example.com")
    names = (
        *("--web-push-host", "listed.dead.example", "--web-push-host", "*.dead.example"),
        *("--webhook", "https://hooks.dead.example", "--webhook-secret", tmp_path / "secret"),
    )
    async with (
        running("companion_push", *words, *pushing, *names, environment=dead_names()) as program,
        aiohttp.ClientSession() as session,
        asyncio.timeout(PATIENCE),
    ):
        relay = ProgramRelay(await program.line(), session, store)
        home = await relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        for number, host in enumerate(("listed", "below")):
            address = Subscription(f"https://{host}.dead.example/push").address
            keys = {"p256dh": base64url(address.p256dh), "auth": base64url(address.auth)}
            body = {"kind": "web-push", "endpoint": address.endpoint, **keys}
            assert (await anna.put(f"/v1/channels/{handle(number)}", body)).status == 201
        assert (await frame.submit(anna, bert, name=fresh_id())).status == 201
        for host in ("listed", "below"):
            await program.heard(f"looking up {host}.dead.example\n")
        assert (await anna.put(f"/v1/mutes/{frame.name}", {})).status == 201
        await program.heard("looking up hooks.dead.example\n")
        assert await program.end() == 0
