"""A security key that answers in the place of a phone's passkeys: one command is relayed to it over USB or NFC (CTAP 2.2 §11.2, §11.3).

A phone is asked over hybrid with one command, and a security key takes several: what this machine does between the two is a client
platform's part (§6.5). It asks for the PIN, or has the key verify its user, and authorises the command with the token that it gets;
probes long lists; collects all accounts and lets the user choose; evaluates prf by ``hmac-secret`` (§12.7). What the key signs goes on
as it is, so the flags and the attestation are the key's. python-fido2 speaks to the key; its calls block, and each runs in a
thread of its own.

The key knows neither the relying party's name nor the device: the user is asked at the terminal before the key is touched.
"""

import asyncio
import contextlib
import errno
import logging
import threading
import unicodedata
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from fido2.ctap import STATUS, CtapDevice
from fido2.ctap import CtapError as Fido2Error
from fido2.ctap2.base import Ctap2, Info
from fido2.ctap2.pin import ClientPin, PinProtocol
from fido2.hid import CAPABILITY, CTAPHID, list_descriptors, open_device
from fido2.webauthn import AuthenticatorData

from companion_push.companion.phone import account_name, choose_number
from companion_push.companion.software_extensions import CRED_PROTECT, PRF, Prf, refuse
from headless_passkey.errors import (
    CtapError,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    TransportError,
    TransportReason,
)
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    Command,
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    Status,
    User,
    status_name,
)
from headless_passkey.process.terminal import Terminal
from program_parts.domains import is_domain
from program_parts.names import printable

HMAC_SECRET: Final = "hmac-secret"  # noqa: S105
LOOK: Final = 0.5  # seconds between two looks for a key

_STOP: Final = 2.0  # seconds for a key to give up a command that nobody waits for
_MAX_ACCOUNTS: Final = 64
_MAX_UV: Final = 3  # attempts of a key's own verification, before its PIN
_NEXT_ASSERTION: Final = 0x08
_DEFAULT_CHUNK: Final = 8  # credential IDs in one message of a key that does not say how many it takes
_NO_HASH: Final = bytes(32)

_E = Fido2Error.ERR
_PIN_IS_OVER: Final = {
    _E.PIN_AUTH_BLOCKED: "Three wrong PINs: pull the key out and plug it in again before the next try.",
    _E.PIN_BLOCKED: "The key's PIN is blocked: only a reset makes the key usable again, and it loses all passkeys.",
    _E.PIN_POLICY_VIOLATION: "The key wants a new PIN first: change it with a program for such keys.",
    _E.PIN_NOT_SET: "The key has no PIN: set one with a program for such keys.",
}

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class Person(Protocol):
    """Whoever sits before the key."""

    def tell(self, stage: str, text: str) -> None:
        """Tell what to do, or what happened."""

    async def pin(self, tries: int) -> str | None:
        """Ask for the key's PIN; None when the person gives none. tries: how many are left."""

    async def choose(self, accounts: Sequence[User]) -> int | None:
        """Ask which account is meant; None for none of them."""

    async def choose_key(self, names: Sequence[str]) -> int | None:
        """Ask which security key is meant; None for none of them."""


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A security key that was found."""

    name: str  # its product's name, and where it is
    open: Callable[[], CtapDevice] = field(repr=False)


def find_keys() -> list[FoundKey]:
    """The CTAP2 keys that are plugged in, or lie on a reader where pyscard is installed. Blocks."""
    found = []
    for descriptor in list_descriptors():  # type: ignore[no-untyped-call]
        open_key = partial(open_device, descriptor.path)
        with contextlib.suppress(Exception), open_key() as device:
            if device.capabilities & CAPABILITY.CBOR:
                name = f"{device.product_name or 'security key'} ({descriptor.path})"
                found.append(FoundKey(name, open_key))
    return found + _find_cards()


def _find_cards() -> list[FoundKey]:
    try:
        from fido2.pcsc import CtapPcscDevice  # noqa: PLC0415
    except ImportError:  # no pyscard
        return []

    def open_card(reader: str) -> CtapDevice:
        for device in CtapPcscDevice.list_devices(reader):
            return device
        raise OSError(errno.ENODEV, "no key on the reader")

    found = []
    with contextlib.suppress(Exception):  # no PC/SC service
        for device in CtapPcscDevice.list_devices():
            reader = device._name  # noqa: SLF001
            device.close()
            found.append(FoundKey(reader, partial(open_card, reader)))
    return found


async def wait_for_key(
    person: Person,
    *,
    timeout: float,  # noqa: ASYNC109
    find: Callable[[], list[FoundKey]] = find_keys,
) -> FoundKey:
    """Wait for a key, at most `timeout` seconds; `TransportError` when there is none. Of several the person chooses one."""
    told = False
    try:
        async with asyncio.timeout(timeout):
            while not (found := await _in_thread(find)):
                if not told:
                    person.tell("no-key", "Plug a security key in.")
                told = True
                await asyncio.sleep(LOOK)
    except TimeoutError as error:
        raise TransportError(
            f"no security key was plugged in within {timeout:g} s, or none that this user may open",
            reason=TransportReason.NO_INPUT,
        ) from error
    if len(found) == 1:
        return found[0]
    which = await person.choose_key([each.name for each in found])
    if which is None:
        raise NotApproved(Outcome.DECLINED, "no security key was chosen")
    return found[which]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityKey:
    """A security key as a phone's authenticator."""

    found: FoundKey
    person: Person

    async def info(self) -> GetInfoResponse:
        """What the key says of itself, as far as it holds over hybrid (§6.4)."""
        async with self._opened() as key:
            info = key.info
        can_verify = bool(info.options.get("uv") or info.options.get("clientPin"))
        extensions = [CRED_PROTECT] if "credProtect" in info.extensions else []
        if HMAC_SECRET in info.extensions:
            extensions.append(PRF)
        return GetInfoResponse(
            versions=tuple(each for each in info.versions if each.startswith("FIDO_2")),
            aaguid=bytes(info.aaguid),
            extensions=tuple(extensions),
            options={"rk": bool(info.options.get("rk")), "up": True} | ({"uv": True} if can_verify else {}),
            transports=("hybrid",),
            algorithms=tuple(each["alg"] for each in info.algorithms),
        )

    async def ask(self, command: int, payload: bytes) -> "KeyAsked":
        """Parse a command; the key itself is asked after the user's consent."""
        request: MakeCredentialRequest | GetAssertionRequest
        try:
            match command:
                case Command.MAKE_CREDENTIAL:
                    request = MakeCredentialRequest.parse(payload)
                case Command.GET_ASSERTION:
                    request = GetAssertionRequest.parse(payload)
                    if not request.user_presence:
                        refuse(Status.UNSUPPORTED_OPTION)
                case _:
                    refuse(Status.INVALID_COMMAND)
        except RemoteProtocolError:
            refuse(Status.INVALID_CBOR)
        if not is_domain(request.rp_id):
            refuse(Status.INVALID_PARAMETER)
        return KeyAsked(key=self, request=request, prf=Prf.of(request.extensions))

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator["_OpenKey"]:
        """Open the key for one command."""
        devices: list[CtapDevice] = []

        def open_key() -> Ctap2:
            devices.append(self.found.open())
            return Ctap2(devices[0])

        try:
            ctap = await _answered(_in_thread(open_key))
            yield _OpenKey(device=devices[0], ctap=ctap, person=self.person)
        finally:
            for device in devices:
                with contextlib.suppress(Exception):  # it has gone
                    device.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAsked:
    """A command for a security key that waits for the user's consent."""

    key: SecurityKey = field(repr=False)
    request: MakeCredentialRequest | GetAssertionRequest
    prf: Prf | None = None

    @property
    def rp_id(self) -> str:
        return self.request.rp_id

    @property
    def accounts(self) -> tuple[User, ...]:
        """The new account; none for an assertion, whose accounts the key tells after it was touched."""
        return (self.request.user,) if isinstance(self.request, MakeCredentialRequest) else ()

    async def answer(self, *, account: int, now: int) -> bytes:
        """Have the key answer; see `Asked.answer`."""
        del account, now
        async with self.key._opened() as key:  # noqa: SLF001
            match self.request:
                case MakeCredentialRequest() as making:
                    return (await key.make_credential(making, self.prf)).encode()
                case GetAssertionRequest() as asking:
                    return (await key.get_assertion(asking, self.prf)).encode()


@dataclass(frozen=True, slots=True)
class _Token:
    """The right to use the key once its user was verified (§6.5)."""

    protocol: PinProtocol
    token: bytes = field(repr=False)

    def members(self, client_data_hash: bytes, *, at: int) -> dict[int, Any]:
        """The members pinUvAuthParam and pinUvAuthProtocol. at: the key of the first."""
        param = self.protocol.authenticate(self.token, client_data_hash)
        return {at: param, at + 1: self.protocol.VERSION}


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenKey:
    """A security key while it answers one command."""

    device: CtapDevice
    ctap: Ctap2 = field(repr=False)
    person: Person

    @property
    def info(self) -> Info:
        return self.ctap.info

    async def make_credential(
        self, request: MakeCredentialRequest, prf: Prf | None
    ) -> MakeCredentialResponse:
        token, own = await self._verified(
            request.rp_id, wanted=request.user_verification, making=True, resident=request.resident_key
        )
        excluded = request.exclude_list
        if excluded and not self._fits_one_message(excluded):
            excluded = await self._probe(request.rp_id, excluded, token)
        extensions: dict[str, Any] = self._passed_on(request.extensions)
        if prf is not None and HMAC_SECRET in self.info.extensions:
            extensions[HMAC_SECRET] = True
        plain = replace(request, exclude_list=excluded, extensions=extensions, user_verification=own)
        members = cbor.decode_map(plain.encode())
        if token is not None:
            members |= token.members(request.client_data_hash, at=8)
        reply = MakeCredentialResponse.parse(await self._call(Command.MAKE_CREDENTIAL, members))
        if prf is None:
            return reply
        enabled = _outputs(reply.auth_data).get(HMAC_SECRET) is True
        return replace(reply, unsigned_extension_outputs={PRF: {"enabled": enabled}})

    async def get_assertion(self, request: GetAssertionRequest, prf: Prf | None) -> GetAssertionResponse:
        token, own = await self._verified(
            request.rp_id, wanted=request.user_verification, making=False, resident=False
        )
        allowed = request.allow_list
        if allowed and not (self._fits_one_message(allowed) and (prf is None or not prf.by_credential)):
            allowed = await self._probe(request.rp_id, allowed, token)
            if not allowed:
                refuse(Status.NO_CREDENTIALS)
        extensions: dict[str, Any] = {}
        salts = prf and _salts_for(prf, allowed)
        hmac_secret = None
        if salts and HMAC_SECRET in self.info.extensions:
            hmac_secret = await self._hmac_secret(salts)
            extensions[HMAC_SECRET] = hmac_secret.input
        plain = replace(request, allow_list=allowed, extensions=extensions, user_verification=own)
        members = cbor.decode_map(plain.encode())
        if token is not None:
            members |= token.members(request.client_data_hash, at=6)
        first = GetAssertionResponse.parse(await self._call(Command.GET_ASSERTION, members))
        count = first.number_of_credentials or 1
        if count > _MAX_ACCOUNTS:
            raise _broken(f"it has {count} accounts for one relying party")
        replies = [first]
        while len(replies) < count:
            replies.append(GetAssertionResponse.parse(await self._call(_NEXT_ASSERTION, None)))
        reply = await self._chosen(replies)
        if reply.credential_id is None and len(allowed) == 1:
            reply = replace(reply, credential_id=allowed[0])  # a key may leave out the only one (§6.2.2)
        outputs: dict[str, Any] = {}
        if prf is not None:
            outputs[PRF] = {} if hmac_secret is None else hmac_secret.results(reply.auth_data)
        return replace(
            reply,
            number_of_credentials=None,
            user_selected=not request.allow_list,
            large_blob_key=None,
            unsigned_extension_outputs=outputs,
        )

    async def _chosen(self, replies: Sequence[GetAssertionResponse]) -> GetAssertionResponse:
        """The assertion of the account that the user chooses."""
        accounts = [each.user for each in replies if each.user is not None]
        if len(replies) == 1:
            return replies[0]
        if len(accounts) != len(replies):
            raise _broken("it has several accounts, and does not say which")
        which = await self.person.choose(accounts)
        if which is None:
            raise NotApproved(Outcome.DECLINED, "the user declined")
        return replies[which]

    def _passed_on(self, extensions: Mapping[str, Any]) -> dict[str, Any]:
        """The extensions that the key gets as they are."""
        return {
            name: value
            for name, value in extensions.items()
            if name == CRED_PROTECT and name in self.info.extensions
        }

    # Verification

    async def _verified(
        self, rp_id: str, *, wanted: bool, making: bool, resident: bool
    ) -> tuple[_Token | None, bool]:
        """Verify the user where that is wanted, or the key takes no command without it.

        Returns the token, and whether the command itself asks the key to verify (the option ``uv``).
        """
        options = self.info.options
        has_uv, has_pin = options.get("uv") is True, options.get("clientPin") is True
        spares = options.get("makeCredUvNotRqd") is True and not resident
        if not (wanted or options.get("alwaysUv") is True or (making and (has_uv or has_pin) and not spares)):
            return None, False
        if not (has_uv or has_pin):
            self.person.tell("key-cannot-verify", _PIN_IS_OVER[_E.PIN_NOT_SET])
            refuse(Status.INVALID_OPTION)
        permissions = ClientPin.PERMISSION.GET_ASSERTION
        if making:
            permissions |= ClientPin.PERMISSION.MAKE_CREDENTIAL
        if has_uv and options.get("pinUvAuthToken") is not True:
            self.person.tell("verify", "The key verifies you: follow it.")
            return None, True
        pin = await _in_thread(lambda: ClientPin(self.ctap))
        if has_uv:
            token = await self._own_verification(pin, permissions, rp_id, may_fail=has_pin)
            if token is not None:
                return _Token(pin.protocol, token), False
        return _Token(pin.protocol, await self._by_pin(pin, permissions, rp_id)), False

    async def _own_verification(
        self, pin: ClientPin, permissions: ClientPin.PERMISSION, rp_id: str, *, may_fail: bool
    ) -> bytes | None:
        """Have the key verify its user, by a fingerprint for instance; None when its PIN is to be asked for."""
        for _ in range(_MAX_UV):
            self.person.tell("verify", "The key verifies you: touch its sensor.")
            try:
                return await _in_thread(
                    lambda event: pin.get_uv_token(permissions, rp_id, event), cancellable=True
                )
            except Fido2Error as error:
                if error.code not in (_E.UV_INVALID, _E.UV_BLOCKED):
                    raise _ours(error) from error
                self.person.tell("not-verified", "The key did not recognise you.")
                if error.code == _E.UV_BLOCKED:
                    break
        if not may_fail:
            refuse(Status.OPERATION_DENIED)
        return None

    async def _by_pin(self, pin: ClientPin, permissions: ClientPin.PERMISSION, rp_id: str) -> bytes:
        """Ask for the PIN until it is right, or the key takes no more."""
        while True:
            tries, _ = await _answered(_in_thread(pin.get_pin_retries))
            if tries == 0:
                self.person.tell("pin-over", _PIN_IS_OVER[_E.PIN_BLOCKED])
                refuse(Status.OPERATION_DENIED)
            typed = await self.person.pin(tries)
            if typed is None:
                raise NotApproved(Outcome.DECLINED, "no PIN was given")
            number = unicodedata.normalize("NFC", typed)
            if len(number) < self.info.min_pin_length or len(number.encode()) > 63:
                self.person.tell("pin-wrong", f"A PIN has {self.info.min_pin_length} characters or more.")
                continue
            try:
                return await _in_thread(lambda number=number: pin.get_pin_token(number, permissions, rp_id))
            except Fido2Error as error:
                if error.code == _E.PIN_INVALID:
                    self.person.tell("pin-wrong", "That is not the key's PIN.")
                elif error.code in _PIN_IS_OVER:
                    self.person.tell("pin-over", _PIN_IS_OVER[error.code])
                    # the device did not ask for a PIN, and can do nothing about it
                    refuse(Status.OPERATION_DENIED)
                else:
                    raise _ours(error) from error

    # Lists

    def _fits_one_message(self, ids: Sequence[bytes]) -> bool:
        """Whether the key takes all these credential IDs at once. Half of a message is for the rest of the command."""
        size = sum(len(each) + 32 for each in ids)
        return (
            len(ids) <= (self.info.max_creds_in_list or _DEFAULT_CHUNK)
            and size <= self.info.max_msg_size // 2
        )

    async def _probe(self, rp_id: str, ids: Sequence[bytes], token: _Token | None) -> tuple[bytes, ...]:
        """Find which of these credential IDs the key has, without a touch: at most one, the first (§6.1.2, §6.2.2)."""
        longest = self.info.max_cred_id_length or 1023
        left = [each for each in ids if len(each) <= longest]
        while left:
            chunk: list[bytes] = []
            while left and (not chunk or self._fits_one_message([*chunk, left[0]])):
                chunk.append(left.pop(0))
            asking = GetAssertionRequest(
                rp_id=rp_id,
                client_data_hash=_NO_HASH,
                allow_list=tuple(chunk),
                user_presence=False,
                user_verification=False,
            )
            members = cbor.decode_map(asking.encode())
            if token is not None:
                members |= token.members(_NO_HASH, at=6)
            try:
                reply = GetAssertionResponse.parse(await self._call(Command.GET_ASSERTION, members))
            except CtapError as error:
                if error.status != Status.NO_CREDENTIALS:
                    raise
                continue
            return (reply.credential_id or chunk[0],)
        return ()

    # prf

    async def _hmac_secret(self, salts: Mapping[str, bytes]) -> "_HmacSecret":
        """Encrypt the salts for the key (§12.7)."""
        pin = await _in_thread(lambda: ClientPin(self.ctap))
        reply = await _answered(
            _in_thread(lambda: self.ctap.client_pin(pin.protocol.VERSION, ClientPin.CMD.GET_KEY_AGREEMENT))
        )
        agreement, shared = await _in_thread(
            lambda: pin.protocol.encapsulate(reply[ClientPin.RESULT.KEY_AGREEMENT])
        )
        encrypted = pin.protocol.encrypt(shared, b"".join(salts[name] for name in sorted(salts)))
        return _HmacSecret(
            protocol=pin.protocol,
            shared=shared,
            names=tuple(sorted(salts)),
            input={
                1: dict(agreement),
                2: encrypted,
                3: pin.protocol.authenticate(shared, encrypted),
                **({4: pin.protocol.VERSION} if pin.protocol.VERSION > 1 else {}),
            },
        )

    # One command

    async def _call(self, command: int, members: Mapping[int, Any] | None) -> bytes:
        """Send one command and wait for its response; `CtapError` when that is no success. The key says when it waits for a touch."""
        message = bytes([command]) + (b"" if members is None else cbor.encode(dict(members)))
        if len(message) > self.info.max_msg_size:
            refuse(Status.REQUEST_TOO_LARGE)
        loop, person = asyncio.get_running_loop(), self.person

        def on_keepalive(status: STATUS) -> None:
            if status == STATUS.UPNEEDED:
                loop.call_soon_threadsafe(person.tell, "touch", "Touch the security key.")

        reply = await _answered(
            _in_thread(
                lambda event: self.device.call(CTAPHID.CBOR, message, event, on_keepalive), cancellable=True
            )
        )
        if not reply:
            raise _broken("it answered with nothing")
        if reply[0] != Status.SUCCESS:
            raise _ours(Fido2Error(reply[0]))
        return reply[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class _HmacSecret:
    """Salts that were encrypted for a key, and what decrypts its outputs."""

    protocol: PinProtocol
    shared: bytes = field(repr=False)
    names: tuple[str, ...]  # ``first``, and perhaps ``second``
    input: Mapping[int, Any] = field(repr=False)

    def results(self, auth_data: bytes) -> dict[str, Any]:
        """The prf output: ``{"results": …}``, or empty where the key evaluated nothing."""
        output = _outputs(auth_data).get(HMAC_SECRET)
        if not isinstance(output, bytes):
            return {}
        try:
            values = self.protocol.decrypt(self.shared, output)
        except ValueError as error:
            raise _broken("its hmac-secret does not decrypt") from error
        if len(values) != 32 * len(self.names):
            raise _broken("its hmac-secret has another length")
        return {"results": {name: values[32 * n : 32 * n + 32] for n, name in enumerate(self.names)}}


def _salts_for(prf: Prf, allowed: Sequence[bytes]) -> Mapping[str, bytes] | None:
    return prf.by_credential.get(allowed[0], prf.salts) if len(allowed) == 1 else prf.salts


def _outputs(auth_data: bytes) -> Mapping[str, Any]:
    """The signed extension outputs."""
    try:
        return AuthenticatorData(auth_data).extensions or {}
    except Exception as error:
        raise _broken("its authenticator data is malformed") from error


# Threads and errors


def _ours(error: Fido2Error) -> CtapError:
    try:
        status = Status(int(error.code))
    except ValueError:  # a vendor's
        status = Status.OTHER
    return CtapError(status, status_name(status))


async def _answered(work: Coroutine[Any, Any, _T]) -> _T:
    """Await what a key answers; a status that is no success is a `CtapError`."""
    try:
        return await work
    except Fido2Error as error:
        raise _ours(error) from error


def _broken(how: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"the security key breaks the protocol: {how}", reason=ProtocolReason.MALFORMED_CTAP
    )


async def _in_thread(work: Callable[..., _T], *, cancellable: bool = False) -> _T:
    """Run what blocks in a thread of its own; python-fido2's errors become ours.

    cancellable: `work` takes an event, which is set when this is cancelled. A key that does not stop then is left to its thread, which
    keeps no process from ending.
    """
    loop, cancelled = asyncio.get_running_loop(), threading.Event()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]
        else:
            done.set_exception(error)

    def run() -> None:
        result: _T | None = None
        error: Exception | None = None
        try:
            result = work(cancelled) if cancellable else work()
        except Fido2Error as status:
            error = status
        except Exception as other:  # noqa: BLE001  whatever a key's answer makes the library raise
            if isinstance(other, OSError) or type(other).__module__.startswith("smartcard."):
                error = TransportError("the security key has gone, or does not let itself be opened")
            else:
                error = _broken(f"{type(other).__name__} in what it answered")
            error.__cause__ = other
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="security-key", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait({done}, timeout=_STOP)
        if done.done():
            done.exception()
        else:
            logger.warning("the security key does not stop")
            done.cancel()
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class AtTerminal:
    """A person at a terminal."""

    terminal: Callable[[], contextlib.AbstractContextManager[Terminal]]  # `UsageError` where there is none
    on_tell: Callable[[str, str], None]
    first: bool = False  # whether the first of several accounts is taken without asking: for tests

    def tell(self, stage: str, text: str) -> None:
        self.on_tell(stage, text)

    async def pin(self, tries: int) -> str | None:
        with self.terminal() as terminal:
            question = f"PIN of the security key ({tries} tries left):"
            return await terminal.ask(question, lambda line: line or None, hidden=True)

    async def choose(self, accounts: Sequence[User]) -> int | None:
        return 0 if self.first else await self._choose([account_name(each) for each in accounts])

    async def choose_key(self, names: Sequence[str]) -> int | None:
        return await self._choose([printable(each) for each in names])

    async def _choose(self, names: Sequence[str]) -> int | None:
        with self.terminal() as terminal:
            await terminal.show("", *(f"  {number}  {name}" for number, name in enumerate(names, 1)))
            return await choose_number(terminal, len(names))
