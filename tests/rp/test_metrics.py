"""What is counted: where it is told, in which form, and about nobody in particular."""

import asyncio
import re
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from http_serving.metrics import LAG_SECONDS
from relying_party.http.app import make_metrics_app
from relying_party.http.metrics import COUNTED, PREFIX, Metrics
from tests.loop_clock import LoopClock
from tests.rp.authenticator_double import Faults, b64
from tests.rp.clients import Browser, Device, Site

_LINE = re.compile(r'[a-z_]+(\{[a-z_]+="[^"\\]*"(,[a-z_]+="[^"\\]*")*\})? [0-9.e+]+')


async def _told(site: Site) -> str:
    async with TestClient(TestServer(make_metrics_app(site.app))) as http, http.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return await response.text()


async def test_ceremonies_are_counted_by_purpose_kind_and_outcome(site: Site) -> None:
    device = Device(nonce=site.nonce)
    passkey, _ = await site.register(device, "ada")
    await site.sign_in(device, passkey, Faults(counter=5))
    await site.sign_in(device, passkey, Faults(counter=5))
    await site.sign_in(Browser(), passkey, Faults(signature=b"\0"))
    lines = (await _told(site)).splitlines()
    for line in (
        'ceremonies_total{kind="device",outcome="begun",purpose="registration"} 1.0',
        'ceremonies_total{kind="device",outcome="done",purpose="registration"} 1.0',
        'ceremonies_total{kind="device",outcome="done",purpose="sign-in"} 2.0',
        'ceremonies_total{kind="web",outcome="begun",purpose="sign-in"} 1.0',
        'refusals_total{check="library"} 1.0',
        "counter_anomalies_total 1.0",
        'requests_total{route="/webauthn/authentication/result",status="403"} 1.0',
        "request_seconds_count 8.0",
    ):
        assert f"{PREFIX}_{line}" in lines


async def test_every_line_is_in_the_text_format(site: Site) -> None:
    await site.register(Device(), "ada")
    await site.raw("GET", '/nowhere"}\n', {})
    for line in (await _told(site)).splitlines():
        assert line.startswith("# ") or _LINE.fullmatch(line), line


async def test_the_length_of_the_stores_log_is_shown(site: Site) -> None:
    await site.register(Device(), "ada")
    size = _log_size(site)
    assert f"{PREFIX}_store_log_bytes {float(size)}" in (await _told(site)).splitlines()


def _log_size(site: Site) -> int:
    store = site.config.store
    if not isinstance(store, Path):
        return 0
    size = Path(f"{store}-wal").stat().st_size
    assert size > 0
    return size


@pytest.mark.threat("T11")
async def test_no_metric_names_anybody(site: Site) -> None:
    passkey, _ = await site.register(Browser(), "ada.lovelace")
    text = await _told(site)
    for secret in ("ada.lovelace", b64(passkey.credential_id), b64(passkey.user_handle)):
        assert secret not in text


@pytest.mark.parametrize("path", ["/metrics", "/me/../metrics"])
async def test_the_public_address_tells_nothing(site: Site, path: str) -> None:
    assert (await site.raw("GET", path, {})).slug == "not-found"


async def test_strangers_cannot_make_time_series(site: Site) -> None:
    for number in range(20):
        await site.raw("GET", f"/{number}", {})
        await site.raw("DELETE", f"/me/sessions/{number}", Browser().headers("DELETE", "", 0))
    routes = set(re.findall(r'route="([^"]*)"', await _told(site)))
    assert routes == {"-", "/me/sessions/{id}"}


def test_a_histogram_adds_up() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.004, 0.004, 60.0):
        metrics.request(route="/", status=200, seconds=seconds)
    found = {
        bound: metrics.registry.get_sample_value(f"{PREFIX}_request_seconds_bucket", {"le": bound})
        for bound in ("0.001", "0.005", "5.0", "+Inf")
    }
    assert found == {"0.001": 1, "0.005": 3, "5.0": 3, "+Inf": 4}
    assert metrics.registry.get_sample_value(f"{PREFIX}_request_seconds_sum") == pytest.approx(60.0085)


def test_everything_that_is_counted_is_explained() -> None:
    source = "".join(path.read_text() for path in (Path(__file__).parents[2] / "relying_party").rglob("*.py"))
    counted = set(re.findall(r'\.count\(\s*"([a-z_]+)"', source))
    assert counted == set(COUNTED)


async def test_the_event_loop_is_watched_while_the_metrics_are_served(
    site: Site, loop_clock: LoopClock
) -> None:
    async with TestClient(TestServer(make_metrics_app(site.app))) as http:
        lag = f"{PREFIX}_loop_lag_seconds"
        while True:
            await asyncio.sleep(0)  # the task looks at the clock, and waits
            loop_clock.passes(LAG_SECONDS + 60)
            async with http.get("/metrics") as response:
                text = await response.text()
            if f"{lag}_count 0.0" not in text:
                break
    assert f'{lag}_bucket{{le="5.0"}} 0.0' in text, "it was a minute late"
