"""Founding an account by a sign-in, and founding it anew: against the real relay, with an issuer on loopback."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from companion_push.companion.founding import found_by_sign_in
from companion_push.companion.keys import CompanionState, Identity, KeyPair
from companion_push.companion.relay_client import CompanionRelay
from companion_push.companion.sign_in import Prompt, Way, sign_in
from companion_push.identity.authority import AccountAuthority, SignIn, TokenRefused
from companion_push.identity.settings import OpenIdSettings
from headless_passkey.errors import (
    EnrolmentReason,
    HeadlessPasskeyError,
    NotApproved,
    NotEnrolled,
    NotSignedIn,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SessionReason,
    TransportError,
    TransportReason,
    UsageError,
)
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.signing import thumbprint
from program_parts.base64url import base64url
from tests.companion.program import outcome, running
from tests.identity.issuer import Issuer
from tests.relay.household import Relay, running_relay


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer(now=int(time.time())).running() as running:
        yield running


@contextlib.asynccontextmanager
async def relay_for(issuer: Issuer, folder: Path, **changes: Any) -> AsyncIterator[Relay]:
    settings: dict[str, Any] = {"issuer": issuer.url, "audience": "companion", "clients": ("companion",)}
    openid = OpenIdSettings(**(settings | changes))
    async with running_relay(folder / "relay.sqlite3", openid=openid) as relay:
        yield relay


def way(issuer: Issuer, **changes: str) -> Way:
    return Way(**({"issuer": issuer.url, "client": "companion", "audience": "companion"} | changes))


async def get_token(
    issuer: Issuer, *, fresh: bool = False, keys: KeyPair | None = None, **changes: str
) -> tuple[str, list[Prompt], list[float]]:
    """One sign-in: its token, what the person was shown, and the pauses between the questions."""
    shown: list[Prompt] = []
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    token = await sign_in(
        way(issuer, **changes),
        key=(keys or KeyPair()).signing,
        tls=None,
        show=shown.append,
        fresh=fresh,
        sleep=sleep,
    )
    return token, shown, pauses


def of(token: str) -> Any:
    async def source(_relay: CompanionRelay, _keys: KeyPair) -> str:
        return token

    return source


# The programs


async def test_a_sign_in_founds_an_account_with_a_code_to_type_on_the_issuers_page(
    issuer: Issuer, tmp_path: Path
) -> None:
    issuer.polls = [{"error": "authorization_pending"}]
    async with relay_for(issuer, tmp_path) as relay:
        words = ["companion", "join", "--relay", relay.url, "--oidc", "--label", "My phone", "--json"]
        status, stdout, said = await outcome(*words, "--state", tmp_path / "state" / "first")
        assert (status, stdout) == (0, ""), said
        stages = [json.loads(line) for line in said]
        assert [stage["stage"] for stage in stages] == ["sign-in", "joined"]
        assert (stages[0]["issuer"], stages[0]["page"], stages[0]["code"]) == (
            issuer.url,
            f"{issuer.url}/activate",
            "WDJB-MJHT",
        )
        status, stdout, _ = await outcome(
            "companion", "members", "--json", "--state", tmp_path / "state" / "first"
        )
        assert (status, json.loads(stdout)["account_name"]) == (0, "anna")


@pytest.mark.threat("T16")
async def test_a_second_sign_in_lets_nobody_in_and_a_reset_says_so_to_all(
    issuer: Issuer, tmp_path: Path
) -> None:
    first, second = tmp_path / "state" / "first", tmp_path / "state" / "second"
    async with relay_for(issuer, tmp_path) as relay:
        how = ["--relay", relay.url, "--token-file", "-", "--label", "My phone"]
        token = f"{issuer.token()}\n"
        assert (await outcome("companion", "join", *how, "--state", first, stdin=token))[0] == 0
        status, _, said = await outcome("companion", "join", *how, "--state", second, stdin=token)
        assert status == 8
        assert "lets nobody into it" in said[-1]
        assert "companion reset" in said[-1]
        reset = ["companion", "reset", *how, "--state", second]
        status, _, said = await outcome(*reset, "--confirm", "bob", stdin=token)
        assert (status, "nothing was closed" in said[-1]) == (6, True)
        assert (await outcome("companion", "members", "--state", first))[0] == 0
        status, _, said = await outcome(*reset, "--confirm", "anna", stdin=token)
        assert status == 0, said
        status, _, said = await outcome(
            "companion", "run", "--pending", "--consent", "decline", "--state", first
        )
        assert (status, "account is closed" in said[-1]) == (9, True)
        assert (await outcome("companion", "members", "--state", second))[0] == 0
        # the companion that was shut out founds it anew from where it is
        words = ["companion", "reset", "--token-file", "-", "--label", "Mine", "--confirm", "anna"]
        assert (await outcome(*words, "--state", first, stdin=token))[0] == 0
        status, stdout, _ = await outcome("companion", "members", "--json", "--state", first)
        assert [member["label"] for member in json.loads(stdout)["members"]] == ["Mine"]


@pytest.mark.parametrize(
    "words",
    [
        ["join", "--label", "x"],
        ["join", "--label", "x", "--relay", "https://relay.example"],
        ["join", "--label", "x", "--oidc"],
        ["join", "--label", "x", "--code", "-", "--oidc"],
        ["join", "--label", "x", "--relay", "https://relay.example", "--oidc", "--expect-account", "V" * 22],
        ["join", "--label", "x", "--relay", "https://relay.example", "--oidc", "--token-file", "-"],
        ["join", "--label", "x", "--relay", "https://relay.example", "--oidc", "--browser"],
        ["join", "--label", "x", "--code", "-", "--browser"],
        ["reset", "--label", "x", "--relay", "https://relay.example", "--confirm", "x"],
        ["join", "--label", "x", "--relay", "https://relay.example", "--token-file", "eyJhbGciOiJ.eyJpc3MiOiJo.c2lnbmF0dXJl"],
    ],
    ids=["nothing", "no-way", "no-relay", "code-too", "another-account", "both", "two-grants", "code-and-browser", "reset-no-way", "token-in-argv"],
)  # fmt: skip
@pytest.mark.threat("T11")
async def test_a_way_to_sign_in_that_cannot_be_is_2(tmp_path: Path, words: list[str]) -> None:
    status, stdout, said = await outcome("companion", *words, "--state", tmp_path / "state")
    assert (status, stdout) == (2, "")
    assert "c2lnbmF0dXJl" not in " ".join(said)


# Founding


async def test_an_interrupted_founding_goes_on_with_the_same_ring(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relay_for(issuer, tmp_path) as relay:
        state = CompanionState(tmp_path / "state")
        honest = CompanionState.finish_joining

        def killed(*_args: object, **_more: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(CompanionState, "finish_joining", killed)
        with pytest.raises(KeyboardInterrupt):
            await found_by_sign_in(state, relay.url, label="phone", token=of(issuer.token()))
        monkeypatch.setattr(CompanionState, "finish_joining", honest)
        begun = state.joining()
        assert begun is not None
        with pytest.raises(UsageError):
            await found_by_sign_in(state, relay.url, label="another", token=of(issuer.token()))
        identity = await found_by_sign_in(state, relay.url, label="phone", token=of(issuer.token()))
        assert identity.keys.name == begun.keys.name
        assert state.joining() is None
        assert state.chain().head.account == identity.account


@pytest.mark.parametrize("before", ["ring.json", "companion.json"])
async def test_an_interrupted_reset_goes_on_from_wherever_it_was(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    async with relay_for(issuer, tmp_path) as relay:
        state = CompanionState(tmp_path / "state")
        await found_by_sign_in(state, relay.url, label="phone", token=of(issuer.token()))
        write = CompanionState._write

        def killed(self: CompanionState, name: str, content: Any) -> None:
            if name == before:
                raise KeyboardInterrupt
            write(self, name, content)

        async def agree(name: str) -> bool:
            return name == "anna"

        monkeypatch.setattr(CompanionState, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            await found_by_sign_in(state, relay.url, label="mine", token=of(issuer.token()), agree=agree)
        monkeypatch.setattr(CompanionState, "_write", write)
        words = ["companion", "reset", "--token-file", "-", "--label", "mine", "--state", tmp_path / "state"]
        status, _, said = await outcome(*words, "--confirm", "nobody", stdin=f"{issuer.token()}\n")
        assert status == 0, said
        assert [member.label for member in state.chain().head.members] == ["mine"]
        assert (await outcome("companion", "mute", "list", "--state", tmp_path / "state"))[0] == 0


async def test_a_reset_goes_on_although_another_one_came_between(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relay_for(issuer, tmp_path) as relay:
        one, other = CompanionState(tmp_path / "one"), CompanionState(tmp_path / "other")
        asked: list[str] = []

        async def agree(name: str) -> bool:
            asked.append(name)
            return True

        async def reset(state: CompanionState) -> Identity:
            return await found_by_sign_in(state, relay.url, label="x", token=of(issuer.token()), agree=agree)

        def killed(*_args: object, **_more: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(CompanionState, "finish_joining", killed)
            with pytest.raises(KeyboardInterrupt):
                await reset(one)
        between = await reset(other)
        identity = await reset(one)
        assert asked == ["anna", "anna"]
        assert identity.account != between.account
        async with CompanionRelay.connect(relay.url, identity.keys.signing, tls=None) as client:
            assert (await client.inbox(cursor=None, wait=0)).items == ()
        assert one.chain().head.account == identity.account


async def test_a_founding_goes_on_although_its_user_is_called_something_else_now(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    async with relay_for(issuer, tmp_path) as relay:
        state = CompanionState(tmp_path / "state")
        with monkeypatch.context() as patched:
            patched.setattr(CompanionState, "finish_joining", killed)
            with pytest.raises(KeyboardInterrupt):
                await found_by_sign_in(state, relay.url, label="x", token=of(issuer.token()))
        renamed = of(issuer.token(preferred_username="anna b."))
        await found_by_sign_in(state, relay.url, label="x", token=renamed)
        assert state.chain().head.account_name == "anna"


@pytest.mark.parametrize(
    ("token", "reason"),
    [({"exp": 1}, SessionReason.SIGN_IN_REFUSED), ({"aud": "other"}, SessionReason.SIGN_IN_REFUSED)],
    ids=["expired", "another-audience"],
)
async def test_a_token_that_the_relay_refuses_is_no_sign_in(
    issuer: Issuer, tmp_path: Path, token: dict[str, Any], reason: SessionReason
) -> None:
    async with relay_for(issuer, tmp_path) as relay:
        state = CompanionState(tmp_path / "state")
        with pytest.raises(NotSignedIn) as caught:
            await found_by_sign_in(state, relay.url, label="phone", token=of(issuer.token(**token)))
        assert caught.value.reason is reason
        assert not state.is_enrolled()


@pytest.mark.threat("T12")
@pytest.mark.parametrize("detail", ["x" * 10_000, "\x1b[31m\u202e" * 200], ids=["long", "hidden"])
async def test_why_a_token_is_refused_is_shown_however_an_authority_says_it(
    tmp_path: Path, detail: str
) -> None:
    class Talkative(AccountAuthority):
        async def sign_in(self, token: str, *, key: str) -> SignIn:
            raise TokenRefused(detail)

    async with running_relay(tmp_path / "relay.sqlite3", authority=Talkative()) as relay:
        with pytest.raises(NotSignedIn) as caught:
            await found_by_sign_in(
                CompanionState(tmp_path / "state"), relay.url, label="phone", token=of("token")
            )
    assert caught.value.reason is SessionReason.SIGN_IN_REFUSED
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("\N{HORIZONTAL ELLIPSIS}")


async def test_a_reset_needs_a_fresh_sign_in(issuer: Issuer, tmp_path: Path) -> None:
    async with relay_for(issuer, tmp_path) as relay:
        first, second = CompanionState(tmp_path / "first"), CompanionState(tmp_path / "second")
        await found_by_sign_in(first, relay.url, label="phone", token=of(issuer.token()))

        async def agree(name: str) -> bool:
            return name == "anna"

        old = of(issuer.token(auth_time=issuer.now - 400))
        with pytest.raises(NotSignedIn) as caught:
            await found_by_sign_in(second, relay.url, label="phone", token=old, agree=agree)
        assert caught.value.reason is SessionReason.SIGN_IN_TOO_OLD
        async with CompanionRelay.connect(relay.url, first.identity().keys.signing, tls=None) as client:
            assert (await client.inbox(cursor=None, wait=0)).items == ()
        await found_by_sign_in(second, relay.url, label="phone", token=of(issuer.token()), agree=agree)
        async with CompanionRelay.connect(relay.url, first.identity().keys.signing, tls=None) as client:
            with pytest.raises(NotEnrolled) as closed:
                await client.inbox(cursor=None, wait=0)
        assert closed.value.reason is EnrolmentReason.ACCOUNT_CLOSED


async def test_a_relay_without_an_issuer_says_what_else_there_is(tmp_path: Path) -> None:
    async with (
        running_relay(tmp_path / "relay.sqlite3") as relay,
        CompanionRelay.connect(relay.url, KeyPair().signing, tls=None) as client,
    ):
        with pytest.raises(UsageError, match="join with a code"):
            await client.way()


# The device authorization grant


async def test_the_issuer_is_asked_until_the_person_has_signed_in(issuer: Issuer) -> None:
    issuer.polls = [{"error": "authorization_pending"}, {"error": "slow_down"}, {"error": "slow_down"}]
    token, (prompt,), pauses = await get_token(issuer)
    assert token.count(".") == 2
    assert (prompt.issuer, prompt.page, prompt.code) == (issuer.url, f"{issuer.url}/activate", "WDJB-MJHT")
    assert "WDJB" not in repr(prompt)
    assert pauses == [1, 1, 6, 11]
    assert issuer.forms[0] == {"client_id": "companion", "scope": "openid profile"}
    assert issuer.forms[1] == {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": "device code",
        "client_id": "companion",
    }
    assert issuer.proofs == []


async def test_a_reset_asks_for_a_new_authentication_and_an_audience_for_an_access_token(
    issuer: Issuer,
) -> None:
    await get_token(issuer, fresh=True, audience="relay")
    assert issuer.forms[0]["max_age"] == "60"
    assert [form["resource"] for form in issuer.forms] == ["relay", "relay"]


async def test_where_the_issuer_binds_tokens_the_companion_proves_its_key(issuer: Issuer) -> None:
    issuer.metadata = {"dpop_signing_alg_values_supported": ["ES256"]}
    issuer.polls = [{"error": "use_dpop_nonce"}, {"error": "authorization_pending"}]
    keys = KeyPair()
    _, _, pauses = await get_token(issuer, keys=keys)
    assert pauses == [1, 1], "a nonce costs no pause"
    header, claims, _ = issuer.proofs[1].split(".")
    jwk = json.loads(from_base64url(header))["jwk"]
    point = b"\x04" + from_base64url(jwk["x"]) + from_base64url(jwk["y"])
    assert thumbprint(point) == keys.name
    assert json.loads(from_base64url(claims))["nonce"] == "nonce-1"


@pytest.mark.parametrize("binds", [False, True], ids=["unbound", "bound"])
@pytest.mark.parametrize("away", [None, 429, 500, 502, 503, 504], ids=str)
async def test_an_issuer_that_is_away_for_a_while_is_asked_again_ever_later(
    issuer: Issuer, away: int | None, *, binds: bool
) -> None:
    issuer.metadata = {"dpop_signing_alg_values_supported": ["ES256"] if binds else []}
    issuer.polls = [{"error": "authorization_pending"}, away, away, {"error": "authorization_pending"}, away]
    token, _, pauses = await get_token(issuer)
    assert token.count(".") == 2
    assert pauses == [1, 1, 2, 4, 4, 8]


async def test_an_issuer_that_stays_away_is_asked_no_longer_than_its_code_is_good(issuer: Issuer) -> None:
    issuer.grant = {"expires_in": 200}
    issuer.polls = [503] * 100
    with pytest.raises(TransportError) as caught:
        await get_token(issuer)
    assert caught.value.reason is TransportReason.SERVER_FAILED
    assert len(issuer.polls) == 100 - len([1, 2, 4, 8, 16, 32, 60, 60, 60])


@pytest.mark.parametrize(
    ("poll", "outcome_"),
    [("access_denied", Outcome.DECLINED), ("expired_token", Outcome.EXPIRED)],
)
async def test_a_sign_in_that_comes_to_nothing_says_so(issuer: Issuer, poll: str, outcome_: Outcome) -> None:
    issuer.polls = [{"error": poll}]
    with pytest.raises(NotApproved) as caught:
        await get_token(issuer)
    assert caught.value.outcome is outcome_


MALFORMED = (RemoteProtocolError, ProtocolReason.MALFORMED_ANSWER)
REFUSED = (NotSignedIn, SessionReason.SIGN_IN_REFUSED)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("hostile", "expected"),
    [
        ({"metadata": {"issuer": "https://evil.example"}}, MALFORMED),
        ({"metadata": {"token_endpoint": "http://evil.example/"}}, MALFORMED),
        ({"metadata": {"device_authorization_endpoint": None}}, (UsageError, None)),
        ({"grant": {"error": "unauthorized_client"}}, REFUSED),
        ({"grant": {"verification_uri": "javascript:alert(1)"}}, MALFORMED),
        ({"grant": {"verification_uri": "http://evil.example/"}}, MALFORMED),
        ({"grant": {"verification_uri": "https://a.example/\u202e"}}, MALFORMED),
        ({"grant": {"user_code": 7}}, MALFORMED),
        ({"grant": {"device_code": "half of \ud800 a pair"}}, MALFORMED),
        ({"grant": {"interval": -1}}, MALFORMED),
        ({"grant": {"expires_in": None}}, MALFORMED),
        ({"polls": [{"error": "invalid_client"}]}, REFUSED),
        ({"polls": [{"error": "\u202e"}]}, REFUSED),
    ],
    ids=[
        "another-issuer", "endpoint", "no-grant", "no-client", "script", "http-page", "hidden", "code", "half", "interval", "no-end",
        "client", "hostile-error",
    ],
)  # fmt: skip
async def test_an_issuer_that_does_not_keep_to_the_rules_is_refused(
    issuer: Issuer, hostile: dict[str, Any], expected: tuple[type[HeadlessPasskeyError], str | None]
) -> None:
    for name, value in hostile.items():
        setattr(issuer, name, value)
    error, reason = expected
    with pytest.raises(error) as caught:
        await get_token(issuer)
    assert caught.value.reason == reason
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "url",
    ["http://issuer.example", "issuer", "file:///x", "https://issuer.example\n\n", " https://issuer.example"],
    ids=["http", "no-url", "file", "lines", "space"],
)
async def test_an_issuer_that_is_not_behind_https_is_not_asked(url: str) -> None:
    with pytest.raises(RemoteProtocolError):
        await sign_in(
            Way(issuer=url, client="c", audience="c"),
            key=KeyPair().signing,
            tls=None,
            show=lambda _prompt: None,
        )


# The authorization code grant, with a browser of this machine


@dataclass
class Browser:
    """A person's browser, which an issuer redirects at once. More parameters or others may come with it."""

    issuer: Issuer
    changes: dict[str, str | None] = field(
        default_factory=dict
    )  # of the authorization response; None leaves out
    before: list[tuple[str, dict[str, str]]] = field(
        default_factory=list
    )  # queries of others, and their headers
    asked: dict[str, str] = field(default_factory=dict)  # the authorization request
    statuses: list[int] = field(default_factory=list)
    page: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    async def visit(self, page: str) -> None:
        self.asked = dict(URL(page).query)
        self.issuer.signs.setdefault("nonce", self.asked["nonce"])
        uri = URL(self.asked["redirect_uri"])
        honest = {"code": "a code", "state": self.asked["state"]}
        query = {name: value for name, value in (honest | self.changes).items() if value is not None}
        calls = [(text.format(**honest), headers) for text, headers in self.before]
        async with aiohttp.ClientSession() as session:
            for text, headers in [*calls, (urlencode(query), {})]:
                url = URL(f"{uri}?{text}", encoded=True)
                async with session.get(url, headers=headers) as response:
                    self.statuses.append(response.status)
                    self.page, self.headers = await response.text(), response.headers.copy()


async def get_token_by(
    browser: Browser, *, keys: KeyPair | None = None, fresh: bool = False, **changes: str
) -> str:
    visits: list[asyncio.Task[None]] = []
    async with asyncio.timeout(60):  # a safety net
        token = await sign_in(
            way(browser.issuer, **changes),
            key=(keys or KeyPair()).signing,
            tls=None,
            show=lambda prompt: visits.append(asyncio.create_task(browser.visit(prompt.page))),
            browser=True,
            fresh=fresh,
        )
        await asyncio.gather(*visits)
    return token


async def test_a_browsers_redirect_brings_the_code_whose_verifier_only_the_companion_knows(
    issuer: Issuer,
) -> None:
    browser = Browser(issuer)
    token = await get_token_by(browser, fresh=True)
    assert token.count(".") == 2
    uri = URL(browser.asked["redirect_uri"])
    assert (uri.scheme, uri.host, uri.path) == ("http", "127.0.0.1", "/signed-in")
    kept = {
        name: value for name, value in browser.asked.items() if name not in ("state", "nonce", "redirect_uri")
    }
    challenge = kept.pop("code_challenge")
    assert kept == {
        "response_type": "code",
        "client_id": "companion",
        "scope": "openid profile",
        "max_age": "60",
        "code_challenge_method": "S256",
    }
    (form,) = issuer.forms
    verifier = form.pop("code_verifier")
    assert base64url(hashlib.sha256(verifier.encode()).digest()) == challenge
    assert form == {
        "grant_type": "authorization_code",
        "code": "a code",
        "redirect_uri": str(uri),
        "client_id": "companion",
    }
    assert browser.statuses == [200]
    assert "Go back to the terminal" in browser.page
    assert "a code" not in browser.page
    assert browser.headers["Referrer-Policy"] == "no-referrer"
    assert browser.headers["Cache-Control"] == "no-store"


async def test_a_code_is_bound_to_the_companions_key_where_the_issuer_binds(issuer: Issuer) -> None:
    issuer.metadata = {
        "dpop_signing_alg_values_supported": ["ES256"],
        "authorization_endpoint": f"{issuer.url}/authorize?tenant=1",
    }
    keys, browser = KeyPair(), Browser(issuer)
    await get_token_by(browser, keys=keys, audience="relay")
    assert browser.asked["dpop_jkt"] == keys.name
    assert (browser.asked["tenant"], browser.asked["resource"]) == ("1", "relay")
    assert issuer.forms[0]["resource"] == "relay"
    assert len(issuer.proofs) == 1


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("code=theirs&state=guessed", {}),
        ("code=theirs", {}),
        ("error=access_denied", {}),
        ("code=theirs&state={state}&code=twice", {}),
        ("code=theirs&state=%ff", {}),
        ("code=theirs&state={state}", {"Host": "evil.example"}),
    ],
    ids=["another-state", "no-state", "error", "twice", "bytes", "another-host"],
)
async def test_what_others_send_to_the_redirect_is_refused_and_ends_nothing(
    issuer: Issuer, query: str, headers: dict[str, str]
) -> None:
    browser = Browser(issuer, before=[(query, headers)])
    await get_token_by(browser)
    assert browser.statuses == [400, 200]
    assert issuer.forms[0]["code"] == "a code"


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("hostile", "changes", "expected"),
    [
        ({}, {"iss": "https://evil.example"}, MALFORMED),
        ({"metadata": {"authorization_response_iss_parameter_supported": True}}, {}, MALFORMED),
        ({}, {"code": None}, MALFORMED),
        ({}, {"code": "x" * 5000}, MALFORMED),
        ({}, {"error": "access_denied"}, (NotApproved, Outcome.DECLINED)),
        ({}, {"error": "\u202e"}, REFUSED),
        ({"polls": [{"error": "invalid_grant"}]}, {}, REFUSED),
        ({"polls": [503]}, {}, (TransportError, TransportReason.SERVER_FAILED)),
        ({"signs": {"nonce": "another"}}, {}, MALFORMED),
        ({"signs": {"nonce": None}}, {}, MALFORMED),
        ({"metadata": {"authorization_endpoint": None}}, {}, (UsageError, None)),
        ({"metadata": {"authorization_endpoint": "http://evil.example/"}}, {}, MALFORMED),
        ({"metadata": {"authorization_endpoint": "https://a.example/#x"}}, {}, MALFORMED),
    ],
    ids=[
        "another-issuer", "no-issuer", "no-code", "long", "declined", "hidden", "grant", "away", "another-nonce", "no-nonce",
        "no-endpoint", "http-page", "fragment",
    ],
)  # fmt: skip
async def test_a_redirect_that_does_not_keep_to_the_rules_gives_no_token(
    issuer: Issuer,
    hostile: dict[str, Any],
    changes: dict[str, str | None],
    expected: tuple[type[HeadlessPasskeyError], str | None],
) -> None:
    for name, value in hostile.items():
        setattr(issuer, name, value)
    error, reason = expected
    with pytest.raises(error) as caught:
        await get_token_by(Browser(issuer, changes=changes))
    assert (caught.value.outcome if isinstance(caught.value, NotApproved) else caught.value.reason) == reason
    assert str(caught.value).isprintable()


async def test_a_sign_in_in_a_browser_that_is_cancelled_leaves_no_port_open(issuer: Issuer) -> None:
    shown: asyncio.Queue[Prompt] = asyncio.Queue()
    waiting = asyncio.create_task(
        sign_in(way(issuer), key=KeyPair().signing, tls=None, show=shown.put_nowait, browser=True)
    )
    prompt = await shown.get()
    assert "state=" not in repr(prompt)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    uri = URL(URL(prompt.page).query["redirect_uri"])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(uri.host, uri.port)


async def test_the_program_prints_the_page_to_open_and_founds_when_the_browser_comes_back(
    issuer: Issuer, tmp_path: Path
) -> None:
    async with relay_for(issuer, tmp_path) as relay:
        words = ["companion", "join", "--relay", relay.url, "--browser", "--label", "My phone", "--json"]
        async with running(*words, "--state", tmp_path / "state" / "first") as program:
            stage = await program.until_stage("sign-in")
            assert (stage["issuer"], stage["code"]) == (issuer.url, None)
            assert stage["page"].startswith(f"{issuer.url}/authorize?")
            await Browser(issuer).visit(stage["page"])
            assert (await program.until_stage("joined"))["label"] == "My phone"
            assert await program.ended() == 0
