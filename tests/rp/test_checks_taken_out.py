"""Each check that is ours to make, taken out: what it refused gets in, so it is that check that refuses.

python-fido2's server does not look at any of this (docs/protocol/relying-party.md, "What is checked"). Every case
is run twice: against the package as it is, and against a copy of one module whose check has been cut out
of its source.
"""

import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from fido2.cose import CoseKey
from fido2.webauthn import AttestedCredentialData

from relying_party.core import ceremonies as real
from relying_party.core import challenges as real_challenges
from relying_party.core import messages as real_messages
from relying_party.core.callers import Caller, ClientKind
from relying_party.core.challenges import AuthenticationRecord, ChallengeRecord, Purpose, RegistrationRecord
from relying_party.core.credentials import Credential, User
from relying_party.core.messages import parse_authentication_result, parse_registration_result
from relying_party.core.sessions import Lifetimes, Session, open_session
from relying_party.errors import CeremonyGone, Check, StoreUnavailable, VerificationFailed
from relying_party.store import sql as real_sql
from relying_party.store.sqlite import SqliteStore
from tests.rp.authenticator_double import (
    BS,
    JSON,
    NO_FAULTS,
    SYNCED,
    UP,
    UV,
    EdDSAKey,
    ES256Key,
    Faults,
    Key,
    Passkey,
    RS256Key,
    b64,
    create,
    get,
    unb64,
)
from tests.rp.clients import DEVICE_ORIGIN, RP_ID, WEB_ORIGIN, Browser, Device, Site
from tests.rp.cuts import Cut, without

WEB, DEVICE = Caller(kind=ClientKind.WEB), Caller(kind=ClientKind.DEVICE, key_thumbprint="a key")
OTHER_KEY = Caller(kind=ClientKind.DEVICE, key_thumbprint="another key")
ADA = User(handle=b"a" * 32, name="ada", display_name="Ada")


def _ceremonies(module: Any, **changes: Any) -> Any:
    settings = {
        "rp_id": RP_ID,
        "name": "",
        "origins": {ClientKind.WEB: {WEB_ORIGIN}, ClientKind.DEVICE: {DEVICE_ORIGIN}},
        **changes,
    }
    return module.Ceremonies(module.RelyingParty(**settings))


def _as_it_is(record: ChallengeRecord) -> ChallengeRecord:
    return record


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to be wrong."""

    check: Check
    cuts: tuple[Cut, ...]
    faults: Faults = NO_FAULTS
    begins: Caller = WEB
    ends: Caller | None = None  # as who begins
    record: Callable[[ChallengeRecord], ChallengeRecord] = _as_it_is
    key: Callable[[], Key] = ES256Key
    offered: tuple[int, ...] | None = None
    named: bool = False  # whether the sign-in is for a user, so that only their passkeys are allowed
    backup_eligible: bool = True

    @property
    def origin(self) -> str:
        return WEB_ORIGIN if self.begins.kind is ClientKind.WEB else DEVICE_ORIGIN


def register(module: Any, case: Case) -> tuple[Passkey, Any]:
    changes = {} if case.offered is None else {"algorithms": case.offered}
    ceremonies = _ceremonies(module, **changes)
    begun = ceremonies.begin_registration(
        case.begins, ADA, existing=(), session_id=None, now=0, challenge=bytes(32)
    )
    passkey, response = create(begun.public_key, case.origin, case.faults, key=case.key())
    body = json.dumps({"ceremony": "", "response": response}).encode()
    _, parsed = parse_registration_result(body)
    record = case.record(begun.record)
    return passkey, ceremonies.complete_registration(record, case.ends or case.begins, parsed, now=1)


def sign_in(module: Any, case: Case) -> Any:
    ceremonies = _ceremonies(module)
    passkey = Passkey(rp_id=RP_ID, user_handle=ADA.handle, key=case.key())
    allowed = (real.Descriptor(credential_id=b"another one of hers"),) if case.named else ()
    begun = ceremonies.begin_authentication(
        case.begins,
        expected=ADA.handle if case.named else None,
        allowed=allowed,
        now=0,
        challenge=bytes(32),
    )
    response = get(passkey, begun.public_key, case.origin, case.faults)
    _, parsed = parse_authentication_result(json.dumps({"ceremony": "", "response": response}).encode())
    return ceremonies.complete_authentication(
        case.record(begun.record), case.ends or case.begins, parsed, _stored(passkey, case), now=1
    )


def _stored(passkey: Passkey, case: Case) -> Credential:
    key = CoseKey.parse(passkey.key.cose())
    return Credential(
        credential_id=passkey.credential_id,
        user_handle=passkey.user_handle,
        attested_data=bytes(AttestedCredentialData.create(bytes(16), passkey.credential_id, key)),
        aaguid=bytes(16),
        algorithm=-7,
        sign_count=9,
        backup_eligible=case.backup_eligible,
        backed_up=False,
        transports=(),
        attestation_object=b"",
        client_data_hash=b"",
        created_at=0,
    )


EVERYWHERE: dict[str, Case] = {
    "user verification": Case(
        check=Check.LIBRARY,
        cuts=(
            Cut('{"user_verification": UserVerificationRequirement.REQUIRED}', '{"user_verification": None}'),
        ),
        faults=Faults(flags=SYNCED & ~UV),
    ),
    "a record that asks for less than user verification": Case(
        check=Check.USER_VERIFICATION,
        cuts=(Cut("record.user_verification != UserVerificationRequirement.REQUIRED", "False"),),
        record=lambda record: replace(record, user_verification="preferred"),
    ),
    "exact origins: a subdomain with a port": Case(
        check=Check.ORIGIN,
        cuts=(
            Cut("parsed.origin not in self._rp.origins[record.caller.kind]", "False"),
            Cut("_(verify_origin=self._rp.origins[kind].__contains__)", "_(verify_origin=None)"),
        ),
        faults=Faults(origin="https://user-content.rp.example:8443"),
    ),
    "origins of the other kind": Case(
        check=Check.ORIGIN,
        cuts=(
            Cut("self._rp.origins[record.caller.kind]", "self._rp.origins[ClientKind.DEVICE]"),
            Cut("self._rp.origins[kind].__contains__", "self._rp.origins[ClientKind.DEVICE].__contains__"),
        ),
        faults=Faults(origin=DEVICE_ORIGIN),
    ),
    "crossOrigin": Case(
        check=Check.CROSS_ORIGIN,
        cuts=(Cut("parsed.cross_origin or parsed.top_origin", "False"),),
        faults=Faults(client_data={"crossOrigin": True}),
    ),
    "crossOrigin with topOrigin": Case(
        check=Check.CROSS_ORIGIN,
        cuts=(Cut("parsed.top_origin not in self._rp.top_origins", "False"),),
        faults=Faults(client_data={"crossOrigin": True, "topOrigin": "https://evil.test"}),
    ),
    "topOrigin without crossOrigin": Case(
        check=Check.CROSS_ORIGIN,
        cuts=(Cut("parsed.cross_origin or parsed.top_origin", "parsed.cross_origin"),),
        faults=Faults(client_data={"topOrigin": "https://evil.test"}),
    ),
    "another kind of client": Case(
        check=Check.CLIENT_KIND,
        cuts=(
            Cut("record.caller.kind.proves_key is not caller.kind.proves_key", "False"),
            Cut("record.caller.key_thumbprint != caller.key_thumbprint", "False"),
        ),
        begins=DEVICE,
        ends=WEB,
    ),
    "another device's key": Case(
        check=Check.DEVICE_KEY,
        cuts=(Cut("record.caller.key_thumbprint != caller.key_thumbprint", "False"),),
        begins=DEVICE,
        ends=OTHER_KEY,
    ),
    "backed up though never eligible": Case(
        check=Check.BACKUP_STATE,
        cuts=(Cut("data.is_backed_up() and not data.is_backup_eligible()", "False"),),
        faults=Faults(flags=UP | UV | BS),
        backup_eligible=False,
    ),
    "signed extensions that are no map": Case(
        check=Check.EXTENSIONS,
        cuts=(Cut("data.extensions is not None and not isinstance(data.extensions, Mapping)", "False"),),
        faults=Faults(signed_outputs=[1]),  # type: ignore[arg-type]
    ),
}
AT_REGISTRATION: dict[str, Case] = {
    **EVERYWHERE,
    "an algorithm that was not offered": Case(
        check=Check.ALGORITHM,
        cuts=(Cut("algorithm not in record.algorithms", "False"),),
        key=EdDSAKey,
        offered=(-7,),
    ),
    "a key that verifies nothing": Case(
        check=Check.PUBLIC_KEY,
        cuts=(Cut("_check_public_key(credential.public_key)", "None"),),
        faults=Faults(cose_key={**ES256Key().cose(), -3: bytes(32)}),
    ),
    "an RSA key that is too short": Case(
        check=Check.PUBLIC_KEY,
        cuts=(Cut("not RSA_BITS[0] <= bits <= RSA_BITS[1]", "False"),),
        key=lambda: RS256Key(1024),
    ),
    "another id than the attested one": Case(
        check=Check.CREDENTIAL_ID,
        cuts=(
            Cut(
                "credential is None or credential.credential_id != response.credential_id",
                "credential is None",
            ),
        ),
        faults=Faults(named_id=bytes(32)),
    ),
}
AT_SIGN_IN: dict[str, Case] = {
    **EVERYWHERE,
    "another user's handle": Case(
        check=Check.OWNER,
        cuts=(Cut("_check_owner(record, response, credential)", "None"),),
        faults=Faults(user_handle=bytes(32)),
    ),
    "no user handle where nobody was named": Case(
        check=Check.OWNER,
        cuts=(Cut("response.user_handle is None and not record.allowed", "False"),),
        faults=Faults(user_handle=None),
    ),
    "another user than the one asked for": Case(
        check=Check.OWNER,
        cuts=(Cut("record.expected is not None and record.expected != credential.user_handle", "False"),),
        record=lambda record: replace(cast("AuthenticationRecord", record), expected=bytes(32)),
    ),
    "a credential that was not allowed": Case(
        check=Check.NOT_ALLOWED,
        cuts=(Cut("record.allowed and credential.credential_id not in record.allowed", "False"),),
        named=True,
    ),
    "eligible for backup all of a sudden": Case(
        check=Check.BACKUP_ELIGIBILITY,
        cuts=(Cut("not self._rp.backup_eligibility.allows(was=was, now=eligible)", "False"),),
        backup_eligible=False,
    ),
    "a step-up that ends as a sign-in": Case(
        check=Check.PURPOSE,
        cuts=(
            Cut("record.purpose is not _purpose(session_id)", "False"),
            Cut("record.session_id != session_id", "False"),
        ),
        record=lambda record: replace(
            cast("AuthenticationRecord", record), purpose=Purpose.STEP_UP, session_id=b"a session"
        ),
    ),
    "a step-up of another session": Case(
        check=Check.SESSION,
        cuts=(Cut("record.session_id != session_id", "False"),),
        record=lambda record: replace(cast("AuthenticationRecord", record), session_id=b"a session"),
    ),
}


@pytest.mark.threat("T14")
@pytest.mark.parametrize("case", AT_REGISTRATION.values(), ids=AT_REGISTRATION)
def test_a_registration_that_one_check_refuses_gets_in_without_it(case: Case) -> None:
    with pytest.raises(VerificationFailed) as refusal:
        register(real, case)
    assert refusal.value.check == case.check
    passkey, done = register(without(real, *case.cuts), case)
    assert done.credential.user_handle == passkey.user_handle


@pytest.mark.threat("T14")
@pytest.mark.parametrize("case", AT_SIGN_IN.values(), ids=AT_SIGN_IN)
def test_a_sign_in_that_one_check_refuses_gets_in_without_it(case: Case) -> None:
    with pytest.raises(VerificationFailed) as refusal:
        sign_in(real, case)
    assert refusal.value.check == case.check
    assert sign_in(without(real, *case.cuts), case).use.used_at == 1


def test_a_case_that_is_not_wrong_gets_in() -> None:
    good = Case(check=Check.LIBRARY, cuts=())
    assert register(real, good)[1].credential.algorithm == -7
    assert not sign_in(real, replace(good, faults=Faults(counter=10))).use.counter_anomaly


def test_a_counter_that_goes_back_is_seen_by_us_alone() -> None:
    cut = Cut("counter_stands_still(credential.sign_count, data.counter)", "False")
    case = Case(check=Check.LIBRARY, cuts=(cut,), faults=Faults(counter=3))
    assert sign_in(real, case).use.counter_anomaly
    assert not sign_in(without(real, *case.cuts), case).use.counter_anomaly


def test_what_is_offered_is_our_list_and_not_the_librarys() -> None:
    def offered(module: Any) -> list[int]:
        begun = _ceremonies(module).begin_registration(
            WEB, ADA, existing=(), session_id=None, now=0, challenge=bytes(32)
        )
        return [item["alg"] for item in begun.public_key["pubKeyCredParams"]]

    assert offered(real) == [-7, -8, -257]
    library = offered(without(real, Cut("server.allowed_algorithms", "_")))
    assert set(library) > {-7, -8, -257}  # and more with every release


def test_hints_come_from_us() -> None:
    def options(module: Any) -> JSON:
        begun = _ceremonies(module).begin_registration(
            DEVICE, ADA, existing=(), session_id=None, now=0, challenge=bytes(32)
        )
        return cast("JSON", begun.public_key)

    cut = Cut('public_key["hints"] = _hints(caller)', "pass", within="begin_registration")
    assert options(real)["hints"] == ["hybrid"]
    assert not options(without(real, cut)).get("hints")


def test_transports_are_kept_by_us_alone() -> None:
    cut = Cut("_transports(response.transports or [])", "()")
    for module, kept in ((real_messages, ("hybrid", "internal")), (without(real_messages, cut), ())):
        begun = _ceremonies(real).begin_registration(
            WEB, ADA, existing=(), session_id=None, now=0, challenge=bytes(32)
        )
        _, response = create(begun.public_key, WEB_ORIGIN)
        body = json.dumps({"ceremony": "", "response": response}).encode()
        assert module.parse_registration_result(body)[1].transports == kept


@pytest.mark.threat("T14")
async def test_a_credential_id_that_is_taken_is_found_by_us_alone(tmp_path: Path) -> None:
    """Without the check the database itself refuses: that id is its primary key."""
    cut = Cut("raise VerificationFailed(Check.CREDENTIAL_TAKEN)", "pass")
    eve = replace(ADA, handle=b"e" * 32, name="eve")
    for number, (module, error) in enumerate(
        ((real_sql, VerificationFailed), (without(real_sql, cut), StoreUnavailable))
    ):
        kind = type("Store", (SqliteStore,), {"register": module.SqlStore.register})
        async with kind(tmp_path / str(number)) as store:
            case = Case(check=Check.CREDENTIAL_TAKEN, cuts=())
            credential = _stored(Passkey(rp_id=RP_ID, user_handle=ADA.handle, key=ES256Key()), case)
            for user, refused in ((ADA, False), (eve, True)):
                theirs = replace(credential, user_handle=user.handle)
                session = _session(user)
                if not refused:
                    await store.register(theirs, user, session, ends=None)
                    continue
                with pytest.raises(error):
                    await store.register(theirs, user, session, ends=None)


def _session(user: User) -> Session:
    return open_session(
        user_handle=user.handle,
        credential_id=b"",
        caller=WEB,
        now=0,
        lifetimes=Lifetimes(),
        random=secrets.token_bytes,
    ).session


@pytest.mark.threat("T5")
async def test_a_record_that_is_not_deleted_serves_twice() -> None:
    copy = without(
        real_challenges,
        Cut("self._drop(name)", "self._records[name][0]", within="take"),
    )
    for module, times in ((real_challenges, 1), (copy, 2)):
        challenges = module.Challenges()
        name = await challenges.add(_record(), name=b"name", share="a", now=0)
        await challenges.take(name, now=0)
        if times == 1:
            with pytest.raises(CeremonyGone):
                await challenges.take(name, now=0)
        else:
            await challenges.take(name, now=0)


@pytest.mark.threat("T5")
async def test_a_record_whose_age_nobody_looks_at_serves_for_ever() -> None:
    copy = without(real_challenges, Cut("record.expires_at <= now", "False"))
    for module, gone in ((real_challenges, True), (copy, False)):
        challenges = module.Challenges()
        name = await challenges.add(_record(), name=b"name", share="a", now=0)
        if gone:
            with pytest.raises(CeremonyGone):
                await challenges.take(name, now=1000)
        else:
            await challenges.take(name, now=1000)


def _record() -> RegistrationRecord:
    begun = _ceremonies(real).begin_registration(
        WEB, ADA, existing=(), session_id=None, now=0, challenge=bytes(32)
    )
    return cast("RegistrationRecord", begun.record)


@pytest.mark.threat("T11")
async def test_the_librarys_log_would_name_credentials(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    passkey, _ = await site.register(Device(), "ada")
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "fido2")  # as the program does; an application leaves it to its host
    await site.sign_in(Device(), passkey)
    assert passkey.credential_id.hex() not in caplog.text
    caplog.set_level(logging.DEBUG, "fido2")
    await site.sign_in(Device(), passkey)
    assert passkey.credential_id.hex() in caplog.text


@pytest.mark.threat("T14")
async def test_checks_come_in_their_order(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A response with every fault there is, mended one fault at a time."""
    passkey, _ = await site.register(Device(), "ada", Faults(flags=UP | UV))
    _, _ = await site.register(Device(), "eve")
    good: dict[str, Any] = {"flags": UP | UV, "counter": 1}
    bad: dict[str, Any] = {
        "origin": "https://evil.test",
        "challenge": b64(bytes(32)),
        "client_data": {"crossOrigin": True},
        "signature": b"\0",
        "user_handle": bytes(32),
        "flags": SYNCED,
        "signed_outputs": [1],
    }
    order: list[tuple[str | None, Check]] = [
        (None, Check.CHALLENGE),
        ("challenge", Check.ORIGIN),
        ("origin", Check.CROSS_ORIGIN),
        ("client_data", Check.LIBRARY),
        ("signature", Check.OWNER),
        ("user_handle", Check.BACKUP_ELIGIBILITY),
        ("flags", Check.EXTENSIONS),
    ]
    for mended, check in order:
        if mended is not None:
            del bad[mended]
        caplog.clear()
        answer = await site.sign_in(Device(), passkey, Faults(**{**good, **bad}))
        assert answer.slug == "verification-failed"
        assert f"a ceremony did not verify: {check}" in caplog.messages
    del bad["signed_outputs"]
    assert (await site.sign_in(Device(), passkey, Faults(**good))).status == 200


async def test_who_completes_is_looked_at_before_what_is_said(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    passkey, _ = await site.register(Device(), "ada")
    for other, check in ((Browser(), Check.CLIENT_KIND), (Device(), Check.DEVICE_KEY)):
        caplog.clear()
        ceremony, options = await site.begin(Device(), "authentication")
        response = get(passkey, options, "https://evil.test")
        assert (await site.finish(other, "authentication", ceremony, response)).slug == "verification-failed"
        assert f"a ceremony did not verify: {check}" in caplog.messages


async def test_what_an_audit_needs_is_kept(site: Site) -> None:
    ceremony, options = await site.begin(device := Device(), "registration", user_name="ada")
    passkey, response = create(options, DEVICE_ORIGIN)
    await site.finish(device, "registration", ceremony, response)
    stored = await site.state.store.credential(passkey.credential_id, now=2)
    assert stored.attestation_object == unb64(response["response"]["attestationObject"])
    assert len(stored.client_data_hash) == 32
