"""The software phone's file: what was kept comes back, and nothing else is read."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.seal import SealKey
from companion_push.companion.software_extensions import LargeBlob, Protection
from companion_push.companion.software_key import (
    ES256,
    MAX_BLOBS,
    MAX_CREDENTIALS,
    ML_DSA_44,
    Assertion,
    Credential,
    Registration,
    SoftwareKey,
)
from headless_passkey.errors import CtapError, SetupError
from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    MakeCredentialRequest,
    User,
)
from headless_passkey.process import private_file


@pytest.fixture
def file(tmp_path: Path) -> CredentialFile:
    return CredentialFile(path=tmp_path / "passkeys.json")


def asked(file: CredentialFile, user_id: bytes = b"alice", **changes: Any) -> Registration:
    values: dict[str, Any] = {
        "client_data_hash": bytes(32),
        "rp_id": "example.com",
        "rp_name": None,
        "user": User(id=user_id, name="name", display_name=None),
        "algorithms": (ES256,),
    }
    return file.load().make_credential(MakeCredentialRequest(**(values | changes)))


def test_there_is_nothing_in_a_file_that_is_not_there(file: CredentialFile) -> None:
    assert file.load().credentials == ()


async def test_a_registered_credential_is_read_back(file: CredentialFile) -> None:
    made = await file.register(asked(file), now=1)
    assert file.load().credentials == (made.credential,)


async def test_an_editors_byte_order_mark_is_read_over(file: CredentialFile) -> None:
    made = await file.register(asked(file), now=1)
    file.path.write_bytes(b"\xef\xbb\xbf" + file.path.read_bytes())
    assert file.load().credentials == (made.credential,)


async def test_what_a_credential_can_do_is_read_back(file: CredentialFile) -> None:
    file = replace(file, model=SoftwareKey(synced=True, algorithms=(ML_DSA_44,)))
    extensions = {"credProtect": 3, "largeBlob": {"support": "required"}}
    made = await file.register(asked(file, algorithms=(ML_DSA_44,), extensions=extensions), now=1)
    assert file.load() == replace(file.model, credentials=(made.credential,))
    assert (made.credential.algorithm, made.credential.protection) == (ML_DSA_44, 3)
    assert made.credential.synced
    assert made.credential.blob_enabled


def storing(file: CredentialFile, credential_id: bytes, blob: bytes) -> Assertion:
    use = {"largeBlob": {"write": blob, "originalSize": len(blob)}}
    request = GetAssertionRequest(
        rp_id="example.com", client_data_hash=bytes(32), allow_list=(credential_id,), extensions=use
    )
    return file.load().get_assertion(request)


def said_written(response: GetAssertionResponse) -> bool:
    output: dict[str, bool] = response.unsigned_extension_outputs["largeBlob"]
    return output["written"]


async def test_a_large_blob_is_on_the_disk_when_the_response_says_so(file: CredentialFile) -> None:
    extensions = {"largeBlob": {"support": "required"}}
    made = await file.register(asked(file, extensions=extensions), now=1)
    await file.register(asked(file, b"bob"), now=2)
    response = await file.sign(storing(file, made.credential.credential_id, b"blob"), account=0)
    assert said_written(response)
    first, second = file.load().credentials
    assert (first.blob, second.blob) == (LargeBlob(b"blob", 4), None)
    await file.register(asked(file, b"bob"), now=3)
    assert file.load().credentials[0] == first


async def test_a_large_blob_for_a_credential_that_went_meanwhile_is_not_said_to_be_stored(
    file: CredentialFile,
) -> None:
    extensions = {"largeBlob": {"support": "required"}}
    made = await file.register(asked(file, extensions=extensions), now=1)
    late = storing(file, made.credential.credential_id, b"blob")
    await file.register(asked(file), now=2)  # the same account: in place of the former one
    before = file.path.read_bytes()
    assert not said_written(await file.sign(late, account=0))
    assert file.path.read_bytes() == before


@pytest.mark.parametrize("key", [None, SealKey(bytes(16), bytes(16), bytes(32))], ids=["plain", "sealed"])
def test_the_largest_file_that_can_be_written_can_be_read(file: CredentialFile, key: SealKey | None) -> None:
    file = replace(file, key=key)
    longest = "\x01" * 256
    credential = Credential(
        credential_id=bytes(32),
        rp_id="a" * 255,
        user=User(id=bytes(64), name=longest, display_name=longest),
        private_key=b"1" * 32,
        created=1 << 40,
        discoverable=True,
        synced=False,
        algorithm=ML_DSA_44,
        protection=Protection.REQUIRED,
        blob_enabled=True,
        blob=LargeBlob(bytes(MAX_BLOBS // MAX_CREDENTIALS), 1 << 16),
    )
    full = SoftwareKey((credential,) * MAX_CREDENTIALS)
    file._write(full)
    assert file.load() == full


@given(st.text(max_size=40), st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
async def test_any_names_are_read_back(file: CredentialFile, name: str, display_name: str) -> None:
    user = User(id=b"anybody", name=name, display_name=display_name)
    made = await file.register(asked(file, user=user), now=1)
    assert file.load().credentials == (made.credential,)


async def test_the_file_is_its_owners_alone_and_says_what_it_is(file: CredentialFile) -> None:
    await file.register(asked(file), now=1)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert "demonstrations and tests" in file.path.read_text()


async def test_two_phones_that_share_a_file_lose_nothing(file: CredentialFile) -> None:
    first, second = asked(file, b"alice"), asked(file, b"bob")  # both read before either writes
    await file.register(first, now=1)
    await file.register(second, now=2)
    assert {each.user.id for each in file.load().credentials} == {b"alice", b"bob"}


async def test_an_exclude_list_counts_what_another_phone_added_meanwhile(file: CredentialFile) -> None:
    late = asked(file, b"bob")
    made = await file.register(asked(file, b"alice"), now=1)
    excluding = asked(file, b"bob", exclude_list=(made.credential.credential_id,))
    with pytest.raises(CtapError):
        await file.register(excluding, now=2)
    await file.register(late, now=3)


@pytest.mark.threat("T11")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
async def test_a_file_that_others_may_read_is_refused(file: CredentialFile, mode: int) -> None:
    await file.register(asked(file), now=1)
    file.path.chmod(mode)
    with pytest.raises(SetupError, match="open to others"):
        file.load()


def changed(**changes: Any) -> str:
    entry: dict[str, Any] = {
        "id": "A" * 43 + "=",
        "rp_id": "example.com",
        "user": {"id": "YWxpY2U="},
        "private_key": "A" * 42 + "E=",
        "created": 1,
        "discoverable": True,
        "synced": False,
    }
    credential = {key: value for key, value in (entry | changes).items() if value is not ...}
    return json.dumps({"version": 1, "warning": "", "credentials": [credential]})


def test_the_sample_that_the_refusals_change_is_itself_read(file: CredentialFile) -> None:
    private_file.write_private(file.path, changed().encode())
    assert len(file.load().credentials) == 1


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "null",
        "[" * 100_000,
        changed(private_key="AAAA"),
        changed(private_key="A" * 43 + "="),  # zero is no key
        changed(private_key="_" * 43 + "="),
        changed(private_key="/" * 42 + "8="),  # beyond the group order
        changed(id="AA=="),
        changed(user=...),
        changed(user={"id": ""}),
        changed(rp_id=""),
        changed(created=-1),
        changed(discoverable="yes"),
        changed(extra=1),
        changed(algorithm=-8),
        changed(protection=4),
        changed(blob={"packed": "", "size": 65537}),
        changed().replace('"version": 1', '"version": 2'),
        "\ud800",
    ],
)
def test_anything_but_a_credential_file_is_refused(file: CredentialFile, content: str) -> None:
    private_file.write_private(file.path, content.encode(errors="surrogatepass"))
    with pytest.raises(SetupError) as caught:
        file.load()
    assert "AAAA" not in str(caught.value)


@pytest.mark.threat("T12")
@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_bytes_are_read_or_refused(file: CredentialFile, content: bytes) -> None:
    private_file.write_private(file.path, content)
    with pytest.raises(SetupError):
        file.load()


def test_a_file_that_is_too_long_is_refused(file: CredentialFile) -> None:
    private_file.write_private(file.path, b" " * ((6 << 20) + 1))
    with pytest.raises(SetupError, match="longer"):
        file.load()


def test_what_is_not_a_plain_file_is_refused_at_once(file: CredentialFile) -> None:
    os.mkfifo(file.path, 0o600)
    with pytest.raises(SetupError, match="plain file"):
        file.load()


async def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    file: CredentialFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    await file.register(asked(file, b"alice"), now=1)
    before = file.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    registration = asked(file, b"bob")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match="No space left"):
        await file.register(registration, now=2)
    assert file.path.read_bytes() == before
    assert {path.name for path in file.path.parent.iterdir()} == {"passkeys.json", ".passkeys.json.lock"}


async def test_a_link_is_followed_and_stays_a_link(file: CredentialFile, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(file.path)
    linked = CredentialFile(path=link)
    await linked.register(asked(linked), now=1)
    assert link.is_symlink()
    assert len(file.load().credentials) == 1


async def test_a_directory_that_is_not_there_is_a_clear_failure(tmp_path: Path) -> None:
    file = CredentialFile(path=tmp_path / "missing" / "passkeys.json")
    with pytest.raises(SetupError, match="No such file"):
        await file.register(asked(file), now=1)
