"""The relay as a program, a real push service, and a kill between the submission and the push: the push still goes out."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from certificates import Certificate

from companion_push.push.vapid import VapidKey
from program_parts.base64url import base64url
from tests.companion.program import Program, running
from tests.push.receiver import Receiver, Reply, receiving
from tests.relay.household import Caller, Clock, Household, Relay, fresh_id
from tests.relay.stores import ON_POSTGRES, place_of, query
from tests.relay.test_channels import handle
from tests.trust.people import Person

SOON = 60.0  # seconds, a safety net


class ProgramRelay(Relay):
    """The people of a relay that is a process of its own."""

    def __init__(self, url: str, session: aiohttp.ClientSession, store: Path) -> None:
        self.url, self.session, self.store, self.clock = url, session, store, Clock()
        self.place = place_of(store)

    def caller(self, person: Person) -> Caller:
        return Caller(person, self.session, self.url, self.clock)

    def again(self, home: Household) -> Household:
        """The same members, who call this relay."""
        return Household(
            account=home.account,
            ring=home.ring,
            companions=[self.caller(caller.person) for caller in home.companions],
            devices=[self.caller(caller.person) for caller in home.devices],
        )


def pushed(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What has become of the pushes for a request, without those companions that could only be waiting at their inboxes."""
    return [each for each in status["notified"] if each["channel"] != "inbox"]


@asynccontextmanager
async def started(
    tmp_path: Path, service: Receiver, roots: Path
) -> AsyncIterator[tuple[Program, ProgramRelay]]:
    store = tmp_path / "relay.sqlite3"
    words = [
        *(
            "relay",
            "--listen",
            "127.0.0.1:0",
            "--store",
            str(place_of(store)),
            "--vapid-key",
            tmp_path / "vapid.pem",
        ),
        *("--vapid-contact", "mailto:push@example.com", "--web-push-host", f"localhost:{service.port}"),
        *("--web-push-network", "127.0.0.0/8", "--web-push-network", "::1/128", "--web-push-ca", roots),
    ]
    async with running(*words) as program, aiohttp.ClientSession() as session:
        yield program, ProgramRelay(await program.line(), session, store)


@pytest.mark.threat("T5")
async def test_a_push_goes_out_though_the_relay_was_killed_before_it(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    VapidKey.generate().write(tmp_path / "vapid.pem")
    name = fresh_id()
    async with receiving(loopback_certificate) as service:
        subscription = service.subscribe()
        address = subscription.address
        async with started(tmp_path, service, loopback_certificate.ca) as (program, relay):
            home = await relay.household()
            (anna, bert), (frame,) = home.companions, home.devices
            body = {
                "kind": "web-push",
                "endpoint": address.endpoint,
                "p256dh": base64url(address.p256dh),
                "auth": base64url(address.auth),
            }
            assert (await anna.put(f"/v1/channels/{handle()}", body)).status == 201
            service.reply = Reply(silent=True)  # so the push is under way for as long as the test wants
            assert (await frame.submit(anna, bert, name=name)).status == 201
            async with asyncio.timeout(SOON):
                await service.arrived.wait()
            assert [each["outcome"] for each in pushed(await frame.status(name))] == ["pending"]
            program.process.kill()
            await program.process.wait()
        assert service.received == []
        service.reply = Reply()
        if ON_POSTGRES:  # whose push is that of the relay which is gone for some seconds more
            query(place_of(tmp_path / "relay.sqlite3"), "UPDATE pushes SET taken_until = 0")
        async with started(tmp_path, service, loopback_certificate.ca) as (program, relay):
            (anna, _), (frame,) = relay.again(home).companions, relay.again(home).devices
            async with asyncio.timeout(SOON):
                version = 0
                while True:
                    status = (await frame.get(f"/v1/requests/{name}?version={version}&wait=20")).body
                    if pushed(status)[0]["outcome"] != "pending":
                        break
                    version = status["version"]
            assert pushed(status) == [{"to": anna.name, "channel": "web-push", "outcome": "sent"}]
            (push,) = service.received
            assert json.loads(subscription.decrypt(push.body)) == {
                "v": "1",
                "purpose": "request",
                "handle": handle(),
                "request": name,
            }
            assert 0 < push.ttl <= status["expires_at"] - int(time.time()) + 5
            assert [item["id"] for item in await anna.inbox()] == [name]
            program.terminate()
            assert await program.ended() == 0
        assert service.wrong == []
