"""What an operator may switch on: ML-DSA, prf, pages of others, apps; and what conditional mediation changes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer
from cryptography.hazmat.primitives.asymmetric import mldsa
from fido2.cose import CoseKey

from relying_party.config import ANDROID
from relying_party.core.credentials import BackupEligibility
from relying_party.errors import Check
from relying_party.http.app import make_app
from tests.rp.authenticator_double import BS, NO_FAULTS, SYNCED, UP, UV, Faults, b64, create, get, unb64
from tests.rp.clients import DEVICE_ORIGIN, WEB_ORIGIN, Browser, Clock, Device, Site, make_config

EMBEDDER = "https://shop.test"
APP = ANDROID + b64(bytes(32))
Open = Callable[..., AbstractAsyncContextManager[Site]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """A relying party with choices."""

    @asynccontextmanager
    async def opened(**choices: Any) -> AsyncIterator[Site]:
        clock, config = Clock(), make_config(tmp_path / "s", **choices)
        app = make_app(config, clock=clock)
        async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
            yield Site(http=http, app=app, clock=clock, config=config)

    return opened


class MLDSAKey:
    """ML-DSA as COSE writes it: key type AKP, the public key under -1."""

    def __init__(self, algorithm: int) -> None:
        kinds: dict[int, Any] = {
            -48: mldsa.MLDSA44PrivateKey,
            -49: mldsa.MLDSA65PrivateKey,
            -50: mldsa.MLDSA87PrivateKey,
        }
        self._algorithm, self._private = algorithm, kinds[algorithm].generate()

    def cose(self) -> dict[int, Any]:
        return {1: 7, 3: self._algorithm, -1: self._private.public_key().public_bytes_raw()}

    def sign(self, data: bytes) -> bytes:
        return bytes(self._private.sign(data))


@pytest.mark.parametrize("algorithm", [-48, -49, -50])
async def test_ml_dsa_signs_in_where_it_is_switched_on(opened: Open, algorithm: int) -> None:
    async with opened(ml_dsa=True) as site:
        _, options = await site.begin(Browser(), "registration", user_name="ada")
        assert [item["alg"] for item in options["pubKeyCredParams"]] == [-7, -8, -257, -48, -49, -50]
        passkey, answer = await site.register(Browser(), "ada", key=MLDSAKey(algorithm))
        assert answer.status == 201
        assert (await site.state.store.credential(passkey.credential_id, now=2)).algorithm == algorithm
        assert (await site.sign_in(Browser(), passkey)).status == 200
        assert (await site.sign_in(Browser(), passkey, Faults(signature=bytes(2420)))).status == 403


async def test_ml_dsa_is_not_taken_where_it_is_not(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert CoseKey.for_alg(-48).ALGORITHM == -48  # the library would
    _, answer = await site.register(Browser(), "ada", key=MLDSAKey(-48))
    assert answer.slug == "verification-failed"
    assert f"a ceremony did not verify: {Check.ALGORITHM}" in caplog.messages


async def test_a_broken_ml_dsa_key_is_refused_at_registration(opened: Open) -> None:
    async with opened(ml_dsa=True) as site:
        for cose in ({1: 7, 3: -48, -1: bytes(5)}, {1: 2, 3: -48, -1: bytes(1312)}, {1: 7, 3: -48}):
            assert (await site.register(Browser(), "ada", Faults(cose_key=cose)))[
                1
            ].slug == "verification-failed"


async def test_prf_is_asked_for_where_it_is_switched_on(opened: Open) -> None:
    async with opened(prf=True) as site:
        _, options = await site.begin(Browser(), "registration", user_name="ada")
        assert options["extensions"] == {"credProps": True, "prf": {}}
        outputs = {"credProps": {"rk": True}, "prf": {"enabled": True}}
        browser = Browser()
        passkey, answer = await site.register(
            browser, "ada", Faults(client_outputs=outputs, signed_outputs={"hmac-secret": True})
        )
        assert answer.status == 201
        (listed,) = (await site.send(browser, "GET", "/me")).body["credentials"]
        assert (listed["prf"], listed["discoverable"]) == (True, True)
        salts = [
            (await site.begin(Browser(), "authentication"))[1]["extensions"]["prf"]["eval"] for _ in range(2)
        ]
        assert salts[0] == salts[1]
        assert len(unb64(salts[0]["first"])) == 32
        with_prf = Faults(client_outputs={"prf": {}}, signed_outputs={"hmac-secret": bytes(48)})
        assert (await site.sign_in(Browser(), passkey, with_prf)).status == 200
        assert (await site.sign_in(browser, passkey)).status == 200
        ceremony, options = await site.begin(browser, "step-up", operation="add-passkey")
        assert options["extensions"] == {"prf": {"eval": salts[0]}}
        assert (
            await site.finish(browser, "step-up", ceremony, get(passkey, options, WEB_ORIGIN))
        ).status == 200


@pytest.mark.threat("T11")
async def test_what_a_prf_evaluates_to_is_not_kept(opened: Open) -> None:
    secret = b64(b"what only the client may know!!!")
    async with opened(prf=True) as site:
        outputs = {"prf": {"enabled": True, "results": {"first": secret}}}
        passkey, answer = await site.register(Browser(), "ada", Faults(client_outputs=outputs))
        assert answer.status == 201
        outputs = {"prf": {"results": {"first": secret}}}
        assert (await site.sign_in(Browser(), passkey, Faults(client_outputs=outputs))).status == 200
        files = b"".join(path.read_bytes() for path in site.file.parent.iterdir())
        assert secret.encode() not in files
        assert unb64(secret) not in files


@pytest.mark.parametrize(
    ("value", "kept"),
    [({"rk": True}, True), ({"rk": False}, False), ({"rk": 1}, None), ({}, None), (True, None)],
)
async def test_whether_a_passkey_is_discoverable_is_kept_where_the_client_said_so(
    site: Site, value: Any, *, kept: bool | None
) -> None:
    passkey, answer = await site.register(Browser(), "ada", Faults(client_outputs={"credProps": value}))
    assert answer.status == 201
    assert (await site.state.store.credential(passkey.credential_id, now=2)).discoverable is kept


FRAMED: list[tuple[dict[str, Any], bool]] = [
    ({"crossOrigin": True, "topOrigin": EMBEDDER}, True),
    ({"crossOrigin": True, "topOrigin": "https://evil.test"}, False),
    ({"crossOrigin": True, "topOrigin": EMBEDDER + "/"}, False),
    ({"crossOrigin": True, "topOrigin": None}, False),
    ({"crossOrigin": True}, False),
    ({"crossOrigin": False, "topOrigin": EMBEDDER}, False),
    ({"topOrigin": WEB_ORIGIN}, False),
]


@pytest.mark.threat("T14")
@pytest.mark.parametrize(("client_data", "good"), FRAMED, ids=str)
async def test_only_a_page_that_is_configured_may_embed_ours(
    opened: Open, client_data: dict[str, Any], *, good: bool
) -> None:
    async with opened(top_origins=(EMBEDDER,)) as site:
        passkey, _ = await site.register(Browser(), "ada")
        faults = Faults(client_data=client_data)
        assert (await site.sign_in(Browser(), passkey, faults)).status == (200 if good else 403)
        assert (await site.register(Browser(), "bea", faults))[1].status == (201 if good else 403)
        assert (await site.sign_in(Device(), passkey, faults)).status == 403  # a device is in nobody's frame
        policy = (await site.raw("GET", "/", {})).headers["Content-Security-Policy"]
        assert policy.endswith(f"frame-ancestors {EMBEDDER}")


async def _app_registers(site: Site, device: Device, name: str) -> Any:
    ceremony, options = await site.begin(
        device, "registration", user_name=name, client={"kind": "android", "label": "Ada's phone"}
    )
    assert (options["hints"], options["timeout"]) == ([], 300_000)
    passkey, response = create(options, device.client_origin)
    return passkey, await site.finish(device, "registration", ceremony, response)


async def test_an_app_signs_in_with_the_origin_android_writes(opened: Open) -> None:
    async with opened(android_apps=(APP,)) as site:
        device = Device(client_origin=APP)
        passkey, answer = await _app_registers(site, device, "ada")
        assert (answer.status, answer.body["client_kind"]) == (201, "android")
        assert (await site.send(device, "GET", "/session")).body["client_kind"] == "android"
        account = await site.send(device, "GET", "/me")
        assert account.body["sessions"][0]["label"] == "Ada's phone"
        answer = await site.sign_in(device, passkey, client={"kind": "android"})
        assert (answer.status, answer.body["token_type"]) == (200, "DPoP")


@pytest.mark.threat("T14")
async def test_each_kind_of_client_has_its_own_origins(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(android_apps=(APP,)) as site:
        passkey, _ = await site.register(Browser(), "ada")
        android = {"client": {"kind": "android"}}
        for who, begin_with in (
            (Browser(client_origin=APP), {}),
            (Device(client_origin=APP), {}),
            (Device(client_origin=DEVICE_ORIGIN), android),
            (Device(client_origin=WEB_ORIGIN), android),
            (Device(client_origin=ANDROID + b64(bytes(31) + b"\1")), android),
        ):
            caplog.clear()
            assert (await site.sign_in(who, passkey, NO_FAULTS, **begin_with)).slug == "verification-failed"
            assert f"a ceremony did not verify: {Check.ORIGIN}" in caplog.messages


async def test_a_browser_does_not_say_what_it_is(site: Site) -> None:
    for path in ("registration", "authentication"):
        body = {"client": {"label": "x"}} | ({"user_name": "ada"} if path == "registration" else {})
        answer = await site.send(Browser(), "POST", f"/webauthn/{path}/options", body)
        assert answer.slug == "invalid-request"


@pytest.mark.parametrize(
    "client", [{"kind": "web"}, {"kind": 1}, {"more": 1}, {"label": ""}, [], "device"], ids=str
)
async def test_a_client_is_described_as_it_should_be(site: Site, client: Any) -> None:
    answer = await site.send(Device(), "POST", "/webauthn/authentication/options", {"client": client})
    assert answer.slug == "invalid-request"


async def test_a_page_offers_passkeys_while_its_user_types(site: Site) -> None:
    browser = Browser()
    passkey, _ = await site.register(browser, "ada")
    asked = {"mediation": "conditional"}
    answer = await site.send(browser, "POST", "/webauthn/authentication/options", asked)
    assert answer.body["mediation"] == "conditional"
    options = answer.body["publicKey"]
    assert (options["allowCredentials"], options["hints"], options["timeout"]) == ([], [], 900_000)
    site.clock.now += 899
    response = get(passkey, options, WEB_ORIGIN)
    assert (await site.finish(browser, "authentication", answer.body["ceremony"], response)).status == 200


async def test_an_offer_ends_too(site: Site) -> None:
    browser = Browser()
    passkey, _ = await site.register(browser, "ada")
    ceremony, options = await site.begin(browser, "authentication", mediation="conditional")
    site.clock.now += 900
    response = get(passkey, options, WEB_ORIGIN)
    assert (await site.finish(browser, "authentication", ceremony, response)).slug == "ceremony-gone"


async def test_conditional_mediation_is_for_browsers_and_names_nobody(site: Site) -> None:
    path = "/webauthn/authentication/options"
    conditional = {"mediation": "conditional"}
    for who, body in (
        (Device(), conditional),
        (Browser(), {**conditional, "user_name": "ada"}),
        (Browser(), {"mediation": "required"}),
    ):
        assert (await site.send(who, "POST", path, body)).slug == "invalid-request"


GAINED, LOST = (UP | UV, SYNCED), (SYNCED, UP | UV)


@pytest.mark.threat("T14")
@pytest.mark.parametrize(
    ("policy", "flags", "taken"),
    [
        ("fixed", GAINED, False),
        ("fixed", LOST, False),
        ("may-begin", GAINED, True),
        ("may-begin", LOST, False),
        ("may-change", GAINED, True),
        ("may-change", LOST, True),
    ],
    ids=["fixed-gained", "fixed-lost", "begin-gained", "begin-lost", "change-gained", "change-lost"],
)
async def test_a_changed_backup_eligibility_is_for_the_operator_to_judge_and_to_hear_of(
    opened: Open, caplog: pytest.LogCaptureFixture, policy: str, flags: tuple[int, int], *, taken: bool
) -> None:
    async with opened(backup_eligibility=BackupEligibility(policy)) as site:
        device = Device()
        passkey, _ = await site.register(device, "ada", Faults(flags=flags[0]))
        before = await site.state.store.credential(passkey.credential_id, now=2)
        answer = await site.sign_in(device, passkey, Faults(flags=flags[1]))
        stored = await site.state.store.credential(passkey.credential_id, now=2)
        change, outcome = "gained" if flags is GAINED else "lost", "accepted" if taken else "refused"
        assert (
            "a passkey of provider 00112233-4455-6677-8899-aabbccddeeff"
            f" {change} its backup eligibility: {outcome} (the policy is {policy})"
        ) in caplog.messages
        counted = "relying_party_backup_eligibility_changes_total"
        labels = {"change": change, "outcome": outcome}
        assert site.state.metrics.registry.get_sample_value(counted, labels) == 1
        for secret in (b64(passkey.credential_id), passkey.credential_id.hex(), "ada"):
            assert secret not in caplog.text
        if not taken:
            assert (answer.status, answer.slug) == (403, "verification-failed")
            assert set(answer.body) == {"type", "title", "status"}  # the caller is not told which check
            assert stored == before
            return
        assert answer.status == 200
        assert (stored.backup_eligible, stored.backed_up) == (flags is GAINED, flags is GAINED)


async def test_what_a_passkey_became_is_what_it_is_held_to(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(backup_eligibility=BackupEligibility.MAY_BEGIN) as site:
        device = Device()
        passkey, _ = await site.register(device, "ada", Faults(flags=UP | UV))
        assert (await site.sign_in(device, passkey, Faults(flags=SYNCED))).status == 200
        caplog.clear()
        assert (await site.sign_in(device, passkey, Faults(flags=SYNCED))).status == 200
        assert caplog.messages == []
        assert (await site.sign_in(device, passkey, Faults(flags=UP | UV))).slug == "verification-failed"


async def test_a_step_up_follows_the_same_policy(opened: Open) -> None:
    async with opened(backup_eligibility=BackupEligibility.MAY_BEGIN) as site:
        browser = Browser()
        passkey, _ = await site.register(browser, "ada", Faults(flags=UP | UV))
        for flags, status in ((SYNCED, 200), (UP | UV, 403)):
            ceremony, options = await site.begin(browser, "step-up", operation="add-passkey")
            response = get(passkey, options, WEB_ORIGIN, Faults(flags=flags))
            assert (await site.finish(browser, "step-up", ceremony, response)).status == status


@pytest.mark.threat("T14")
@pytest.mark.parametrize("policy", BackupEligibility, ids=str)
async def test_no_policy_lets_a_passkey_be_synced_that_cannot_be(
    opened: Open, policy: BackupEligibility
) -> None:
    async with opened(backup_eligibility=policy) as site:
        passkey, _ = await site.register(Device(), "ada", Faults(flags=UP | UV))
        answer = await site.sign_in(Device(), passkey, Faults(flags=UP | UV | BS))
        assert answer.slug == "verification-failed"
