"""The four ceremonies over HTTP: what works, and one case for every check that must refuse."""

import json
import logging
from collections.abc import Callable
from typing import Any

import fido2.utils
import pytest
import webauthn
from fido2.cose import ES256, CoseKey
from fido2.webauthn import AttestedCredentialData

from relying_party.core.callers import Caller, ClientKind
from relying_party.core.ceremonies import Ceremonies, RelyingParty
from relying_party.core.challenges import AuthenticationRecord, Purpose
from relying_party.core.credentials import Credential
from relying_party.core.messages import AuthenticationResponse, parse_authentication_result
from relying_party.errors import Check, VerificationFailed
from tests.rp.authenticator_double import (
    BE,
    BS,
    JSON,
    SYNCED,
    UP,
    UV,
    EdDSAKey,
    ES256Key,
    Faults,
    Key,
    Passkey,
    RS256Key,
    attest,
    b64,
    create,
    get,
    unb64,
)
from tests.rp.clients import DEVICE_ORIGIN, RP_ID, WEB_ORIGIN, Browser, Device, Site, Who


async def test_a_new_user_registers_and_signs_in(site: Site, who: Who) -> None:
    passkey, registered = await site.register(who, "ada")
    assert registered.status == 201
    kind = "device" if isinstance(who, Device) else "web"
    assert set(registered.body) == {
        "token",
        "token_type",
        "expires_at",
        "refresh_token",
        "ends_at",
        "auth_time",
        "user",
        "credential_id",
        "client_kind",
        "audience",
        "signals",
    }
    assert registered.body["client_kind"] == kind
    assert registered.body["token_type"] == ("DPoP" if kind == "device" else "cookie")
    assert (registered.body["token"] is None) is (kind == "web")
    assert registered.body["user"] == {
        "name": "ada",
        "display_name": "ada",
        "handle": b64(passkey.user_handle),
    }
    assert registered.body["expires_at"] > site.clock.now
    assert registered.body["credential_id"] == b64(passkey.credential_id)

    signed_in = await site.sign_in(who, passkey)
    assert signed_in.status == 200
    assert signed_in.body["user"]["name"] == "ada"

    session = await site.send(who, "GET", "/session")
    assert session.status == 200
    tokens = {"token": None, "refresh_token": None}
    assert {**session.body, "signals": signed_in.body["signals"]} == {**signed_in.body, **tokens}
    assert (await site.send(who, "DELETE", "/session")).status == 204
    assert (await site.send(who, "GET", "/session")).slug == "not-signed-in"


async def test_a_user_is_asked_for_by_name_with_their_own_passkeys(site: Site, who: Who) -> None:
    passkey, _ = await site.register(who, "ada")
    _, options = await site.begin(who, "authentication", user_name="ada")
    assert options["allowCredentials"] == [
        {"type": "public-key", "id": b64(passkey.credential_id), "transports": ["hybrid", "internal"]}
    ]
    without_handle = Faults(user_handle=None)
    assert (await site.sign_in(who, passkey, without_handle, user_name="ada")).status == 200


async def test_registration_options_say_what_the_relying_party_wants(site: Site, who: Who) -> None:
    _, options = await site.begin(who, "registration", user_name="ada", display_name="Ada L.")
    assert options["rp"] == {"id": RP_ID, "name": "An Example"}
    assert options["user"]["name"] == "ada"
    assert options["user"]["displayName"] == "Ada L."
    assert len(unb64(options["user"]["id"])) == 32
    assert len(unb64(options["challenge"])) == 32
    assert [item["alg"] for item in options["pubKeyCredParams"]] == [-7, -8, -257]
    assert options["authenticatorSelection"]["residentKey"] == "required"
    assert options["authenticatorSelection"]["requireResidentKey"] is True
    assert options["authenticatorSelection"]["userVerification"] == "required"
    assert options["attestation"] == "none"
    assert options["excludeCredentials"] == []
    assert options["extensions"] == {"credProps": True}
    device = isinstance(who, Device)
    assert options["timeout"] == (600_000 if device else 300_000)
    assert options["hints"][:1] == (["hybrid"] if device else [])


async def test_authentication_options_say_what_the_relying_party_wants(site: Site, who: Who) -> None:
    _, options = await site.begin(who, "authentication")
    assert options["rpId"] == RP_ID
    assert options["userVerification"] == "required"
    assert options["allowCredentials"] == []
    assert len(unb64(options["challenge"])) == 32
    assert "extensions" not in options
    device = isinstance(who, Device)
    assert options["timeout"] == (600_000 if device else 300_000)
    assert options["hints"][:1] == (["hybrid"] if device else [])


async def test_no_two_ceremonies_share_anything(site: Site, who: Who) -> None:
    begun = [await site.begin(who, "registration", user_name="ada") for _ in range(2)]
    assert begun[0][0] != begun[1][0]
    assert begun[0][1]["challenge"] != begun[1][1]["challenge"]
    assert begun[0][1]["user"]["id"] != begun[1][1]["user"]["id"]


@pytest.mark.parametrize("key", [ES256Key, EdDSAKey, RS256Key])
async def test_every_offered_algorithm_works(site: Site, key: type[Key]) -> None:
    passkey, registered = await site.register(Device(), "ada", key=key())
    assert registered.status == 201
    assert (await site.sign_in(Device(), passkey)).status == 200


async def test_another_webauthn_library_accepts_the_same_registration(site: Site) -> None:
    device = Device()
    ceremony, options = await site.begin(device, "registration", user_name="ada")
    passkey, response = create(options, DEVICE_ORIGIN)
    assert (await site.finish(device, "registration", ceremony, response)).status == 201
    verified = webauthn.verify_registration_response(
        credential=json.dumps(response),
        expected_challenge=unb64(options["challenge"]),
        expected_rp_id=RP_ID,
        expected_origin=DEVICE_ORIGIN,
        require_user_verification=True,
    )
    assert verified.credential_id == passkey.credential_id
    stored = await site.state.store.credential(passkey.credential_id, now=2)
    assert verified.aaguid.replace("-", "") == stored.aaguid.hex()
    assert verified.credential_public_key == stored.attested_data[-len(verified.credential_public_key) :]
    assert (verified.credential_backed_up, verified.sign_count) == (stored.backed_up, stored.sign_count)


async def test_another_webauthn_library_accepts_the_same_sign_in(site: Site) -> None:
    device = Device()
    passkey, _ = await site.register(device, "ada")
    stored = await site.state.store.credential(passkey.credential_id, now=2)
    ceremony, options = await site.begin(device, "authentication")
    response = get(passkey, options, DEVICE_ORIGIN, Faults(counter=7))
    assert (await site.finish(device, "authentication", ceremony, response)).status == 200
    verified = webauthn.verify_authentication_response(
        credential=json.dumps(response),
        expected_challenge=unb64(options["challenge"]),
        expected_rp_id=RP_ID,
        expected_origin=DEVICE_ORIGIN,
        credential_public_key=stored.attested_data[16 + 2 + len(passkey.credential_id) :],
        credential_current_sign_count=stored.sign_count,
        require_user_verification=True,
    )
    assert verified.new_sign_count == 7


async def test_a_sign_in_reads_no_type_hints(site: Site, who: Who, monkeypatch: pytest.MonkeyPatch) -> None:
    passkey, _ = await site.register(who, "ada")
    ceremony, options = await site.begin(who, "authentication")
    response = get(passkey, options, DEVICE_ORIGIN if isinstance(who, Device) else WEB_ORIGIN)
    monkeypatch.delattr(fido2.utils, "get_type_hints")  # more than half of a verification was spent in it
    assert (await site.finish(who, "authentication", ceremony, response)).status == 200


CLIENT_DATA_FAULTS: list[tuple[str, Faults, Check]] = [
    ("of another type", Faults(type="webauthn.neither"), Check.LIBRARY),
    ("with another challenge", Faults(challenge=b64(bytes(32))), Check.CHALLENGE),
    ("with no challenge", Faults(challenge=""), Check.CHALLENGE),
    ("from another site", Faults(origin="https://evil.test"), Check.ORIGIN),
    ("from another port", Faults(origin="https://rp.example:8443"), Check.ORIGIN),
    ("from a subdomain", Faults(origin="https://user-content.rp.example"), Check.ORIGIN),
    ("without TLS", Faults(origin="http://rp.example"), Check.ORIGIN),
    ("from an origin with a slash", Faults(origin="https://rp.example/"), Check.ORIGIN),
    ("from an app", Faults(origin="android:apk-key-hash:aaaa"), Check.ORIGIN),
    ("embedded elsewhere", Faults(client_data={"crossOrigin": True}), Check.CROSS_ORIGIN),
    ("embedded by name", Faults(client_data={"topOrigin": "https://evil.test"}), Check.CROSS_ORIGIN),
    ("embedded by ours", Faults(client_data={"topOrigin": WEB_ORIGIN}), Check.CROSS_ORIGIN),
    ("whose crossOrigin is text", Faults(client_data={"crossOrigin": "false"}), Check.CLIENT_DATA),
    ("that is not JSON", Faults(raw_client_data=b"{"), Check.CLIENT_DATA),
    ("that is not UTF-8", Faults(raw_client_data=b'{"type":"\xff"}'), Check.CLIENT_DATA),
    ("that is a list", Faults(raw_client_data=b"[]"), Check.CLIENT_DATA),
    ("without members", Faults(raw_client_data=b"{}"), Check.CLIENT_DATA),
]
SIGNED_FAULTS: list[tuple[str, Faults, Check]] = [
    ("for another relying party", Faults(rp_id="evil.test"), Check.LIBRARY),
    ("without user presence", Faults(flags=UV | BE | BS), Check.LIBRARY),
    ("without user verification", Faults(flags=UP | BE | BS), Check.LIBRARY),
    ("with extensions that are no map", Faults(signed_outputs=[1]), Check.EXTENSIONS),  # type: ignore[arg-type]
]
REGISTRATION_FAULTS: list[tuple[str, Faults, Check]] = [
    *CLIENT_DATA_FAULTS,
    *SIGNED_FAULTS,
    ("that is an assertion", Faults(type="webauthn.get"), Check.LIBRARY),
    ("backed up but not eligible", Faults(flags=UP | UV | BS), Check.BACKUP_STATE),
    ("under another credential's name", Faults(named_id=bytes(32)), Check.CREDENTIAL_ID),
    ("with an algorithm not offered", Faults(algorithm=-37, cose_key=RS256Key().cose()), Check.ALGORITHM),
    ("with ES256 by another name", Faults(algorithm=-9), Check.ALGORITHM),
    ("with an unknown algorithm", Faults(algorithm=-65000), Check.ALGORITHM),
    ("with the wrong key type", Faults(cose_key={**ES256Key().cose(), 1: 3}), Check.PUBLIC_KEY),
    ("with a point off the curve", Faults(cose_key={**ES256Key().cose(), -3: bytes(32)}), Check.PUBLIC_KEY),
    ("on another curve", Faults(cose_key={**ES256Key().cose(), -1: 2}), Check.PUBLIC_KEY),
    ("with half a key", Faults(cose_key={1: 2, 3: -7, -1: 1}), Check.PUBLIC_KEY),
    ("with a short RSA key", Faults(cose_key=RS256Key(1024).cose()), Check.PUBLIC_KEY),
    ("without a COSE algorithm", Faults(cose_key={1: 2}), Check.LIBRARY),
    ("with bytes for an attestation", Faults(raw_attestation=b"\x45\x01"), Check.LIBRARY),
    ("with an empty map for an attestation", Faults(raw_attestation=b"\xa0"), Check.LIBRARY),
    ("with short authenticator data", Faults(raw_auth_data=bytes(36)), Check.LIBRARY),
]
AUTHENTICATION_FAULTS: list[tuple[str, Faults, Check]] = [
    *CLIENT_DATA_FAULTS,
    *SIGNED_FAULTS,
    ("that is a registration", Faults(type="webauthn.create"), Check.LIBRARY),
    ("no longer eligible for backup", Faults(flags=UP | UV), Check.BACKUP_ELIGIBILITY),
    ("with another signature", Faults(signature=ES256Key().sign(b"")), Check.LIBRARY),
    ("with no signature to speak of", Faults(signature=b"\0"), Check.LIBRARY),
    ("with another user's handle", Faults(user_handle=bytes(32)), Check.OWNER),
    ("without a user's handle", Faults(user_handle=None), Check.OWNER),
    ("with short authenticator data", Faults(raw_auth_data=bytes(36)), Check.LIBRARY),
]


def _cases(faults: list[tuple[str, Faults, Check]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("faults", "check"), [case[1:] for case in faults], ids=[case[0] for case in faults]
    )


def _checks(caplog: pytest.LogCaptureFixture) -> list[str]:
    prefix = "a ceremony did not verify: "
    return [text.removeprefix(prefix) for text in caplog.messages if text.startswith(prefix)]


@pytest.mark.threat("T14")
@_cases(REGISTRATION_FAULTS)
async def test_a_registration_is_refused(
    site: Site, who: Who, faults: Faults, check: Check, caplog: pytest.LogCaptureFixture
) -> None:
    ceremony, options = await site.begin(who, "registration", user_name="ada")
    passkey, response = create(options, who.client_origin, faults)
    answer = await site.finish(who, "registration", ceremony, response)
    assert (answer.status, answer.slug) == (403, "verification-failed")
    assert set(answer.body) == {"type", "title", "status"}
    assert _checks(caplog) == [check]
    assert await site.state.store.user_by_name("ada", now=2) is None
    good = attest(passkey, options, who.client_origin)
    assert (await site.finish(who, "registration", ceremony, good)).slug == "ceremony-gone"


@pytest.mark.threat("T14")
@_cases(AUTHENTICATION_FAULTS)
async def test_a_sign_in_is_refused(
    site: Site, who: Who, faults: Faults, check: Check, caplog: pytest.LogCaptureFixture
) -> None:
    passkey, _ = await site.register(Device(), "ada")
    before = await site.state.store.credential(passkey.credential_id, now=2)
    ceremony, options = await site.begin(who, "authentication")
    response = get(passkey, options, who.client_origin, faults)
    answer = await site.finish(who, "authentication", ceremony, response)
    assert (answer.status, answer.slug) == (403, "verification-failed")
    assert set(answer.body) == {"type", "title", "status"}
    assert _checks(caplog) == [check]
    assert await site.state.store.credential(passkey.credential_id, now=2) == before
    good = get(passkey, options, who.client_origin)
    assert (await site.finish(who, "authentication", ceremony, good)).slug == "ceremony-gone"


async def test_a_client_that_needs_no_origin_list_of_the_other_kind_is_refused_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for who, other in ((Browser(), DEVICE_ORIGIN), (Device(), WEB_ORIGIN)):
        _, answer = await site.register(who, "ada", Faults(origin=other))
        assert answer.slug == "verification-failed"
    assert _checks(caplog) == [Check.ORIGIN, Check.ORIGIN]


# What nobody asked for: of the browser, of the phone, of a key, and of whoever adds more tomorrow.
UNASKED: dict[str, Faults] = {
    "WebKit's appid": Faults(client_outputs={"appid": False}),
    "an appid that was used": Faults(client_outputs={"appid": True}),
    "iOS's largeBlob": Faults(client_outputs={"largeBlob": {}}),
    "a large blob": Faults(client_outputs={"largeBlob": {"supported": True, "blob": "AAAA"}}),
    "a prf": Faults(client_outputs={"prf": {"enabled": True, "results": {"first": "AAAA"}}}),
    "the other ceremony's": Faults(client_outputs={"credProps": {"rk": True}, "appidExclude": True}),
    "uvm": Faults(client_outputs={"uvm": [[2, 4, 2]]}, signed_outputs={"uvm": [[2, 4, 2]]}),
    "ones that nobody has heard of": Faults(
        client_outputs={"tomorrow": None, "": "", "x" * 200: [[[]]]}, signed_outputs={"tomorrow": {1: b""}}
    ),
    "a key's own": Faults(signed_outputs={"credProtect": 2, "minPinLength": 8}),
    "a key's secret": Faults(signed_outputs={"hmac-secret": True}),
    "a map with nothing in it": Faults(signed_outputs={}),
}


@pytest.mark.parametrize("faults", UNASKED.values(), ids=UNASKED)
async def test_extension_outputs_that_nobody_asked_for_are_ignored(
    site: Site, who: Who, faults: Faults
) -> None:
    passkey, answer = await site.register(who, "ada", faults)
    assert answer.status == 201
    assert (await site.sign_in(who, passkey, faults)).status == 200
    stored = await site.state.store.credential(passkey.credential_id, now=2)
    assert stored.prf is None  # only what was asked for is looked at
    assert stored.discoverable is (True if "credProps" in faults.client_outputs else None)


async def test_backup_that_was_never_possible_cannot_begin(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device()
    passkey, _ = await site.register(device, "ada", Faults(flags=UP | UV))
    for flags, check in ((SYNCED, Check.BACKUP_ELIGIBILITY), (UP | UV | BS, Check.BACKUP_STATE)):
        caplog.clear()
        answer = await site.sign_in(device, passkey, Faults(flags=flags))
        assert answer.slug == "verification-failed"
        assert _checks(caplog) == [check]
    assert (await site.sign_in(device, passkey, Faults(flags=UP | UV))).status == 200


async def test_backup_state_is_followed(site: Site) -> None:
    device = Device()
    passkey, _ = await site.register(device, "ada", Faults(flags=UP | UV | BE))
    assert not (await site.state.store.credential(passkey.credential_id, now=2)).backed_up
    assert (await site.sign_in(device, passkey)).status == 200
    assert (await site.state.store.credential(passkey.credential_id, now=2)).backed_up


@pytest.mark.parametrize(
    ("counters", "anomalies", "kept"),
    [([0, 0], 0, 0), ([1, 2], 0, 2), ([5, 5], 1, 5), ([5, 3], 1, 5), ([5, 0], 1, 5), ([5, 3, 6], 1, 6)],
)
async def test_a_counter_that_stands_still_is_noted_and_locks_nobody_out(
    site: Site, caplog: pytest.LogCaptureFixture, counters: list[int], anomalies: int, kept: int
) -> None:
    device = Device()
    passkey, _ = await site.register(device, "ada")
    for counter in counters:
        assert (await site.sign_in(device, passkey, Faults(counter=counter))).status == 200
    stored = await site.state.store.credential(passkey.credential_id, now=2)
    assert (stored.counter_anomalies, stored.sign_count) == (anomalies, kept)
    assert sum("counter did not grow" in text for text in caplog.messages) == anomalies


async def test_a_credential_id_is_registered_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    passkey, _ = await site.register(Device(), "ada")
    device = Device()
    ceremony, options = await site.begin(device, "registration", user_name="eve")
    response = attest(passkey, options, DEVICE_ORIGIN)
    answer = await site.finish(device, "registration", ceremony, response)
    assert answer.slug == "verification-failed"
    assert _checks(caplog) == [Check.CREDENTIAL_TAKEN]
    assert await site.state.store.user_by_name("eve", now=2) is None


async def test_only_the_user_that_was_asked_for_signs_in(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    await site.register(Device(), "ada")
    eves, _ = await site.register(Device(), "eve")
    for name in ("ada", "nobody-of-that-name"):
        answer = await site.sign_in(Device(), eves, user_name=name)
        assert answer.slug == "verification-failed"
    assert _checks(caplog) == [Check.OWNER, Check.OWNER]


@pytest.mark.threat("T13")
async def test_a_stranger_learns_of_a_name_neither_its_passkeys_nor_whether_anybody_has_it(
    site: Site, who: Who
) -> None:
    ada, eve = Browser(), Browser()
    passkey, _ = await site.register(ada, "ada")
    await site.register(eve, "eve")
    same = []
    for caller in (who, eve):
        for name in ("ada", "nobody"):
            _, options = await site.begin(caller, "authentication", user_name=name)
            same.append({**options, "challenge": None, "hints": None, "timeout": None})
    assert same == [same[0]] * 4
    assert same[0]["allowCredentials"] == []
    assert (await site.sign_in(who, passkey, user_name="ada")).status == 200


@pytest.mark.threat("T13")
async def test_a_device_is_told_its_own_users_passkeys_by_its_key_alone(site: Site) -> None:
    device = Device()
    passkey, registered = await site.register(device, "ada")
    await site.register(Device(), "eve")
    device.token = None
    for name, listed in (("ada", [b64(passkey.credential_id)]), ("eve", [])):
        _, options = await site.begin(device, "authentication", user_name=name)
        assert [one["id"] for one in options["allowCredentials"]] == listed
    site.clock.now = registered.body["ends_at"]
    _, options = await site.begin(device, "authentication", user_name="ada")
    assert options["allowCredentials"] == []


@pytest.mark.threat("T13")
async def test_a_neighbourhood_tries_so_many_taken_names_a_day(site: Site) -> None:
    site.state.registrations.most = 3
    await site.register(Browser(), "ada")
    path, headers = "/webauthn/registration/options", Browser().headers("POST", "", 0)
    seen = []
    for name in ("free", "ada", "ada", "ada", "free", "ada"):
        answer = await site.raw("POST", path, headers, json.dumps({"user_name": name}).encode())
        seen.append(answer.status)
    assert seen == [200, 409, 409, 429, 429, 429]


class Work:
    """What the relying party does for a request: signatures verified, transactions of its store."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.verified = self.transactions = 0
        verify, transaction = ES256.verify, site.state.store._transaction

        def counted(key: ES256, message: bytes, signature: bytes) -> None:
            self.verified += 1
            verify(key, message, signature)  # type: ignore[no-untyped-call]

        def counted_transaction(*args: Any, **options: Any) -> Any:
            self.transactions += 1
            return transaction(*args, **options)

        monkeypatch.setattr(ES256, "verify", counted)
        monkeypatch.setattr(site.state.store, "_transaction", counted_transaction)

    def done(self) -> tuple[int, int]:
        done = self.verified, self.transactions
        self.verified = self.transactions = 0
        return done


async def test_an_unknown_user_and_a_bad_signature_look_and_work_alike(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first request to the last: the same steps, and byte for byte the same answer."""
    passkey, _ = await site.register(Device(), "ada")
    work = Work(site, monkeypatch)
    forged = Faults(signature=ES256Key().sign(b""))
    refusals = []
    for name in ("ada", "nobody"):
        device = Device()
        ceremony, options = await site.begin(device, "authentication", user_name=name)
        assert work.done() == (0, 2)
        named = Faults(signature=forged.signature)
        answer = await site.finish(
            device, "authentication", ceremony, get(passkey, options, DEVICE_ORIGIN, named)
        )
        assert work.done() == (1, 1)
        refusals.append((answer.status, answer.body))
    assert refusals[0] == refusals[1]
    assert "signals" not in refusals[0][1]


async def test_an_unknown_credential_takes_the_work_of_any_other_and_may_be_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    passkey, _ = await site.register(Device(), "ada")
    work = Work(site, monkeypatch)
    forged = await site.sign_in(Device(), passkey, Faults(signature=ES256Key().sign(b"")))
    expected = work.done()
    assert expected == (1, 1)
    unknown = await site.sign_in(Device(), passkey, Faults(named_id=bytes(32)))
    assert work.done() == expected
    signal = {"unknownCredential": {"rpId": RP_ID, "credentialId": b64(bytes(32))}}
    assert (unknown.status, unknown.body) == (forged.status, {**forged.body, "signals": signal})


@pytest.mark.threat("T5")
@pytest.mark.parametrize("ceremony", ["registration", "authentication"])
async def test_a_response_completes_one_ceremony_once(site: Site, who: Who, ceremony: str) -> None:
    passkey, _ = await site.register(Device(), "ada")
    body = {"user_name": "bea"} if ceremony == "registration" else {}
    name, options = await site.begin(who, ceremony, **body)
    response = (
        create(options, who.client_origin)[1]
        if ceremony == "registration"
        else get(passkey, options, who.client_origin)
    )
    assert (await site.finish(who, ceremony, name, response)).status in (200, 201)
    assert (await site.finish(who, ceremony, name, response)).slug == "ceremony-gone"


@pytest.mark.threat("T5")
async def test_a_ceremony_expires(site: Site, who: Who) -> None:
    lifetime = 600 if isinstance(who, Device) else 300
    name, options = await site.begin(who, "registration", user_name="ada")
    _, response = create(options, who.client_origin)
    site.clock.now += lifetime - 1
    other, other_options = await site.begin(who, "registration", user_name="bea")
    site.clock.now += 1
    assert (await site.finish(who, "registration", name, response)).slug == "ceremony-gone"
    _, response = create(other_options, who.client_origin)
    assert (await site.finish(who, "registration", other, response)).status == 201


async def test_an_invented_ceremony_is_gone(site: Site, who: Who) -> None:
    _, options = await site.begin(who, "registration", user_name="ada")
    _, response = create(options, who.client_origin)
    assert (await site.finish(who, "registration", "invented", response)).slug == "ceremony-gone"


@pytest.mark.threat("T14")
@pytest.mark.parametrize("ceremony", ["registration", "authentication"])
@pytest.mark.parametrize(
    ("clients", "check"),
    [
        (lambda: (Device(), Device()), Check.DEVICE_KEY),
        (lambda: (Device(), Browser(client_origin=DEVICE_ORIGIN)), Check.CLIENT_KIND),
        (lambda: (Browser(), Device(client_origin=WEB_ORIGIN)), Check.CLIENT_KIND),
    ],
    ids=["another device", "a browser for a device", "a device for a browser"],
)
async def test_nobody_else_finishes_a_ceremony(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    ceremony: str,
    clients: Callable[[], tuple[Who, Who]],
    check: Check,
) -> None:
    begins, finishes = clients()
    passkey, _ = await site.register(Device(), "ada")
    body = {"user_name": "bea"} if ceremony == "registration" else {}
    name, options = await site.begin(begins, ceremony, **body)
    response = (
        create(options, begins.client_origin)[1]
        if ceremony == "registration"
        else get(passkey, options, begins.client_origin)
    )
    answer = await site.finish(finishes, ceremony, name, response)
    assert answer.slug == "verification-failed"
    assert _checks(caplog) == [check]
    assert (await site.finish(begins, ceremony, name, response)).slug == "ceremony-gone"


@pytest.mark.threat("T14")
async def test_a_ceremony_ends_as_what_it_began(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    passkey, _ = await site.register(device, "ada")
    name, options = await site.begin(device, "registration", user_name="bea")
    answer = await site.finish(device, "authentication", name, get(passkey, options, DEVICE_ORIGIN))
    assert answer.slug == "verification-failed"
    name, options = await site.begin(device, "authentication")
    options = {**options, "rp": {"id": RP_ID}, "user": {"id": b64(bytes(32))}}
    answer = await site.finish(device, "registration", name, create(options, DEVICE_ORIGIN)[1])
    assert answer.slug == "verification-failed"
    assert _checks(caplog) == [Check.PURPOSE, Check.PURPOSE]


async def test_a_registered_name_is_its_owners(site: Site, who: Who) -> None:
    await site.register(Device(), "ada")
    body = {"user_name": "ada"}
    answer = await site.send(who, "POST", "/webauthn/registration/options", body)
    assert (answer.status, answer.slug) == (409, "user-exists")
    await site.register(who, "eve")
    answer = await site.send(who, "POST", "/webauthn/registration/options", body)
    assert (answer.status, answer.slug) == (409, "user-exists")


async def test_the_owner_adds_a_passkey(site: Site) -> None:
    who = Browser()
    first, _ = await site.register(who, "ada")
    await site.step_up(who, first, "add-passkey")
    ceremony, options = await site.begin(who, "registration", user_name="ada")
    assert unb64(options["user"]["id"]) == first.user_handle
    assert [item["id"] for item in options["excludeCredentials"]] == [b64(first.credential_id)]
    second, response = create(options, who.client_origin)
    answer = await site.finish(who, "registration", ceremony, response)
    assert answer.status == 201
    assert answer.body["user"]["handle"] == b64(first.user_handle)
    for passkey in (first, second):
        assert (await site.sign_in(who, passkey)).status == 200


async def test_adding_a_passkey_needs_the_session_to_the_end(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    browser = Browser()
    passkey, _ = await site.register(browser, "ada")
    await site.step_up(browser, passkey, "add-passkey")
    ceremony, options = await site.begin(browser, "registration", user_name="ada")
    await site.send(browser, "DELETE", "/session")
    _, response = create(options, WEB_ORIGIN)
    answer = await site.finish(browser, "registration", ceremony, response)
    assert answer.slug == "verification-failed"
    assert _checks(caplog) == [Check.SESSION]


async def test_two_who_want_one_name_do_not_both_get_it(site: Site) -> None:
    first, second = Device(), Device()
    begun = [await site.begin(device, "registration", user_name="ada") for device in (first, second)]
    answers = [
        await site.finish(device, "registration", name, create(options, DEVICE_ORIGIN)[1])
        for device, (name, options) in zip((first, second), begun, strict=True)
    ]
    assert answers[0].status == 201
    assert (answers[1].status, answers[1].slug) == (409, "user-exists")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (["hybrid", "internal"], ("hybrid", "internal")),
        (["hybrid", "hybrid", "smart-card", "teleport"], ("hybrid", "smart-card", "teleport")),
        (["", "Hybrid", "a b", "x" * 33, "usb"], ("usb",)),
        ([f"t{number}" for number in range(20)], tuple(f"t{number}" for number in range(8))),
        ([1, None, ["usb"], {}, "usb", True], ("usb",)),
        (None, ()),
    ],
)
async def test_transports_are_kept_as_far_as_they_look_like_transports(
    site: Site, sent: list[Any] | None, kept: tuple[str, ...]
) -> None:
    passkey, answer = await site.register(Device(), "ada", Faults(transports=sent))
    assert answer.status == 201
    assert (await site.state.store.credential(passkey.credential_id, now=2)).transports == kept


@pytest.mark.threat("T11")
async def test_the_log_names_nobody(site: Site, who: Who, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiohttp.access")  # the program keeps no such log
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "fido2")  # as the program does, and as a host is told to do
    passkey, registered = await site.register(who, "ada.lovelace")
    signed_in = await site.sign_in(who, passkey)
    await site.sign_in(who, passkey, Faults(signature=b"\0"))
    await site.sign_in(who, passkey, Faults(named_id=b"an unknown one, told back"))
    await site.send(who, "PATCH", "/me", {"display_name": "Countess Lovelace"})
    await site.send(who, "PATCH", f"/me/credentials/{b64(passkey.credential_id)}", {"label": "her phone"})
    await site.send(
        who, "POST", "/session/refresh", {"refresh_token": signed_in.body["refresh_token"] or "x"}
    )
    secrets = [
        "ada.lovelace",
        "Countess Lovelace",
        "her phone",
        b64(b"an unknown one, told back"),
        *(form for data in (passkey.credential_id, passkey.user_handle) for form in (b64(data), data.hex())),
        *(
            answer.body[name]
            for answer in (registered, signed_in)
            for name in ("token", "refresh_token")
            if answer.body[name]
        ),
        *(registered.cookies.values()),
    ]
    assert caplog.messages
    for secret in secrets:
        assert secret not in caplog.text


def _alone() -> tuple[Ceremonies, Caller, JSON]:
    """The ceremonies without a server, a caller, and options of a sign-in for the test's own record."""
    party = RelyingParty(rp_id=RP_ID, name="", origins={ClientKind.WEB: {WEB_ORIGIN}})
    return Ceremonies(party), Caller(kind=ClientKind.WEB), {"challenge": b64(bytes(32))}


def _record(
    caller: Caller, *, expected: bytes | None = None, allowed: tuple[bytes, ...] = ()
) -> AuthenticationRecord:
    return AuthenticationRecord(
        purpose=Purpose.SIGN_IN,
        challenge=bytes(32),
        caller=caller,
        user_verification="required",
        expected=expected,
        allowed=allowed,
        expires_at=1,
    )


def _stored(passkey: Passkey) -> Credential:
    attested = AttestedCredentialData.create(bytes(16), passkey.credential_id, CoseKey(passkey.key.cose()))
    return Credential(
        credential_id=passkey.credential_id,
        user_handle=passkey.user_handle,
        attested_data=bytes(attested),
        aaguid=bytes(16),
        algorithm=-7,
        sign_count=0,
        backup_eligible=True,
        backed_up=True,
        transports=(),
        attestation_object=b"",
        client_data_hash=b"",
        created_at=0,
    )


def _response(passkey: Passkey, options: JSON) -> AuthenticationResponse:
    response = get(passkey, options, WEB_ORIGIN)
    body = json.dumps({"ceremony": "", "response": response}).encode()
    return parse_authentication_result(body)[1]


@pytest.mark.parametrize(
    ("expected", "check"), [(None, None), (b"ada", None), (b"somebody else", Check.OWNER)]
)
def test_a_credential_that_changed_hands_is_not_the_expected_users(
    expected: bytes | None, check: Check | None
) -> None:
    ceremonies, caller, options = _alone()
    passkey = Passkey(rp_id=RP_ID, user_handle=b"ada", key=ES256Key())
    record = _record(caller, expected=expected, allowed=(passkey.credential_id,))
    response = _response(passkey, options)
    if check is None:
        assert ceremonies.complete_authentication(record, caller, response, _stored(passkey), now=0)
        return
    with pytest.raises(VerificationFailed) as refusal:
        ceremonies.complete_authentication(record, caller, response, _stored(passkey), now=0)
    assert refusal.value.check == check


def test_nobodys_signature_signs_nobody_in() -> None:
    """Even somebody who had the key that stands in for an unknown credential would get nowhere."""
    ceremonies, caller, options = _alone()
    passkey = Passkey(rp_id=RP_ID, user_handle=b"ada", key=ES256Key())
    ceremonies._nobodys_key = CoseKey.parse(passkey.key.cose())
    record = _record(caller)
    with pytest.raises(VerificationFailed) as refusal:
        ceremonies.complete_authentication(record, caller, _response(passkey, options), None, now=0)
    assert refusal.value.check == Check.UNKNOWN_CREDENTIAL
