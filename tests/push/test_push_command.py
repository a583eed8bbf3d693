"""`companion-push push`, as an operator uses it."""

import asyncio
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from certificates import Certificate

from companion_push import push_command
from companion_push.cli import make_parser
from companion_push.push import endpoints
from companion_push.push.vapid import VapidKey
from headless_passkey.errors import SetupError, SetupReason, TransportError, TransportReason, UsageError
from headless_passkey.text.base64url import from_base64url
from tests.programs import run
from tests.push.receiver import Receiver, receiving

CONTACT = ("--vapid-contact", "mailto:push@example.com")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "vapid.pem"
    VapidKey.generate().write(path)
    return path


@pytest_asyncio.fixture
async def there(loopback_certificate: Certificate) -> AsyncIterator[Receiver]:
    async with receiving(loopback_certificate) as receiver:
        yield receiver


async def call(*words: object) -> None:
    args = make_parser("push").parse_args(["push", *map(str, words)])
    await args.main(args)


@pytest.mark.threat("T11")
async def test_keys_makes_a_key_once_and_prints_the_public_half(tmp_path: Path) -> None:
    path = tmp_path / "vapid.pem"
    status, stdout, stderr = await run("companion_push", "push", "keys", path)
    assert (status, stderr) == (0, "")
    key = VapidKey.read(path)
    assert stdout == key.public + "\n"
    assert from_base64url(key.public)[0] == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_bytes()
    status, stdout, stderr = await run("companion_push", "push", "keys", path)
    assert (status, stdout) == (10, "")
    assert stderr == f"companion-push: {path} is there already, and is left as it is [state-unwritable]\n"
    assert path.read_bytes() == written
    status, stdout, stderr = await run("companion_push", "push", "keys", tmp_path / "nowhere" / "vapid.pem")
    assert (status, stdout) == (10, "")


WRONG: dict[str, Sequence[str]] = {
    "nothing": (),
    "a host without a key": ("--web-push-host", "push.example"),
    "a contact without a key": CONTACT,
    "a key without a contact": ("--vapid-key", "{key}"),
    "a contact that is none": ("--vapid-key", "{key}", "--vapid-contact", "push@example.com"),
    "a host that is none": ("--vapid-key", "{key}", *CONTACT, "--web-push-host", "https://push.example"),
    "a network that is none": ("--vapid-key", "{key}", *CONTACT, "--web-push-network", "10"),
    "any host in a network": (
        *("--vapid-key", "{key}", *CONTACT, "--web-push-host", "any"),
        *("--web-push-network", "10.0.0.0/8"),
    ),
}


@pytest.mark.threat("T13")
@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
async def test_options_that_cannot_be_end_with_2(
    words: Sequence[str], key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((UsageError, SystemExit)) as refused:
        await call("check", *(word.format(key=key_file) for word in words))
    if isinstance(refused.value, SystemExit):  # argparse's way to end
        assert refused.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


async def test_a_key_that_others_can_read_ends_with_10(key_file: Path) -> None:
    key_file.chmod(0o644)  # noqa: ASYNC240  nobody waits
    with pytest.raises(SetupError) as refused:
        await call("check", "--vapid-key", key_file, *CONTACT)
    assert refused.value.reason is SetupReason.STATE_EXPOSED


async def test_a_check_has_the_settings_of_the_relay_and_passes_over_the_others(  # noqa: PLR0917  fixtures
    key_file: Path,
    there: Receiver,
    loopback_certificate: Certificate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(endpoints, "WELL_KNOWN", ())
    monkeypatch.setenv("COMPANION_PUSH_RELAY_VAPID_CONTACT", "mailto:push@example.com")
    monkeypatch.setenv("COMPANION_PUSH_RELAY_LEASE", "30")
    config = tmp_path / "relay.toml"
    config.write_text(
        "[relay]\n"
        'public-url = "https://push.example"\n'
        f'vapid-key = "{key_file}"\n'
        f'web-push-host = ["localhost:{there.port}"]\n'
        'web-push-network = ["127.0.0.0/8"]\n'
        f'web-push-ca = "{loopback_certificate.ca}"\n'
    )
    await call("check", "--config", config)
    public = VapidKey.read(key_file).public
    assert capsys.readouterr().out == (
        f"Web Push: the key can be used, its public key is {public}; answered by localhost\n"
    )


async def test_a_check_of_a_service_that_is_not_trusted_fails(
    key_file: Path, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "WELL_KNOWN", ())
    where = ("--web-push-host", f"localhost:{there.port}", "--web-push-network", "127.0.0.0/8")
    with pytest.raises(TransportError, match="its certificate is not trusted"):
        await call("check", "--vapid-key", key_file, *CONTACT, *where)


class Service:
    """A channel that answers its check so."""

    def __init__(self, answer: str | Exception) -> None:
        self._answer, self.closed = answer, False

    async def check(self) -> str:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    async def close(self) -> None:
        self.closed = True


async def test_every_service_is_asked_and_each_failure_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    services: list[Any] = [
        Service(TransportError("first: away", reason=TransportReason.UNREACHABLE)),
        Service("second: well"),
        Service(SetupError("third: refused", reason=SetupReason.CREDENTIALS_REFUSED, advice="look")),
    ]
    monkeypatch.setattr(push_command, "push_channels", lambda _: services)
    with pytest.raises(SetupError, match="third: refused"):
        await call("check")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("second: well\n", "first: away\n")
    assert all(service.closed for service in services)


async def test_no_service_waits_for_another_to_be_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last_asked = asyncio.Event()

    class Waits(Service):
        async def check(self) -> str:
            await last_asked.wait()
            return await super().check()

    class Asked(Service):
        async def check(self) -> str:
            last_asked.set()
            return await super().check()

    services = [Waits("first: well"), Asked("second: well")]
    monkeypatch.setattr(push_command, "push_channels", lambda _: services)
    await call("check")
    assert capsys.readouterr().out == "first: well\nsecond: well\n"
