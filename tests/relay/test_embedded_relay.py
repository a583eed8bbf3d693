"""The relay in a service with users and a push client of its own: `examples/embedded_relay.py`, with real companions."""

import asyncio
import runpy
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from companion_push.companion.founding import found_by_sign_in
from companion_push.companion.keys import CompanionState, KeyPair
from companion_push.companion.relay_client import CompanionRelay
from companion_push.serving.http_server import Runner
from headless_passkey.errors import EnrolmentReason, NotEnrolled
from program_parts.base64url import base64url
from tests.ports import reserved_port
from tests.programs import ROOT
from tests.relay.household import Caller, Clock, fresh_id
from tests.trust.people import Person, companion, device, found, grow


async def test_a_service_with_users_and_a_push_client_mounts_the_relay(tmp_path: Path) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "embedded_relay.py"))
    users = example["Users"](
        {"17": "anna", "18": "bob"}, {"hers": ("17", int(time.time())), "his": ("18", 1)}
    )
    client = example["FcmClient"]()
    url = f"http://127.0.0.1:{reserved_port()}"
    service = example["make_service"](url, tmp_path / "s", users, client)
    runner = Runner(service, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", int(url.rpartition(":")[2])).start()
        state = CompanionState(tmp_path / "bob")

        async def token(_relay: CompanionRelay, _keys: KeyPair) -> str:
            return "his"

        identity = await found_by_sign_in(state, f"{url}/push", label="phone", token=token)
        assert state.chain().head.account_name == "bob"
        async with aiohttp.ClientSession() as session:
            # anna's phone, her frame, and a push for what it asks
            phone = Caller(companion(), session, f"{url}/push", Clock())
            ring = found(phone.person, account_name="anna", now=time.time())
            frame = Caller(Person(device().role, "frame"), session, f"{url}/push", Clock())
            founding = {"token": "hers", "ring": base64url(ring.document)}
            assert (await phone.post("/v1/accounts", founding)).status == 201
            grown = grow(ring, phone.person, phone.person, frame.person, now=time.time())
            assert (await phone.post("/v1/ring", {"ring": base64url(grown.document)})).status == 201
            where = base64url(bytes(16))
            address = {"kind": "fcm", "app": "our-app", "token": "a-token"}
            assert (await phone.put(f"/v1/channels/{where}", address)).status == 201
            name = fresh_id()
            assert (await frame.submit(phone, name=name)).status == 201
            async with asyncio.timeout(20):
                status = await frame.status(name)
                while status["notified"][0]["outcome"] == "pending":
                    path = f"/v1/requests/{name}?version={status['version']}&wait=20"
                    status = (await frame.get(path)).body
            assert status["notified"][0]["outcome"] == "sent"
            pushed = client.sent[-1]
            assert (pushed["purpose"], pushed["handle"], pushed["request"]) == ("request", where, name)

            async with session.delete(f"{url}/users/18") as response:
                assert response.status == 204
            async with CompanionRelay.connect(f"{url}/push", identity.keys.signing, tls=None) as bobs:
                with pytest.raises(NotEnrolled) as caught:
                    await bobs.inbox(cursor=None, wait=0)
            assert caught.value.reason is EnrolmentReason.ACCOUNT_CLOSED
            assert "his" not in users.sessions
            assert (await phone.get("/v1/ring")).status == 200
    finally:
        await runner.cleanup()
