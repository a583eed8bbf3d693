"""Web Push from a request to the app: a relay with its own channel, and a service over TLS that decrypts what it takes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate

from companion_push.push.endpoints import EndpointRules
from companion_push.push.vapid import VapidKey
from companion_push.push.web_push import WebPushChannel
from http_serving.addresses import network
from program_parts.base64url import base64url
from tests.programs import run, running
from tests.push.receiver import Received, Receiver, Reply, Subscription, receiving
from tests.relay.household import Caller, Relay, fresh_id, running_relay

HANDLES = [base64url(bytes([number]) * 16) for number in (1, 2)]


@asynccontextmanager
async def pushing(
    store: Path, there: Receiver, certificate: Certificate, *hosts: str
) -> AsyncIterator[Relay]:
    channel = WebPushChannel(
        VapidKey.generate(),
        contact="mailto:push@example.com",
        rules=EndpointRules(hosts=hosts, networks=[network("127.0.0.0/8")]),
        tls=certificate.client_context(),
    )
    async with running_relay(store / "relay.sqlite3", channels=[channel]) as relay:
        yield relay
    assert there.wrong == []


def body_of(subscription: Subscription) -> dict[str, str]:
    address = subscription.address
    keys = {"p256dh": base64url(address.p256dh), "auth": base64url(address.auth)}
    return {"kind": "web-push", "endpoint": address.endpoint, **keys}


def said(subscription: Subscription, received: Received) -> dict[str, Any]:
    assert subscription.endpoint.endswith(received.path)
    return dict(json.loads(subscription.decrypt(received.body)))


async def outcomes(device: Caller, name: str) -> set[str]:
    """What has become of the pushes for a request, when none is under way."""
    version = 0
    while True:
        status = (await device.get(f"/v1/requests/{name}?version={version}&wait=20")).body
        found = {each["outcome"] for each in status["notified"]}
        if "pending" not in found:
            return found
        version = status["version"]


async def test_a_request_wakes_a_browser_and_a_claim_elsewhere_dismisses_it(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    async with (
        receiving(loopback_certificate) as there,
        pushing(tmp_path, there, loopback_certificate, f"localhost:{there.port}") as relay,
    ):
        home = await relay.household()
        anna, bert, frame = *home.companions, *home.devices
        subscription, name = there.subscribe(), fresh_id()
        registered = await anna.put(f"/v1/channels/{HANDLES[0]}", body_of(subscription))
        assert registered.status == 201, registered
        assert (await frame.submit(anna, bert, name=name)).status == 201
        (woken,) = await there.took(1)
        assert said(subscription, woken) == {
            "v": "1",
            "purpose": "request",
            "handle": HANDLES[0],
            "request": name,
        }
        assert 0 < woken.ttl <= 300
        assert await outcomes(frame, name) == {"sent"}
        assert (await bert.act(frame, name, "claimed")).status == 200
        (_, dismissed) = await there.took(2)
        assert said(subscription, dismissed)["purpose"] == "dismiss"
        assert len(dismissed.body) == len(woken.body)
        assert dismissed.headers["Topic"] == woken.headers["Topic"]


async def test_a_subscription_that_has_ended_goes_and_the_device_hears_that_nobody_was_notified(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    async with (
        receiving(loopback_certificate) as there,
        pushing(tmp_path, there, loopback_certificate, f"localhost:{there.port}") as relay,
    ):
        home = await relay.household()
        anna, frame, name = home.companions[0], home.devices[0], fresh_id()
        await anna.put(f"/v1/channels/{HANDLES[0]}", body_of(there.subscribe()))
        there.reply = Reply(status=410)
        assert (await frame.submit(anna, name=name)).status == 201
        assert await outcomes(frame, name) == {"gone"}
        assert (await anna.get("/v1/channels")).body["channels"] == []


@pytest.mark.threat("T13")
async def test_the_relay_takes_no_endpoint_that_its_operator_has_not_listed(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    async with (
        receiving(loopback_certificate) as there,
        pushing(tmp_path, there, loopback_certificate, "ntfy.example") as relay,
    ):
        (anna, _) = (await relay.household()).companions
        for endpoint in (
            there.subscribe().endpoint,
            f"https://127.0.0.1:{there.port}/push/x",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/x",
        ):
            body = body_of(there.subscribe()) | {"endpoint": endpoint}
            refused = await anna.put(f"/v1/channels/{HANDLES[0]}", body)
            assert refused.problem == "unsupported-channel", endpoint
            assert endpoint not in json.dumps(refused.body)
        offers = (await anna.get("/v1/channels")).body["offers"]
        assert len(offers["web-push"]["vapid_key"]) == 87
        assert not there.arrived.is_set()


@pytest.mark.threat("T11")
async def test_an_operator_and_a_companion_set_it_up_by_commands(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    """As docs/how-to/push.md says; the endpoint is in no line of either program, and the key is the one that was printed."""
    state, store, key = tmp_path / "companion", tmp_path / "store" / "relay.sqlite3", tmp_path / "vapid.pem"
    store.parent.mkdir(mode=0o700)
    status, public, _ = await run("companion_push", "push", "keys", key)
    assert status == 0
    async with receiving(loopback_certificate) as there:
        options = ("--vapid-key", key, "--vapid-contact", "mailto:push@example.com")
        where = ("--web-push-host", f"localhost:{there.port}", "--web-push-network", "127.0.0.0/8")
        trust = ("--web-push-ca", loopback_certificate.ca)
        listen = ("--listen", "127.0.0.1:0", "--store", store, "--log-level", "debug")
        async with running("companion_push", "relay", *listen, *options, *where, *trust) as relay:
            url = await relay.line()
            _, code, _ = await run(
                "companion_push", "account", "add", "anna", "--relay", url, "--store", store
            )
            (tmp_path / "code").write_text(code)
            mine = ("--state", state)
            joined = await run(
                "companion_push",
                "companion",
                "join",
                "--code",
                tmp_path / "code",
                "--label",
                "Browser",
                *mine,
            )
            assert joined[0] == 0, joined
            subscription = there.subscribe()
            (tmp_path / "subscription.json").write_text(json.dumps(body_of(subscription)))
            status, handle, heard = await run(
                "companion_push", "companion", "channel", "add", tmp_path / "subscription.json", *mine
            )
            assert status == 0, heard
            status, listed, _ = await run("companion_push", "companion", "channel", "list", "--json", *mine)
            assert json.loads(listed)["offers"]["web-push"] == {"vapid_key": public.strip()}
            status, tested, heard = await run("companion_push", "push", "test", *mine)
            assert (status, heard) == (0, "")
            assert tested.split() == [handle.strip(), "web-push", "sent"]
            assert await relay.end() == 0
            log = await relay.stderr()
        assert there.wrong == []
        (received,) = there.received
    assert said(subscription, received) == {"v": "1", "purpose": "test", "handle": handle.strip()}
    secrets = (subscription.endpoint.rpartition("/")[2], base64url(subscription.auth))
    for text in (log, tested, listed):
        assert not any(secret in text for secret in secrets)
