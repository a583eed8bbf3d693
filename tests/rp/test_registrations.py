"""What strangers who register make the relying party keep: canonical, bounded, limited for each neighbourhood, and not for ever."""

import json
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from fido2 import cbor
from yarl import URL

from relying_party.core.credentials import MAX_PASSKEYS, MAX_SESSIONS, NEVER_USED_SECONDS
from relying_party.errors import Check
from relying_party.http import app
from relying_party.store import sql
from tests.programs import running
from tests.rp.authenticator_double import (
    NO_FAULTS,
    EdDSAKey,
    ES256Key,
    Faults,
    Key,
    RS256Key,
    attest,
    b64,
    create,
    unb64,
)
from tests.rp.clients import Browser, Device, Site, Who

DAY = 86400
KEYS: dict[str, type[Key]] = {"ES256": ES256Key, "EdDSA": EdDSAKey, "RS256": RS256Key}


def object_of(response: dict[str, Any]) -> bytes:
    return unb64(response["response"]["attestationObject"])


@pytest.mark.threat("T17")
@pytest.mark.parametrize("make", KEYS.values(), ids=KEYS)
async def test_what_a_client_pads_a_registration_with_is_not_kept(site: Site, make: type[Key]) -> None:
    who, key = Device(), make()
    ceremony, options = await site.begin(who, "registration", user_name="ada")
    passkey, plain = create(options, who.client_origin, key=key)
    padded_key = {**key.cose(), 2: bytes(9000), 4: [1] * 900, -70000: b"x"}
    padding = Faults(cose_key=padded_key, signed_outputs={"padding": "x" * 9000})
    padded = attest(passkey, options, who.client_origin, padding)
    members: dict[Any, Any] = dict(cast("dict[Any, Any]", cbor.decode(object_of(padded))))
    statement = {"alg": -7, "sig": b"not looked at", "x5c": [bytes(3000)]}
    members |= {"fmt": "packed", "attStmt": statement, "own": bytes(500)}
    padded["response"]["attestationObject"] = b64(cbor.encode(members))
    assert len(object_of(padded)) > 20_000
    assert len(object_of(plain)) < 900
    answer = await site.finish(who, "registration", ceremony, padded)
    assert answer.status == 201, answer.body
    kept = await site.state.store.credential(passkey.credential_id, now=site.clock.now)
    assert kept.attestation_object == object_of(plain)
    assert kept.attested_data in object_of(plain)
    assert (await site.sign_in(who, passkey)).status == 200


@pytest.mark.threat("T17")
@pytest.mark.parametrize(
    ("make", "label"),
    [(ES256Key, -2), (ES256Key, -3), (RS256Key, -1), (RS256Key, -2)],
    ids=["x", "y", "modulus", "exponent"],
)
async def test_a_key_with_leading_zeros_is_refused(
    site: Site, make: type[Key], label: int, caplog: pytest.LogCaptureFixture
) -> None:
    key = make()
    cose = key.cose()
    faults = Faults(cose_key={**cose, label: bytes(5) + cose[label]})
    _, answer = await site.register(Device(), "ada", faults, key=key)
    assert answer.slug == "verification-failed"
    assert f"a ceremony did not verify: {Check.PUBLIC_KEY}" in caplog.messages


@pytest.mark.threat("T17")
async def test_a_user_has_thirty_two_passkeys(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PASSKEYS == 32
    for module in (app, sql):
        monkeypatch.setattr(module, "MAX_PASSKEYS", 2)
    browser = Browser()
    passkey, _ = await site.register(browser, "ada")
    begun = []
    for _ in range(2):
        await site.step_up(browser, passkey, "add-passkey")
        begun.append(await site.begin(browser, "registration", user_name="ada"))
    made = [(ceremony, *create(options, browser.client_origin)) for ceremony, options in begun]
    answers = [
        await site.finish(browser, "registration", ceremony, response) for ceremony, _, response in made
    ]
    second = made[0][1]
    assert [answer.status for answer in answers] == [201, 409]
    assert answers[1].slug == "too-many-passkeys"
    assert (await site.remove_passkey(browser, passkey, second)).status == 200
    await site.add_passkey(browser, passkey)


async def test_a_passkey_too_many_is_refused_before_it_is_made_and_before_the_step_up_is_spent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, path = Browser(), "/webauthn/registration/options"
    passkey, _ = await site.register(browser, "ada")
    await site.add_passkey(browser, passkey)
    await site.step_up(browser, passkey, "add-passkey")
    monkeypatch.setattr(app, "MAX_PASSKEYS", 2)
    answer = await site.send(browser, "POST", path, {"user_name": "ada"})
    assert (answer.status, answer.slug) == (409, "too-many-passkeys")
    monkeypatch.setattr(app, "MAX_PASSKEYS", 3)
    assert (await site.send(browser, "POST", path, {"user_name": "ada"})).status == 200


@pytest.mark.threat("T17")
async def test_of_many_sessions_of_a_user_the_oldest_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_SESSIONS == 100
    monkeypatch.setattr(sql, "MAX_SESSIONS", 3)
    first, devices, stranger = Browser(), [Device() for _ in range(3)], Browser()
    passkey, _ = await site.register(first, "ada")
    await site.register(stranger, "eve")
    for device in devices:
        site.clock.now += 1
        assert (await site.sign_in(device, passkey)).status == 200
    assert (await site.send(first, "GET", "/session")).slug == "not-signed-in"
    left: list[Who] = [*devices, stranger]
    for who in left:
        assert (await site.send(who, "GET", "/session")).status == 200


@pytest.mark.threat("T17")
async def test_an_account_that_was_never_used_goes_after_ninety_days(site: Site) -> None:
    assert NEVER_USED_SECONDS == 90 * DAY
    begun = site.clock.now
    never, _ = await site.register(Browser(), "never")
    used, _ = await site.register(Browser(), "used")
    await site.sign_in(Browser(), used)
    for days, left in ((90 - 1, True), (90, False)):
        site.clock.now = begun + days * DAY
        await site.register(Browser(), f"somebody after {days} days")
        stays = await site.state.store.user_by_name("never", now=site.clock.now)
        assert (stays is not None) is left
    assert (await site.sign_in(Browser(), never)).slug == "verification-failed"
    assert (await site.sign_in(Browser(), used)).status == 200


@pytest.mark.threat("T17")
async def test_an_account_with_a_live_session_stays(site: Site) -> None:
    site.state.config = site.config.__class__.make(
        rp_id="rp.example",
        rp_name=None,
        web_origins=(),
        device_origins=("https://device.rp.example",),
        public_url="https://rp.example",
        store=site.config.store,
        lifetimes=site.config.lifetimes.__class__(session=200 * DAY),
    )
    device = Device()
    passkey, _ = await site.register(device, "hub")
    site.clock.now += 150 * DAY
    await site.register(Browser(), "ada")
    assert (await site.sign_in(device, passkey)).status == 200


async def register(session: aiohttp.ClientSession, base: URL, origin: str, client: str, name: str) -> int:
    """Register a new user through a proxy, as a client at that address; returns the status of the last answer."""
    headers = {"Origin": origin, "X-Forwarded-For": client}
    path = base / "webauthn/registration"
    async with session.post(path / "options", json={"user_name": name}, headers=headers) as answer:
        if answer.status != 200:
            return answer.status
        begun = json.loads(await answer.read())
    _, response = create(begun["publicKey"], origin, NO_FAULTS)
    body = {"ceremony": begun["ceremony"], "response": response}
    async with session.post(path / "result", json=body, headers=headers) as answer:
        return answer.status


@pytest.mark.threat("T17")
async def test_a_neighbourhood_makes_so_many_accounts_a_day_and_keeps_no_other_from_it(
    tmp_path: Path,
) -> None:
    options = ["--listen", "127.0.0.1:0", "--store", str(tmp_path / "s"), "--registrations-per-day", "2"]
    async with running("relying_party", "serve", *options, "--trusted-proxy", "127.0.0.0/8") as program:
        origin = await program.line()
        base = URL(origin).with_host("127.0.0.1")
        clients = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1", "198.51.100.1"]
        async with aiohttp.ClientSession() as session:
            statuses = [
                await register(session, base, origin, client, f"user {number}")
                for number, client in enumerate(clients)
            ]
        assert statuses == [201, 201, 429, 201, 201]
        assert await program.end() == 0
