"""docs/how-to/relay-in-your-service.md: its blocks as one program, which a companion joins; and what it says of accounts."""

import asyncio
import re
import signal
import sys
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from companion_push.errors import StoreUnavailable
from companion_push.relay.app import RELAY, make_app, new_account
from companion_push.relay.config import RelayConfig
from headless_passkey.errors import UsageError
from headless_passkey.trust.account_code import AccountCode
from program_parts.base64url import base64url
from tests.ports import reserved_port
from tests.programs import ROOT
from tests.relay.household import Caller, Clock, Reply, running_relay
from tests.trust.people import companion, found

PATIENCE = 60.0  # seconds: a safety net, so that a hang is a failure
PAGE = ROOT / "docs/how-to/relay-in-your-service.md"


async def join(caller: Caller, code: AccountCode) -> Reply:
    """The first companion founds the account's ring."""
    ring = found(caller.person, account=code.account, account_name=code.account_name, now=caller.clock())
    return await caller.post("/v1/accounts", {"code": base64url(code.code), "ring": base64url(ring.document)})


async def test_the_pages_blocks_are_a_service_that_a_companion_joins(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    port = reserved_port()
    base = f"http://127.0.0.1:{port}"
    code = "\n".join(blocks).replace("https://example.com", base).replace("8080", str(port))
    script = tmp_path / "service.py"
    script.write_text(code.replace("/var/lib/example", str(tmp_path)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        sent = asyncio.Event()
        tracing = aiohttp.TraceConfig()
        tracing.on_request_headers_sent.append(partial(_note_held, sent))
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession(trace_configs=[tracing]) as session:
            assert await process.stdout.readline() == b"serving\n"
            async with session.post(base + "/my/account") as response:
                account = AccountCode.parse((await response.text()).strip())
            assert account.relay_url == base + "/push"
            anna = Caller(companion(), session, base + "/push", Clock())
            assert (await join(anna, account)).status == 201
            async with session.post(base + "/my/account") as response:
                assert response.status == 409
            cursor = (await anna.get("/v1/inbox")).body["cursor"]
            held = asyncio.ensure_future(anna.get(f"/v1/inbox?cursor={cursor}&wait=25"))
            await sent.wait()
            await anna.get("/v1/ring")  # after which it is held
            process.send_signal(signal.SIGTERM)
            assert (await held).status in (200, 503)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        _, stderr = await process.communicate()
    assert stderr.decode() == ""


async def _note_held(
    sent: asyncio.Event, _session: object, _context: object, head: aiohttp.TraceRequestHeadersSentParams
) -> None:
    if "wait" in head.url.query:
        sent.set()


async def test_an_account_that_nobody_has_joined_gets_a_new_code_and_the_old_one_is_void(
    tmp_path: Path,
) -> None:
    async with running_relay(tmp_path / "s") as relay:
        old = await new_account(relay.app, "alice")
        new = await new_account(relay.app, "alice")
        assert old is not None
        assert new is not None
        assert (old.account, old.relay_url) == (new.account, relay.url)
        anna = relay.caller(companion())
        assert (await join(anna, old)).problem == "not-found"
        assert (await join(anna, new)).status == 201
        assert await new_account(relay.app, "alice") is None


async def test_a_code_is_good_as_long_as_was_said(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s") as relay:
        code = await new_account(relay.app, "alice", valid=60)
        assert code is not None
        relay.clock.ahead += 61
        assert (await join(relay.caller(companion()), code)).status in (404, 410)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 300], ids=["empty", "two lines", "long"])
async def test_what_is_no_name_makes_no_account(name: str, tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s") as relay:
        with pytest.raises(UsageError):
            await new_account(relay.app, name)


async def test_a_relay_that_has_not_been_started_says_so(tmp_path: Path) -> None:
    app = make_app(RelayConfig(public_url="http://localhost", store=tmp_path / "s"))
    assert app[RELAY].public_url == "http://localhost"
    with pytest.raises(StoreUnavailable, match="has not been started"):
        await new_account(app, "alice")
