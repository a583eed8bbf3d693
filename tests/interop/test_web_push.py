"""Web Push, compared with Node.js's web-push, http_ece and jws: each decrypts and verifies what the other has made."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession, TCPConnector
from certificates import Certificate
from cryptography.hazmat.primitives.asymmetric import ec

from companion_push.push.channel import Purpose, Push, PushOutcome
from companion_push.push.endpoints import EndpointRules
from companion_push.push.message_encryption import encrypt
from companion_push.push.vapid import VapidKey
from companion_push.push.web_push import WebPushChannel
from headless_passkey.text.base64url import from_base64url
from http_serving.addresses import network
from program_parts.base64url import base64url
from tests.push.receiver import Received, Subscription, receiving

FOLDER = Path(__file__).parent


class Node:
    """The libraries in a process of Node.js."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, call: str, **options: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = json.dumps(
            {"call": call, "options": options}, default=lambda data: {"$bytes": base64url(data)}
        )
        self._process.stdin.write(question.encode() + b"\n")
        answer = json.loads(await self._process.stdout.readline())
        assert "error" not in answer, answer
        value = answer["value"]
        return from_base64url(value["$bytes"]) if isinstance(value, dict) and "$bytes" in value else value


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    installed = FOLDER / "node_modules" / "web-push"
    assert installed.exists(), "web-push is not here; please run: scripts/install-test-packages"
    process = await asyncio.create_subprocess_exec(
        "node", FOLDER / "push.mjs", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    try:
        yield Node(process)
    finally:
        process.stdin.close()
        await process.stdin.wait_closed()
        await process.wait()


def number(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


@pytest.mark.parametrize("size", [0, 60, 192], ids=["unpadded", "some padding", "as it is sent"])
async def test_both_make_the_same_bytes_of_the_same_keys(node: Node, size: int) -> None:
    there, sender = Subscription("https://push.example/x"), ec.generate_private_key(ec.SECP256R1())
    plaintext, salt = b'{"v":"1","purpose":"request"}', bytes(range(16))
    ours = encrypt(
        plaintext, p256dh=there.key.public_key(), auth=there.auth, size=size, key=sender, salt=salt
    )
    theirs = await node.ask(
        "encrypt",
        plaintext=plaintext,
        dh=there.address.p256dh,
        auth=there.auth,
        privateKey=number(sender),
        salt=salt,
        pad=max(0, size - len(plaintext)),
    )
    assert ours == theirs


async def test_they_decrypt_and_verify_what_is_sent(node: Node, loopback_certificate: Certificate) -> None:
    key = VapidKey.generate()
    async with receiving(loopback_certificate) as there:
        rules = EndpointRules(hosts=[f"localhost:{there.port}"], networks=[network("127.0.0.0/8")])
        channel = WebPushChannel(
            key, contact="mailto:push@example.com", rules=rules, tls=loopback_certificate.client_context()
        )
        subscription, now = there.subscribe(), time.time()
        push = Push(
            purpose=Purpose.REQUEST,
            handle="aGFuZGxlIG9mIGl0LiAgLg",
            account=bytes(16),
            expires_at=now + 300,
            request_id="cmVxdWVzdCdzIGlkICAgLg",
        )
        assert (await channel.send(subscription.address, push)).outcome is PushOutcome.SENT
        await channel.close()
        assert there.wrong == []
        (received,), origin = there.received, there.origin
    said = await node.ask(
        "decrypt", body=received.body, auth=subscription.auth, privateKey=number(subscription.key)
    )
    assert json.loads(said) == push.content
    token = received.headers["Authorization"].removeprefix("vapid t=").partition(",")[0]
    claims = await node.ask("verify", token=token, key=from_base64url(key.public))
    assert claims["aud"] == origin
    assert claims["sub"] == "mailto:push@example.com"
    assert now < claims["exp"] <= now + 86_400
    assert await node.ask("verify", token=token, key=from_base64url(VapidKey.generate().public)) is None


async def test_the_tests_own_service_takes_and_decrypts_what_they_send(
    node: Node, loopback_certificate: Certificate
) -> None:
    """So the service is no mirror of the module that it tests."""
    keys = await node.ask("generateKeys")
    received = await sent_by_node(node, loopback_certificate, keys)
    assert received.key == from_base64url(keys["publicKey"])
    assert (received.ttl, received.headers["Topic"]) == (60, "dG9waWM")


async def sent_by_node(node: Node, certificate: Certificate, keys: dict[str, str]) -> Received:
    async with receiving(certificate) as there:
        subscription = there.subscribe()
        request = await node.ask(
            "request",
            subscription={
                "endpoint": subscription.endpoint,
                "keys": {
                    "p256dh": base64url(subscription.address.p256dh),
                    "auth": base64url(subscription.auth),
                },
            },
            payload="from another encryptor",
            options={
                "vapidDetails": {"subject": "mailto:push@example.com", **keys},
                "TTL": 60,
                "urgency": "high",
                "topic": "dG9waWM",
                "contentEncoding": "aes128gcm",
            },
        )
        headers = {name: str(value) for name, value in request["headers"].items()}
        body = from_base64url(request["body"]["$bytes"])
        connector = TCPConnector(ssl=certificate.client_context())
        async with (
            ClientSession(connector=connector, skip_auto_headers=["User-Agent"]) as http,
            http.post(request["endpoint"], data=body, headers=headers) as answer,
        ):
            assert (answer.status, there.wrong) == (201, [])
        (received,) = there.received
        assert subscription.decrypt(received.body) == b"from another encryptor"
        return received
