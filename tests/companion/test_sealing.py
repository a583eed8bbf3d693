"""The sealed file of passkeys: the passphrase opens it, and whatever else is done to it changes nothing."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion_push.companion import seal
from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.seal import LONGEST, SealKey, parse_passphrase
from companion_push.companion.sealing import new_key, open_file
from companion_push.companion.software_key import ES256, Registration
from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.hybrid.ctap2 import MakeCredentialRequest, User
from headless_passkey.process import private_file
from headless_passkey.process.terminal import Terminal
from tests.companion.program import PROGRAM, ROOT, at_terminal, outcome
from tests.screen import TIMEOUT

PASSPHRASE = "correct horse"
shares_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> SealKey:
    """A key that cost little, as each one of the test does."""
    monkeypatch.setattr(seal, "_N", 2)
    return SealKey.derive(PASSPHRASE)


@pytest.fixture(scope="module")
def dear_key() -> SealKey:
    return SealKey.derive(PASSPHRASE)


@pytest.fixture
async def sealed(tmp_path: Path, key: SealKey) -> CredentialFile:
    """A sealed file with one passkey."""
    file = CredentialFile(path=tmp_path / "passkeys.json", key=key)
    await file.register(asked(file), now=1)
    return file


@pytest.fixture
async def outside(tmp_path: Path, dear_key: SealKey) -> CredentialFile:
    """As `sealed`, at the cost that programs take."""
    file = CredentialFile(path=tmp_path / "passkeys.json", key=dear_key)
    await file.register(asked(file), now=1)
    return file


def asked(file: CredentialFile, user_id: bytes = b"alice") -> Registration:
    request = MakeCredentialRequest(
        client_data_hash=bytes(32),
        rp_id="example.com",
        rp_name=None,
        user=User(id=user_id),
        algorithms=(ES256,),
    )
    return file.load().make_credential(request)


@contextlib.contextmanager
def nobody() -> Iterator[Terminal]:
    pytest.fail("somebody was asked")
    yield


async def opened(file: CredentialFile, passphrase: str | None = PASSPHRASE) -> CredentialFile:
    return await open_file(replace(file, key=None), passphrase, nobody)


async def test_a_sealed_file_is_opened_by_its_passphrase_and_holds_nothing_in_the_clear(
    sealed: CredentialFile,
) -> None:
    (credential,) = sealed.load().credentials
    assert (await opened(sealed)).load().credentials == (credential,)
    content = sealed.path.read_text()
    assert "example.com" not in content
    assert "private_key" not in content
    assert "demonstrations and tests" in content


async def test_each_writing_has_a_nonce_of_its_own(sealed: CredentialFile) -> None:
    first = sealed.sealed()
    await sealed.register(asked(sealed, b"bob"), now=2)
    second = sealed.sealed()
    assert first is not None
    assert second is not None
    assert first.nonce != second.nonce
    assert (first.salt, first.check) == (second.salt, second.check)


def test_each_seal_has_a_salt_of_its_own(key: SealKey) -> None:
    assert SealKey.derive(PASSPHRASE, key.salt) == key
    assert SealKey.derive(PASSPHRASE).key != key.key


@pytest.mark.threat("T11")
async def test_a_wrong_passphrase_says_so_and_changes_nothing(sealed: CredentialFile) -> None:
    before = sealed.path.read_bytes()
    with pytest.raises(SetupError, match="not the passphrase") as caught:
        await opened(sealed, "correct hoarse")
    assert caught.value.reason is SetupReason.STATE_UNREADABLE
    assert "hoarse" not in str(caught.value)
    assert sealed.path.read_bytes() == before


@pytest.mark.threat("T12")
@given(st.data())
@shares_file
async def test_a_truncated_file_is_refused_and_left(sealed: CredentialFile, data: st.DataObject) -> None:
    whole, registration = sealed.path.read_bytes(), asked(sealed)
    try:
        cut = whole[: data.draw(st.integers(0, len(whole) - 3))]
        private_file.write_private(sealed.path, cut)
        with pytest.raises(SetupError, match="is not a file of software passkeys"):
            await sealed.register(registration, now=2)
        assert sealed.path.read_bytes() == cut
    finally:
        private_file.write_private(sealed.path, whole)


@pytest.mark.threat("T12")
@pytest.mark.parametrize("member", ["seal", "salt", "check", "nonce", "content", "version"])
async def test_a_changed_member_is_refused_and_the_file_is_left(sealed: CredentialFile, member: str) -> None:
    registration = asked(sealed)
    file = json.loads(sealed.path.read_text())
    value = file[member]
    file[member] = value + 1 if isinstance(value, int) else ("A" if value[0] != "A" else "B") + value[1:]
    private_file.write_private(sealed.path, json.dumps(file).encode())
    before = sealed.path.read_bytes()
    with pytest.raises(SetupError):
        await sealed.register(registration, now=2)
    with pytest.raises(SetupError):
        (await opened(sealed)).load()
    assert sealed.path.read_bytes() == before


async def test_a_shortened_content_is_told_from_a_wrong_passphrase(sealed: CredentialFile) -> None:
    file = json.loads(sealed.path.read_text())
    file["content"] = file["content"][:-8]
    private_file.write_private(sealed.path, json.dumps(file).encode())
    with pytest.raises(SetupError, match="was changed since it was sealed"):
        (await opened(sealed)).load()


@pytest.mark.threat("T12")
async def test_another_sealed_file_in_its_place_is_refused_and_left(sealed: CredentialFile) -> None:
    registration = asked(sealed)
    other = SealKey.derive("another passphrase")
    private_file.remove_private(sealed.path)
    await CredentialFile(path=sealed.path).reseal(other)
    before = sealed.path.read_bytes()
    with pytest.raises(SetupError, match="another passphrase"):
        await sealed.register(registration, now=2)
    assert sealed.path.read_bytes() == before


@pytest.mark.threat("T12")
async def test_a_plain_file_in_its_place_is_refused_and_left(sealed: CredentialFile) -> None:
    registration = asked(sealed)
    await sealed.reseal(None)
    before = sealed.path.read_bytes()
    with pytest.raises(SetupError, match="is not sealed, although it was"):
        await sealed.register(registration, now=2)
    with pytest.raises(SetupError, match="a passphrase was given"):
        await opened(sealed)
    assert sealed.path.read_bytes() == before


async def test_a_sealed_file_is_not_read_without_a_passphrase(sealed: CredentialFile) -> None:
    with pytest.raises(SetupError, match="is sealed with a passphrase"):
        replace(sealed, key=None).load()


async def test_two_processes_with_the_passphrase_lose_nothing(sealed: CredentialFile) -> None:
    other = await opened(sealed)
    first, second = asked(sealed, b"bob"), asked(other, b"carol")
    await asyncio.gather(sealed.register(first, now=2), other.register(second, now=3))
    assert {each.user.id for each in sealed.load().credentials} == {b"alice", b"bob", b"carol"}


async def test_a_new_passphrase_takes_the_place_of_the_old_one(sealed: CredentialFile) -> None:
    before = sealed.load()
    now = await sealed.reseal(await new_key("another passphrase", nobody))
    assert now.load() == before
    with pytest.raises(SetupError, match="not the passphrase"):
        await opened(sealed)
    assert (await opened(sealed, "another passphrase")).load() == before


async def test_a_plain_file_needs_no_passphrase(tmp_path: Path) -> None:
    file = CredentialFile(path=tmp_path / "passkeys.json")
    assert await open_file(file, None, nobody) == file
    await file.register(asked(file), now=1)
    assert await open_file(file, None, nobody) == file


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("passphrase", ["", "short", "1234567", "é" * 101])
async def test_a_new_passphrase_of_another_length_is_refused(passphrase: str) -> None:
    with pytest.raises(UsageError):
        await new_key(passphrase, nobody)


def test_a_passphrase_is_the_same_however_it_was_typed() -> None:
    assert parse_passphrase(" cafe\u0301 \r") == parse_passphrase("caf\u00e9")
    assert parse_passphrase("x" * LONGEST) == "x" * LONGEST
    assert parse_passphrase("x" * (LONGEST + 1)) is None


@pytest.mark.threat("T11")
def test_no_repr_shows_the_key(key: SealKey, tmp_path: Path) -> None:
    shown = repr(key) + repr(CredentialFile(path=tmp_path, key=key))
    assert repr(key.key) not in shown
    assert key.key.hex() not in shown


# The program


async def test_the_program_seals_a_file_and_opens_it_by_a_descriptor(outside: CredentialFile) -> None:
    await outside.reseal(None)
    plain = outside.path.read_bytes()
    passphrase = outside.path.with_name("passphrase")
    passphrase.write_text(f"{PASSPHRASE}\r\n")
    words = ("phone", "--seal", "--credentials", outside.path)
    status, _, _ = await outcome(*words, "--new-passphrase-file", "-", stdin=f"{PASSPHRASE}\n")
    assert status == 0
    assert outside.sealed() is not None
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'exec "$@" 9<"{passphrase}"', "sh", *PROGRAM, "phone", "--unseal"),
        *("--credentials", str(outside.path), "--passphrase-file", "/dev/fd/9"),
        cwd=ROOT,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(TIMEOUT):
        assert await process.wait() == 0
    assert outside.path.read_bytes() == plain


@pytest.mark.threat("T11")
async def test_a_passphrase_in_the_arguments_is_not_repeated(outside: CredentialFile) -> None:
    words = ("phone", "--unseal", "--credentials", outside.path, "--passphrase-file", PASSPHRASE)
    status, _, said = await outcome(*words)
    assert status == 2
    assert PASSPHRASE not in "\n".join(said)


async def test_stdin_is_not_read_for_two_things(outside: CredentialFile) -> None:
    words = ("phone", "--seal", "--credentials", outside.path, "--passphrase-file", "-")
    status, _, said = await outcome(*words, "--new-passphrase-file", "-", stdin="a\nb\n")
    assert (status, "stdin" in said[-1]) == (2, True)


@pytest.mark.threat("T11")
async def test_the_terminal_asks_for_the_passphrase_again_and_shows_none(outside: CredentialFile) -> None:
    words = ("phone", "--unseal", "--credentials", outside.path)
    async with at_terminal(*words, stdin="", raw=False) as (program, screen):
        seen = await screen.until("passkeys.json: ")
        screen.type("wrong horse\n")
        seen += await screen.until("not its passphrase.")
        seen += await screen.until("passkeys.json: ")
        screen.type(f"{PASSPHRASE}\n")
        assert await program.ended() == 0
        seen += screen.seen
    assert "horse" not in seen
    assert len(CredentialFile(path=outside.path).load().credentials) == 1


@pytest.mark.parametrize(("typed", "status"), [(["\x04"], 6), (["\x03"], 130), (["wrong\n"] * 3, 10)])
async def test_without_the_passphrase_the_file_stays_sealed(
    outside: CredentialFile, typed: list[str], status: int
) -> None:
    before = outside.path.read_bytes()
    words = ("phone", "--unseal", "--credentials", outside.path)
    async with at_terminal(*words, stdin="", raw=False) as (program, screen):
        for keys in typed:
            await screen.until("passkeys.json: ")
            screen.type(keys)
        assert await program.ended() == status
    assert outside.path.read_bytes() == before


async def test_a_program_that_is_ended_at_the_question_leaves_the_terminal_as_it_was(
    outside: CredentialFile,
) -> None:
    words = ("phone", "--unseal", "--credentials", outside.path)
    async with at_terminal(*words, stdin="", raw=False) as (program, screen):
        await screen.until("passkeys.json: ")
        assert not screen.echoes
        program.terminate()
        assert await program.ended() == 130
        assert screen.echoes


async def test_a_new_passphrase_is_typed_twice(tmp_path: Path) -> None:
    file = CredentialFile(path=tmp_path / "passkeys.json")
    async with at_terminal("phone", "--seal", "--credentials", file.path, stdin="", raw=False) as (
        program,
        screen,
    ):
        for question, keys in (
            ("New passphrase: ", "short\n"),
            ("New passphrase: ", f"{PASSPHRASE}\n"),
            ("Again: ", "another horse\n"),
            ("New passphrase: ", f"{PASSPHRASE}\n"),
            ("Again: ", f"{PASSPHRASE}\n"),
        ):
            await screen.until(question)
            screen.type(keys)
        assert await program.ended() == 0
    assert (await opened(file)).load().credentials == ()
    assert file.path.stat().st_mode & 0o777 == 0o600
