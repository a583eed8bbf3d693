"""Requests and openings for a page that a test asks by itself."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from companion_push.companion.inbox import CheckedRequest
from companion_push.companion.openers import Opening
from companion_push.companion.phone import Announced
from companion_push.companion.wording import known_as
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import RequestKind
from tests.companion.test_consent import checked
from tests.trust.people import Home


def request(label: str = "Kitchen hub", **changes: Any) -> CheckedRequest:
    """What a device of that label asks for now. label: not checked, as what is shown does not rely on it."""
    home, now = Home(), int(time.time())
    url = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=now).url.encode()
    said = home.say(rp_name="Example Inc", now=now, confirmed=now, url=url)
    asked = checked(replace(said, **changes), home.frame.member)
    object.__setattr__(asked.device, "label", label)
    return replace(asked, known_as=known_as(asked.device, [asked.device]))


def opening(asked: CheckedRequest) -> Opening:
    """The same request after a yes."""
    said = asked.announcement
    return Opening(
        url=said.url,
        device=asked.known_as,
        announced=Announced(kind=said.kind, rp_id=said.rp_id),
        seconds=300,
        over=asyncio.Event(),
    )
