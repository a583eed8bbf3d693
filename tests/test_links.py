"""scripts/links: which addresses it asks, and what it makes of the answers."""

import asyncio
import runpy
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "links"))


def test_it_asks_what_a_page_links_to_and_no_example() -> None:
    page = (
        "[a](https://a.org/x#part) <https://b.org> `[c](https://c.org)` [d](docs/d.md) [e](https://push.example/e)\n"
        "[f](https://localhost:8443) [g](https://example.com/g) [h](https://notexample.org)\n```sh\n[i](https://i.org)\n```\n"
    )
    assert SCRIPT["addresses"](page) == ["https://a.org/x", "https://b.org", "https://notexample.org"]


def test_the_documentation_has_addresses_to_ask() -> None:
    assert sum(len(SCRIPT["addresses"](page.read_text("utf-8"))) for page in SCRIPT["pages"]()) > 20


@pytest.mark.parametrize(
    ("status", "gone"), [(200, None), (403, None), (429, None), (500, None), (404, "404"), (410, "410")]
)
async def test_an_address_is_gone_when_its_server_says_so(status: int, gone: str | None) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/page", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        url = str(server.make_url("/page"))
        assert await asyncio.to_thread(SCRIPT["why_gone"], url, 0.0) == gone
    if status == 200:
        why = await asyncio.to_thread(SCRIPT["why_gone"], url, 0.0)
        assert why.startswith("cannot be reached")


def test_where_nothing_can_be_reached_it_was_not_run() -> None:
    away = "cannot be reached: no name"
    assert SCRIPT["verdict"]({"https://a.org": away, "https://b.org": away}) == (
        77,
        ["not run: no server can be reached from here"],
    )
    assert SCRIPT["verdict"]({"https://a.org": away, "https://b.org": None})[0] == 1
    assert SCRIPT["verdict"]({"https://a.org": "404", "https://b.org": away})[0] == 1
    assert SCRIPT["verdict"]({"https://a.org": None})[0] == 0
