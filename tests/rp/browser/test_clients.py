"""Browsers and password managers whose WebAuthn objects are not what the specification says, and the page all the same."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from certificates import Certificate
from playwright.async_api import Browser, Route, expect

from tests.rp.authenticator_double import unb64
from tests.rp.browser import visitor as visitor_module
from tests.rp.browser.conftest import Visit
from tests.rp.browser.steps import (
    has_passkeys,
    passkeys,
    registered,
    says,
    sign_in,
    sign_out,
    signed_in,
)
from tests.rp.browser.visitor import Visitor, visit

pytestmark = pytest.mark.asyncio(loop_scope="session")

# What an extension gives back in place of a credential: MEMBERS are its own, the prototypes are the browser's.
PRETENDER = """
for (const step of ["create", "get"]) {
    const native = navigator.credentials[step].bind(navigator.credentials);
    const response = (from) => {
        const own = {};
        const names = ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"];
        for (const name of names) if (name in from) own[name] = from[name];
        return own;
    };
    navigator.credentials[step] = async (options) => pretend(await native(options), response, step);
}
"""

# 1Password, older Bitwarden, Proton Pass: the credential pretends, its response is real or of the same make.
WITH_A_REAL_RESPONSE = """
const pretend = (real) => {
    const own = { id: real.id, rawId: real.rawId, type: "public-key", authenticatorAttachment: "platform" };
    Object.assign(own, { response: real.response, getClientExtensionResults: () => ({}) });
    const out = {};
    for (const [name, value] of Object.entries(own)) Object.defineProperty(out, name, { value, enumerable: true });
    return Object.setPrototypeOf(out, PublicKeyCredential.prototype);
};
"""
# KeePassXC: the response pretends too, and every method of either throws.
WITH_NO_METHOD_THAT_WORKS = """
const pretend = (real, response, step) => {
    const kind = step === "create" ? AuthenticatorAttestationResponse : AuthenticatorAssertionResponse;
    const own = (members, prototype) => Object.create(prototype, Object.getOwnPropertyDescriptors(members));
    const inner = own(response(real.response), kind.prototype);
    return own({ id: real.id, rawId: real.rawId, type: "public-key", response: inner }, PublicKeyCredential.prototype);
};
"""
# Plain objects without a prototype; views instead of buffers, padding in the id, transports of any kind.
WITH_ODD_MEMBERS = """
const pretend = (real, response, step) => {
    const view = (buffer) => new Uint8Array([0, 0, ...new Uint8Array(buffer), 0]).subarray(2, -1);
    const inner = Object.fromEntries(
        Object.entries(response(real.response)).map(([name, value]) => [name, value && view(value)]));
    inner.getTransports = () => [null, "internal", 7, "Not A Transport"];
    const outputs = { credProps: { rk: "yes" }, appid: false, largeBlob: {}, prf: null };
    return { id: real.id + "==", rawId: new DataView(real.rawId), response: inner, getClientExtensionResults: () => outputs };
};
"""
WITHOUT_HANDLE = """
const pretend = (real, response) => ({
    rawId: real.rawId, response: { ...response(real.response), getTransports: () => "internal" },
    getClientExtensionResults: () => null, toJSON: () => { throw new TypeError("Illegal invocation"); },
});
"""

# Safari 16 to 18.3, and others without the helpers.
WITHOUT_HELPERS = """
for (const name of ["parseCreationOptionsFromJSON", "parseRequestOptionsFromJSON"]) delete PublicKeyCredential[name];
delete PublicKeyCredential.prototype.toJSON;
for (const name of Object.getOwnPropertyNames(PublicKeyCredential)) {
    if (name.startsWith("signal") || name === "getClientCapabilities") delete PublicKeyCredential[name];
}
delete AbortSignal.timeout;
"""
WITH_HELPERS_THAT_THROW = """
const broken = () => { throw new TypeError("Illegal invocation"); };
PublicKeyCredential.parseCreationOptionsFromJSON = PublicKeyCredential.parseRequestOptionsFromJSON = broken;
PublicKeyCredential.prototype.toJSON = broken;
PublicKeyCredential.signalAllAcceptedCredentials = PublicKeyCredential.signalCurrentUserDetails = broken;
"""

WITH_SIGNALS_THAT_NEVER_END = """
PublicKeyCredential.signalAllAcceptedCredentials = () => new Promise(() => {});
PublicKeyCredential.signalCurrentUserDetails = () => Promise.reject(new Error("nobody is here"));
"""

CLIENTS = {
    "a credential whose methods throw": WITH_A_REAL_RESPONSE + PRETENDER,
    "a credential and a response whose methods throw": WITH_NO_METHOD_THAT_WORKS + PRETENDER,
    "views, padding and odd transports": WITH_ODD_MEMBERS + PRETENDER,
    "results that are null": WITHOUT_HANDLE + PRETENDER,
    "no helpers": WITHOUT_HELPERS,
    "helpers that throw": WITH_HELPERS_THAT_THROW,
    "signals that never end": WITH_SIGNALS_THAT_NEVER_END,
    "no helpers and a credential whose methods throw": WITHOUT_HELPERS + WITH_A_REAL_RESPONSE + PRETENDER,
}


@pytest.mark.parametrize("script", CLIENTS.values(), ids=CLIENTS)
async def test_it_registers_signs_in_and_adds_a_passkey(visiting: Visit, script: str) -> None:
    visitor = await visiting(scripts=[f"{{{script}}}"])
    name = await registered(visitor)
    await sign_out(visitor)
    await sign_in(visitor)
    await signed_in(visitor, name)

    async def plug_in(route: Route) -> None:
        await visitor.another_authenticator("usb")
        await route.continue_()

    # only now: where transports are not known, Chromium would ask a key that has no passkey yet, for ever
    await visitor.page.route("**/webauthn/registration/options", plug_in)
    await visitor.page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(visitor, 2)


async def test_transports_are_kept_where_the_client_can_say_them(visiting: Visit) -> None:
    visitor = await visiting(transport="usb", scripts=[f"{{{WITHOUT_HELPERS}}}"])
    await registered(visitor)
    await expect(passkeys(visitor)).to_contain_text("plugged in")


async def test_a_passkey_in_the_field_signs_in_without_the_helpers(visiting: Visit) -> None:
    visitor = await visiting(scripts=[f"{{{WITHOUT_HELPERS}}}"])
    name = await registered(visitor)
    await sign_out(visitor)
    await visitor.autofills()
    await visitor.page.reload()
    await signed_in(visitor, name)


UNREADABLE = "Your password manager gave an answer that cannot be read. Update it, or use another one"


def _made_of(raw_id: str, client_data: str) -> str:
    response = f"{{ clientDataJSON: {client_data}, attestationObject: new ArrayBuffer(9) }}"
    return f"({{ rawId: {raw_id}, response: {response} }})"


GIVEN: dict[str, tuple[str, str]] = {
    "null": ("null", UNREADABLE),
    "undefined": ("undefined", UNREADABLE),
    "text": ("'passkey'", UNREADABLE),
    "an empty object": ("({})", UNREADABLE),
    "a prototype and nothing else": ("Object.create(PublicKeyCredential.prototype)", UNREADABLE),
    "no response": ("({ rawId: new ArrayBuffer(16) })", UNREADABLE),
    "text for bytes": (_made_of("new ArrayBuffer(16)", "'e30'"), UNREADABLE),
    "no bytes": (_made_of("new ArrayBuffer(0)", "new ArrayBuffer(9)"), UNREADABLE),
    "too many bytes": (_made_of("new ArrayBuffer(16)", "new ArrayBuffer(9000)"), UNREADABLE),
    "bytes that mean nothing": (
        _made_of("new ArrayBuffer(16)", "new ArrayBuffer(9)"),
        "This passkey was not accepted.",
    ),
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize(("given", "said"), GIVEN.values(), ids=GIVEN)
async def test_what_is_no_credential_is_said_in_a_sentence(visiting: Visit, given: str, said: str) -> None:
    visitor = await visiting(scripts=[f"navigator.credentials.create = async () => {given};"])
    await visitor.page.get_by_label("User name").fill("nobody at all")
    await visitor.page.get_by_role("button", name="Create an account").click()
    await says(visitor, said)
    await expect(visitor.page.get_by_role("button", name="Create an account")).to_be_enabled()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def url_with_prf(
    loopback_certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    async with visitor_module.serving(loopback_certificate, tmp_path_factory.mktemp("rp"), "--prf") as url:
        yield url


SPY = """
window.evaluated = [];
const get = navigator.credentials.get.bind(navigator.credentials);
navigator.credentials.get = async (options) => {
    const credential = await get(options);
    const { first } = credential.getClientExtensionResults().prf?.results ?? {};
    if (first) {
        const text = btoa(String.fromCharCode(...new Uint8Array(first)));
        sessionStorage.evaluated = text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    }
    return credential;
};
"""


@pytest.mark.threat("T11")
async def test_prf_is_asked_for_and_what_it_evaluates_to_stays_in_the_browser(
    chromium: Browser, url_with_prf: str
) -> None:
    visitor = await visit(chromium, url_with_prf, scripts=[SPY])
    name = await registered(visitor)
    await sign_out(visitor)
    await sign_in(visitor)
    await signed_in(visitor, name)
    evaluated = await visitor.page.evaluate("sessionStorage.evaluated")
    assert len(unb64(evaluated)) == 32
    bodies = _responses(visitor)
    assert [body["clientExtensionResults"] for body in bodies] == [
        {"credProps": {"rk": True}, "prf": {"enabled": True}},
        {},
    ]
    assert not any(evaluated in body for body in visitor.sent)
    await visitor.page.context.close()


def _responses(visitor: Visitor) -> list[dict[str, Any]]:
    bodies = [json.loads(body) for body in visitor.sent if body]
    return [body["response"] for body in bodies if "response" in body]
