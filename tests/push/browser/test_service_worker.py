"""The example's service worker in Chromium: it shows what the relay's channel has sent, and nothing that tells whose it is.

Chromium subscribes at its vendor's push service only, which tests do not reach. So the subscription is made here, by the
page's own call of `PushManager.subscribe`; the push goes through the channel to the tests' service, which decrypts it; and
the DevTools protocol hands the worker the plaintext. The browser's own decryption (RFC 8291) is not tried:
tests/interop/test_web_push.py has another implementation decrypt instead.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from certificates import Certificate
from playwright.async_api import Browser, CDPSession, Page, expect

from companion_push.push.channel import Purpose, Push, PushOutcome, WebPush
from companion_push.push.endpoints import EndpointRules
from companion_push.push.vapid import VapidKey
from companion_push.push.web_push import WebPushChannel
from headless_passkey.text.base64url import from_base64url
from http_serving.addresses import network
from program_parts.base64url import base64url
from tests.push.receiver import Receiver, Subscription, receiving
from tests.rp.browser import visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLE = Path(__file__).parents[3] / "examples" / "web-push"
REQUEST = "cmVxdWVzdCdzIGlkICAgLg"
HANDLE = "aGFuZGxlIG9mIGl0LiAgLg"
# the notifications, as soon as one is of that key; null when none is for a while
SHOWN = """async (key) => {
    const registration = await navigator.serviceWorker.ready;
    for (let tries = 0; tries < 200; tries += 1) {
        const shown = await registration.getNotifications();
        if (shown.some(({ data }) => data.key === key))
            return shown.map(({ title, body, tag, silent, data }) => ({ title, body, tag, silent, data }));
        await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return null;
}"""
# in place of the vendor's push service
SUBSCRIBING = """
PushManager.prototype.subscribe = async (options) => {
    document.documentElement.dataset.options = JSON.stringify(options);
    return { toJSON: () => (%s) };
};
"""


class Phone:
    """A browser with the example's page, at the end of a channel."""

    def __init__(self, page: Page, cdp: CDPSession, registration: str) -> None:
        self.page, self._cdp, self._registration = page, cdp, registration

    async def receives(self, text: str, key: str) -> list[dict[str, Any]]:
        """Hand a push's plaintext to the worker, as the browser does; the notifications, once one is of this key.

        The protocol does not tell whether the worker got it, and now and then it does not: so it is handed over again,
        as push services may do too.
        """
        origin = await self.page.evaluate("location.origin")
        delivery = {"origin": origin, "registrationId": self._registration, "data": text}
        shown = None
        while shown is None:
            await self._cdp.send("ServiceWorker.deliverPushMessage", delivery)
            shown = await self.page.evaluate(SHOWN, key)
        return list(shown)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(loopback_certificate: Certificate) -> AsyncIterator[Browser]:
    async with visitor.chromium(loopback_certificate) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def there(loopback_certificate: Certificate) -> AsyncIterator[Receiver]:
    async with receiving(loopback_certificate) as receiver:
        yield receiver
    assert receiver.wrong == []


@asynccontextmanager
async def opened(browser: Browser, subscription: Subscription, locale: str = "en-GB") -> AsyncIterator[Phone]:
    """The example's page, whose worker is active."""
    app = web.Application()
    app.router.add_static("/", EXAMPLE)
    async with TestServer(app, host="127.0.0.1") as server:
        context = await browser.new_context(permissions=["notifications"], locale=locale)
        address = subscription.address
        keys = {"p256dh": base64url(address.p256dh), "auth": base64url(address.auth)}
        made = json.dumps({"endpoint": address.endpoint, "expirationTime": None, "keys": keys})
        await context.add_init_script(SUBSCRIBING % made)
        page = await context.new_page()
        cdp = await context.new_cdp_session(page)
        activated: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def heard(told: dict[str, Any]) -> None:
            for version in told["versions"]:
                if version["status"] == "activated" and not activated.done():
                    activated.set_result(version["registrationId"])

        cdp.on("ServiceWorker.workerVersionUpdated", heard)
        await cdp.send("ServiceWorker.enable")
        await page.goto(f"http://localhost:{server.port}/index.html")
        registration = await activated
        try:
            yield Phone(page, cdp, registration)
        finally:
            await context.close()


def push(purpose: Purpose) -> Push:
    return Push(
        purpose=purpose,
        handle=HANDLE,
        account=b"account's secret",
        expires_at=time.time() + 300,
        request_id=REQUEST if purpose in (Purpose.REQUEST, Purpose.DISMISS) else None,
    )


@pytest.mark.threat("T8")
async def test_a_push_becomes_a_notification_of_a_fixed_text(
    chromium: Browser, there: Receiver, loopback_certificate: Certificate
) -> None:
    key, subscription = VapidKey.generate(), there.subscribe()
    rules = EndpointRules(hosts=[f"localhost:{there.port}"], networks=[network("127.0.0.0/8")])
    tls = loopback_certificate.client_context()
    channel = WebPushChannel(key, contact="mailto:push@example.com", rules=rules, tls=tls)
    async with opened(chromium, subscription) as phone:
        await phone.page.get_by_label("VAPID key").fill(key.public)
        await phone.page.get_by_role("button", name="Subscribe").click()
        output = phone.page.locator("output")
        await expect(output).to_contain_text("web-push")
        told = json.loads(await output.inner_text())
        assert told.pop("kind") == "web-push"
        options = json.loads(await phone.page.evaluate("document.documentElement.dataset.options"))
        assert options == {"userVisibleOnly": True, "applicationServerKey": key.public}

        address = WebPush(
            endpoint=told["endpoint"],
            p256dh=from_base64url(told["p256dh"]),
            auth=from_base64url(told["auth"]),
        )
        for purpose, title, body in (
            (
                Purpose.REQUEST,
                "Sign-in request",
                "A device asks for your passkey. Open the app to see which.",
            ),
            (Purpose.DISMISS, "Sign-in request", "This request is over."),
        ):
            assert (await channel.send(address, push(purpose))).outcome is PushOutcome.SENT
            text = subscription.decrypt(there.received[-1].body).decode()
            assert await phone.receives(text, purpose) == [
                {
                    "title": title,
                    "body": body,
                    "tag": REQUEST,
                    "silent": purpose is Purpose.DISMISS,
                    "data": {"key": purpose, "handle": HANDLE, "request": REQUEST},
                }
            ]
        assert len({len(received.body) for received in there.received}) == 1
    await channel.close()


@pytest.mark.threat("T8")
async def test_who_opens_a_notification_gets_to_the_app_and_to_nothing_that_a_push_names(
    chromium: Browser,
) -> None:
    """Focusing and opening need a person's act, which a test has not: the two calls are noted instead."""
    async with opened(chromium, Subscription("https://push.example/x")) as phone:
        content = {**push(Purpose.REQUEST).content, "url": "https://evil.example"}
        await phone.receives(json.dumps(content), "request")
        (worker,) = phone.page.context.service_workers
        called = await worker.evaluate("""async () => {
            const called = [];
            WindowClient.prototype.focus = async function () { called.push("focus " + new URL(this.url).pathname); };
            const [notification] = await self.registration.getNotifications();
            const ended = new Promise((resolve) => {
                const event = new NotificationEvent("notificationclick", { notification });
                event.waitUntil = (work) => resolve(work);
                self.dispatchEvent(event);
            });
            await ended;
            return [...called, (await self.registration.getNotifications()).length];
        }""")
        assert called == ["focus /index.html", 0]


WHATEVER = (
    "",
    "no JSON",
    "[]",
    "null",
    "5",
    '{"purpose":"constructor"}',
    '{"purpose":"newer"}',
    '{"purpose":["request"]}',
)
CLOSED = """async () => {
    const registration = await navigator.serviceWorker.ready;
    for (const one of await registration.getNotifications()) one.close();
    while ((await registration.getNotifications()).length) await new Promise((resolve) => setTimeout(resolve, 10));
}"""


@pytest.mark.threat("T12")
async def test_whatever_comes_shows_one_of_the_fixed_texts(chromium: Browser) -> None:
    async with opened(chromium, Subscription("https://push.example/x")) as phone:
        for text in WHATEVER:
            (shown,) = await phone.receives(text, "other")
            assert (shown["title"], shown["body"]) == (
                "Companion",
                "Something waits for you. Open the app.",
            ), text
            await phone.page.evaluate(CLOSED)


async def test_each_purpose_has_a_text_in_each_language(chromium: Browser) -> None:
    async with opened(chromium, Subscription("https://push.example/x"), locale="de-DE") as phone:
        seen = set()
        for purpose in Purpose:
            shown = await phone.receives(json.dumps(push(purpose).content), purpose)
            seen |= {one["body"] for one in shown if one["data"]["key"] == purpose}
        assert "Diese Anfrage ist vorbei." in seen
        assert len(seen) == len(Purpose)
