"""What anybody may read about a relay: how to speak to it, and what its problems mean."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from companion_push.identity.settings import OpenIdSettings
from companion_push.push.channel import Kind
from companion_push.relay import openapi
from companion_push.relay.app import RELAY, make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.ladder import Ladder, Rung
from companion_push.relay.limits import Quota, Rate
from companion_push.relay.problems import Slug, type_of
from tests.push.recording import RecordingChannel
from tests.relay.household import Relay, rates, running_relay

CONFIGURATION = "/.well-known/companion-push-configuration"
ROOT = Path(__file__).parent.parent.parent
STRANGER_PATHS = (CONFIGURATION, "/openapi.json", "/problems", "/problems/expired")


async def read(relay: Relay, path: str, **headers: str) -> tuple[aiohttp.ClientResponse, str]:
    async with relay.session.get(relay.url + path, headers=headers) as response:
        return response, await response.text()


async def configuration(relay: Relay) -> dict[str, Any]:
    async with relay.session.get(relay.url + CONFIGURATION) as response:
        assert response.content_type == "application/json"
        return dict(await response.json())


async def test_the_configuration_says_how_to_speak_to_this_relay(tmp_path: Path) -> None:
    quota = Quota(pending=2, rates=(Rate(count=7, seconds=60),), account_rates=(Rate(count=9, seconds=3600),))
    fcm = RecordingChannel(Kind.FCM)
    ladder = Ladder(device=(Rung(count=3, seconds=60), Rung(count=4, seconds=300)), account=())
    more: dict[str, Any] = {"quota": quota, "ladder": ladder, "ceiling": 120}
    async with running_relay(tmp_path / "s", **more, channels=[fcm]) as relay:
        told = await configuration(relay)
    assert told["public_url"] == relay.url
    assert told["versions"] == ["v1"]
    assert told["proofs"] == {"type": "dpop+jwt", "algorithms": ["ES256"], "nonce": True, "clock_skew": 60}
    assert told["limits"] == {
        "body_bytes": 98_304,
        "envelopes": 16,
        "envelope_bytes": 3072,
        "rings_handed_in": 32,
        "wait_seconds": 25,
        "held_calls": 4,
        "request_seconds": 120,
        "lease_seconds": 60,
        "pending_requests": 2,
        "requests_of_device": [{"count": 7, "seconds": 60}],
        "requests_of_account": [{"count": 9, "seconds": 3600}],
        "pauses_of_device": [{"count": 3, "seconds": 60}, {"count": 4, "seconds": 300}],
        "pauses_of_account": [],
    }
    assert told["features"] == {
        "push": {"kinds": ["fcm"]},
        "stream": {"endpoint": f"{relay.url}/v1/inbox/stream"},
    }
    assert told["problems"] == {
        "type": "urn:headless-passkey:problem:{slug}",
        "page": f"{relay.url}/problems/{{slug}}",
    }
    assert told["openapi"] == f"{relay.url}/openapi.json"


async def test_the_configuration_lists_every_endpoint_of_the_router(relay: Relay) -> None:
    told = (await configuration(relay))["endpoints"]
    for route in relay.app.router.routes():
        assert route.resource is not None
        if route.resource.canonical.startswith("/v1/"):
            assert route.method in told[relay.url + route.resource.canonical]
    assert told[f"{relay.url}/v1/requests/{{id}}"] == ["GET", "PUT"]


async def test_where_companions_sign_in_is_told(tmp_path: Path) -> None:
    openid = OpenIdSettings(issuer="https://id.example", audience="relay", clients=("companion", "other"))
    async with running_relay(tmp_path / "s", openid=openid) as relay:
        assert (await configuration(relay))["features"]["oidc"] == {
            "endpoint": f"{relay.url}/v1/accounts/sign-in",
            "issuer": "https://id.example",
            "client": "companion",
            "audience": "relay",
        }


async def test_the_description_is_made_once(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers may ask for it as often as they like."""
    made: list[str] = []
    describe = openapi.describe

    def counted(url: str) -> dict[str, Any]:
        made.append(url)
        return describe(url)

    monkeypatch.setattr(openapi, "describe", counted)
    first, text = await read(relay, "/openapi.json")
    for _ in range(2):
        again, same = await read(relay, "/openapi.json")
        assert (again.status, again.headers["ETag"], same) == (200, first.headers["ETag"], text)
    assert made == [relay.url]


async def test_a_feature_that_is_registered_is_told(relay: Relay) -> None:
    relay.app[RELAY].documents.features["graphql"] = {"endpoint": f"{relay.url}/graphql"}
    assert (await configuration(relay))["features"]["graphql"] == {"endpoint": f"{relay.url}/graphql"}


@pytest.mark.parametrize("prefix", ["/push", "/v1", "/a/v1/b"])
def test_behind_a_prefix_the_endpoints_are_those_that_clients_use(prefix: str, tmp_path: Path) -> None:
    url = f"https://host.example{prefix}"
    relay, host = make_app(RelayConfig(public_url=url, store=tmp_path / "s")), web.Application()
    host.add_subapp(prefix, relay)
    endpoints = relay[RELAY].documents.configuration(relay.router.routes())["endpoints"]
    assert f"{url}/v1/ring" in endpoints
    assert all(endpoint.startswith(f"{url}/v1/") for endpoint in endpoints)


@pytest.mark.threat("T13")
async def test_strangers_learn_no_limit_of_addresses_and_nothing_of_the_software(tmp_path: Path) -> None:
    async with running_relay(
        tmp_path / "s", held_per_address=7777, failures_per_address=8888, quota=rates(3, 60)
    ) as relay:
        for path in STRANGER_PATHS:
            response, text = await read(relay, path)
            assert "7777" not in text
            assert "8888" not in text
            assert str(tmp_path) not in text
            assert not {"aiohttp", "Python"} & {*text.split(), *str(response.headers).split()}


@pytest.mark.parametrize("path", STRANGER_PATHS)
async def test_a_document_may_be_kept_and_costs_nothing_to_ask_for_again(relay: Relay, path: str) -> None:
    response, text = await read(relay, path)
    assert response.status == 200
    assert response.headers["Cache-Control"] == "public, max-age=300"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    etag = response.headers["ETag"]
    for known in (etag, f'"other", {etag}', "*"):
        again, body = await read(relay, path, **{"If-None-Match": known})
        assert (again.status, body, again.headers["ETag"]) == (304, "", etag)
        assert again.headers["Cache-Control"] == "public, max-age=300"
    changed, body = await read(relay, path, **{"If-None-Match": '"other"'})
    assert (changed.status, body) == (200, text)


# Problems


class _Words(HTMLParser):
    """What a page says and where it leads, and that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name == "href" and value is not None]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


async def test_every_type_of_problem_has_a_page(relay: Relay) -> None:
    for slug in Slug:
        response, text = await read(relay, f"/problems/{slug}")
        assert response.status == 200
        assert response.content_type == "text/html"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        page = _Words()
        page.feed(text)
        words = "".join(page.words)
        known = type_of(slug)
        for part in (f"urn:headless-passkey:problem:{slug}", known.title, known.meaning, known.advice):
            assert part in words
        assert not page.tags & {"script", "style", "img", "form"}


async def test_the_list_of_problems_leads_to_each_page(relay: Relay) -> None:
    response, text = await read(relay, "/problems")
    page = _Words()
    page.feed(text)
    assert sorted(page.links) == [f"problems/{slug}" for slug in sorted(Slug)]
    for link in page.links:
        async with relay.session.get(response.url.join(type(response.url)(link))) as found:
            assert found.status == 200
    _, text = await read(relay, "/problems/expired")
    page = _Words()
    page.feed(text)
    assert page.links == ["../problems"]


@pytest.mark.parametrize("slug", ["nothing", "EXPIRED", "expired%00", "..%2fv1"])
async def test_there_is_no_page_of_what_is_no_problem(relay: Relay, slug: str) -> None:
    async with relay.session.get(f"{relay.url}/problems/{slug}") as response:
        assert response.status == 404
        assert (await response.json(content_type=None))["type"] == "urn:headless-passkey:problem:not-found"


def test_every_type_says_what_it_means_and_what_to_do() -> None:
    for slug in Slug:
        known = type_of(slug)
        assert 400 <= known.status < 600
        assert re.fullmatch(r"[A-Z][^.]+", known.title), slug
        for text in (known.meaning, known.advice):
            assert re.fullmatch(r"[A-Z].+\.", text), slug


def test_the_documentation_lists_each_problem_with_its_status() -> None:
    page = (ROOT / "docs" / "protocol" / "relay.md").read_text(encoding="utf-8")
    table = page.partition("## Errors")[2].partition("\n## ")[0]
    listed = {
        slug: int(row[1])
        for row in re.finditer(r"^\| (\d{3}) \| ([^|]+) \|", table, re.MULTILINE)
        for slug in re.findall(r"`([a-z-]+)`", re.sub(r"\[[^\]]*\]", "", row[2]))
    }
    assert listed == {str(slug): type_of(slug).status for slug in Slug}
