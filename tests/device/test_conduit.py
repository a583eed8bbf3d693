"""The device at the relying party: the real one, and small servers that refuse or lie."""

import json
from dataclasses import replace
from typing import Any

import pytest

from headless_passkey.errors import (
    HeadlessPasskeyError,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import ProvenHttp, open_session
from headless_passkey.rp.conduit import Conduit
from headless_passkey.rp.finding import find_relying_party
from headless_passkey.webauthn.options import Credential
from tests.device.test_proven_http import KEY, Server, Step, answer, ok, problem, serving, talking_to

ORIGIN = "https://login.example"
OPTIONS = {"challenge": "AAAA", "rpId": "login.example"}
BEGUN = ok(ceremony="c1", publicKey=OPTIONS)
SESSION: dict[str, Any] = {
    "token": "t0ken",
    "token_type": "DPoP",
    "expires_at": 1_800_000_000,
    "refresh_token": "refre5h",
    "ends_at": 1_800_100_000,
    "user": {"name": "ada", "display_name": "Ada", "handle": "AAAA"},
    "credential_id": "BBBB",
    "client_kind": "device",
}
CREDENTIAL = Credential(response={"id": "BBBB"}, credential_id=b"\x04\x10\x41")


def conduit(http: ProvenHttp, kind: RequestKind = RequestKind.GET_ASSERTION, **names: Any) -> Conduit:
    return Conduit(http, origin=ORIGIN, kind=kind, **names)


async def test_it_begins_and_completes_a_sign_in() -> None:
    async with serving(BEGUN, ok(**SESSION)) as server, talking_to(server.url) as http:
        begun = await conduit(http, user_name="ada").begin()
        assert begun.options == OPTIONS
        session = await begun.complete(CREDENTIAL)
        assert (session.user_name, session.token) == ("ada", "t0ken")
        assert [(method, path) for method, path, *_ in server.seen] == [
            ("POST", "/webauthn/authentication/options"),
            ("POST", "/webauthn/authentication/result"),
        ]
        assert json.loads(server.seen[0][2]) == {"user_name": "ada"}
        assert json.loads(server.seen[1][2]) == {"ceremony": "c1", "response": {"id": "BBBB"}}
        assert [claims["htu"] for claims in server.proofs] == [
            server.url + path for _, path, *_ in server.seen
        ]


@pytest.mark.threat("T3")
@pytest.mark.parametrize(
    ("expected", "from_phone", "is_right"),
    [
        (None, None, True),
        (bytes(3), bytes(3), True),
        (bytes(3), None, True),
        (b"eve", None, False),
        (None, b"eve", False),
        (bytes(3), b"eve", False),
    ],
    ids=[
        "nobody said",
        "all agree",
        "expected",
        "another expected",
        "another answered",
        "phone alone differs",
    ],
)
async def test_the_session_is_of_the_user_who_was_expected_and_who_answered(
    expected: bytes | None, from_phone: bytes | None, *, is_right: bool
) -> None:
    """Its user handle is b"\\0\\0\\0"."""
    async with serving(BEGUN, ok(**SESSION)) as server, talking_to(server.url) as http:
        relying_party = Conduit(http, origin=ORIGIN, kind=RequestKind.GET_ASSERTION, user_handle=expected)
        completing = (await relying_party.begin()).complete(replace(CREDENTIAL, user_handle=from_phone))
        if is_right:
            assert (await completing).user_handle == "AAAA"
        else:
            with pytest.raises(TrustError) as refused:
                await completing
            assert refused.value.reason is TrustReason.UNEXPECTED_USER


async def test_two_ceremonies_that_overlap_are_completed_each_as_it_was_begun() -> None:
    second = ok(ceremony="c2", publicKey=OPTIONS)
    async with serving(BEGUN, second, ok(**SESSION), ok(**SESSION)) as server, talking_to(server.url) as http:
        relying_party = conduit(http)
        one, two = await relying_party.begin(), await relying_party.begin()
        await two.complete(CREDENTIAL)
        await one.complete(CREDENTIAL)
        assert [json.loads(body)["ceremony"] for _, _, body, *_ in server.seen[2:]] == ["c2", "c1"]


async def test_a_device_says_what_it_calls_itself() -> None:
    async with serving(BEGUN) as server, talking_to(server.url) as http:
        await conduit(http, label="Kitchen hub").begin()
        assert json.loads(server.seen[0][2]) == {"client": {"label": "Kitchen hub"}}


async def test_a_registration_goes_to_its_own_paths() -> None:
    async with serving(BEGUN) as server, talking_to(server.url) as http:
        await conduit(http, RequestKind.MAKE_CREDENTIAL, user_name="ada", display_name="Ada").begin()
        assert server.seen[0][1] == "/webauthn/registration/options"
        assert json.loads(server.seen[0][2]) == {"user_name": "ada", "display_name": "Ada"}


@pytest.mark.threat("T11")
async def test_a_session_does_not_show_its_tokens() -> None:
    async with serving(BEGUN, ok(**SESSION)) as server, talking_to(server.url) as http:
        session = await (await conduit(http).begin()).complete(CREDENTIAL)
        assert "t0ken" not in repr(session)
        assert "refre5h" not in repr(session)
        assert session.to_json()["token"] == "t0ken"


@pytest.mark.parametrize(
    ("refusal", "error", "reason"),
    [
        (problem(403, "verification-failed"), TrustError, TrustReason.RP_REFUSED),
        (problem(409, "user-exists"), UsageError, None),
        (problem(403, "browsers-only"), UsageError, None),
        (problem(410, "ceremony-gone"), TransportError, None),
        (problem(400, "invalid-request"), RemoteProtocolError, ProtocolReason.REFUSED),
        (ok(**{**SESSION, "token": 5}), RemoteProtocolError, ProtocolReason.MALFORMED_ANSWER),
        (ok(**{**SESSION, "user": "ada"}), RemoteProtocolError, ProtocolReason.MALFORMED_ANSWER),
        (ok(**{**SESSION, "refresh_token": 5}), RemoteProtocolError, ProtocolReason.MALFORMED_ANSWER),
        (ok(), RemoteProtocolError, ProtocolReason.MALFORMED_ANSWER),
    ],
    ids=["verification", "taken", "device", "gone", "other", "token", "user", "refresh", "empty"],
)
async def test_a_refusal_is_an_error_of_its_own_kind(
    refusal: Step, error: type[HeadlessPasskeyError], reason: TrustReason | None
) -> None:
    async with serving(BEGUN, refusal) as server, talking_to(server.url) as http:
        begun = await conduit(http).begin()
        with pytest.raises(error) as refused:
            await begun.complete(CREDENTIAL)
        assert refused.value.reason == reason


async def test_a_result_is_handed_in_once() -> None:
    """Its challenge is spent with the first try, so a second one could only hide what happened to it."""
    async with serving(BEGUN, problem(503, "draining")) as server, talking_to(server.url) as http:
        begun = await conduit(http).begin()
        with pytest.raises(TransportError):
            await begun.complete(CREDENTIAL)
        assert len(server.seen) == 2


async def test_options_without_a_ceremony_are_refused() -> None:
    async with serving(ok(publicKey=OPTIONS)) as server, talking_to(server.url) as http:
        with pytest.raises(RemoteProtocolError):
            await conduit(http).begin()


async def test_an_origin_that_is_none_is_refused() -> None:
    async with talking_to("https://login.example") as http:
        with pytest.raises(UsageError):
            Conduit(http, origin="https://login.example/path", kind=RequestKind.GET_ASSERTION)
        assert conduit(http).host == "login.example"


# Where it is mounted

HERE = problem(401, "not-signed-in")
NOT_HERE = answer(b"nothing", kind="text/plain", status=404)


async def found(server: Server, told: str = "") -> BaseUrl:
    async with open_session(None) as http:
        return await find_relying_party(http, BaseUrl.parse(server.url + told), KEY, patience=0)


async def test_a_relying_party_is_known_by_its_words_and_nothing_is_begun() -> None:
    async with serving(HERE) as server:
        assert str(await found(server, "/passkeys/")) == f"{server.url}/passkeys"
        assert [(method, path) for method, path, *_ in server.seen] == [("GET", "/passkeys/session")]


async def test_an_origin_says_where_its_relying_party_is_mounted() -> None:
    async with serving(NOT_HERE) as server:
        server.script[1:] = [ok(relying_party=f"{server.url}/passkeys"), HERE]
        assert str(await found(server)) == f"{server.url}/passkeys"
        assert [path for _, path, *_ in server.seen] == [
            "/session",
            "/.well-known/headless-passkey",
            "/passkeys/session",
        ]


@pytest.mark.threat("T14")
@pytest.mark.parametrize(
    "said",
    [
        ok(relying_party="https://evil.example/passkeys"),
        ok(relying_party="http://127.0.0.1:1/passkeys"),
        ok(relying_party="passkeys"),
        ok(relying_party=5),
        ok(),
        answer(b"[]"),
        NOT_HERE,
    ],
    ids=["host", "port", "relative", "number", "nothing", "list", "absent"],
)
async def test_no_other_place_is_taken_than_one_of_the_same_origin(said: Step) -> None:
    async with serving(NOT_HERE, said, HERE) as server:
        with pytest.raises(SetupError) as refused:
            await found(server)
        assert refused.value.reason is SetupReason.WRONG_SERVER
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    "said",
    [
        NOT_HERE,
        ok(),
        answer(b"<html>", kind="text/html"),
        problem(404, "not-found"),
        problem(405, "method-not-allowed"),
    ],
    ids=["absent", "another-session", "page", "not-found", "method"],
)
async def test_a_path_that_was_named_is_not_looked_for_elsewhere(said: Step) -> None:
    async with serving(said) as server:
        with pytest.raises(SetupError) as refused:
            await found(server, "/passkeys")
        assert refused.value.reason is SetupReason.WRONG_SERVER
        assert "name the path that the relying party is mounted at" in str(refused.value.advice)
        assert len(server.seen) == 1


async def test_a_relying_party_that_takes_no_proof_of_this_address_says_so_before_anybody_is_asked() -> None:
    async with serving(problem(401, "proof-invalid")) as server:
        with pytest.raises(RemoteProtocolError, match="does not know itself by this address"):
            await found(server)


async def test_a_wrong_clock_shows_before_anybody_is_asked() -> None:
    async with serving(problem(401, "proof-clock", now=1_000_000_000)) as server:
        with pytest.raises(TrustError) as refused:
            await found(server)
        assert refused.value.reason is TrustReason.CLOCK_SKEW
