"""python-fido2's `CtapDevice` over hybrid: programs written for `Fido2Client` or `Ctap2` can use a phone.

A security key takes many commands; a phone over hybrid takes one, and closes. So `PhoneDevice` answers the other commands
by itself, and runs one ceremony (`run_ceremony`) for each makeCredential and each getAssertion that needs the user::

    authenticatorGetInfo              answered here: a typical phone's answer, or that of the last phone
    getAssertion with up=False        answered here, NO_CREDENTIALS; its allow list is stored for the command that follows
    authenticatorSelection            answered here: the consent to the ceremony selects the phone
    makeCredential, getAssertion      one ceremony, one command
    anything else                     CTAP1_ERR_INVALID_COMMAND: no PIN, no management, no reset, no U2F

docs/how-to/python-fido2.md tells what this changes for a program. Needs the extra ``fido2``.
"""

import asyncio
import errno
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from headless_passkey.ceremony import CeremonyResult, OptionsSource
from headless_passkey.delivery import Ask
from headless_passkey.errors import (
    CtapError,
    HeadlessPasskeyError,
    LocalProtocolError,
    NotApproved,
    Outcome,
    RemoteProtocolError,
    SetupError,
    TransportError,
    TrustError,
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
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.stages import Stage, StageEvent
from headless_passkey.webauthn.options import (
    MAX_REQUEST_SIZE,
    AuthenticationOptions,
    Credential,
    Options,
    RegistrationOptions,
)
from program_parts.domains import is_domain

try:
    from fido2.ctap import STATUS, CtapDevice
    from fido2.ctap import CtapError as Fido2Error
    from fido2.hid import CAPABILITY, CTAPHID
except ImportError as missing:
    raise ImportError(
        "this needs python-fido2: pip install '.[device,fido2]' in the clone of headless-passkey"
    ) from missing

MAX_MESSAGE_SIZE: Final = 60_000  # bytes of a command; a tunnel takes messages of somewhat more
MAX_PROBES: Final = 256  # credentials remembered from an allow or exclude list

_POLL: Final = 0.05  # seconds; a threading.Event can only be polled
_CANCEL_TIMEOUT: Final = 10.0  # seconds that a cancelled ceremony may take to end
# options of getInfo with a meaning over hybrid
_OPTIONS: Final = frozenset({"rk", "up", "uv", "plat", "alwaysUv", "makeCredUvNotRqd"})
_NEED_OTHER_COMMANDS: Final = frozenset({"hmac-secret", "hmac-secret-mc", "largeBlobKey"})
_ANY_PHONE: Final = GetInfoResponse(  # before the first phone has answered
    versions=("FIDO_2_0", "FIDO_2_1"),
    aaguid=bytes(16),
    options={"rk": True, "up": True, "uv": True},
    transports=("hybrid", "internal"),
)

OnKeepalive = Callable[[STATUS], None]


class Ceremony(Protocol):
    """`run_ceremony` with its other arguments bound, ``partial(run_ceremony, delivery=…, radio=…)``, or a function.

    It runs in the device's own event loop, in which objects such as an aiohttp session must be made.
    """

    def __call__(
        self, ask: Ask, options: OptionsSource, /, *, on_stage: Callable[[StageEvent], None]
    ) -> Coroutine[Any, Any, CeremonyResult]: ...


class PhoneDevice(CtapDevice):
    """A phone as a CTAP device. It runs one ceremony at a time; the caller closes it."""

    def __init__(
        self,
        ceremony: Ceremony,
        *,
        origin: str | None = None,
        on_stage: Callable[[StageEvent], None] = lambda _event: None,
    ) -> None:
        """origin: announced where a delivery wants one; ``https://`` and the RP ID otherwise.

        on_stage: told of every stage, in the thread that waits for the phone.
        """
        self._ceremony, self._origin, self._on_stage = ceremony, origin, on_stage
        self._busy = threading.Lock()
        self._opening = threading.Lock()  # a loop that is started during `close` would never end
        self._loop: _Loop | None = None
        self._run: _Run | None = None
        self._closed = False
        self._phone: GetInfoResponse | None = None
        self._probed: dict[tuple[str, bytes], None] = {}  # RP ID and credential ID, in order

    @property
    def capabilities(self) -> int:
        return CAPABILITY.CBOR | CAPABILITY.NMSG

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        """List nothing: a phone cannot be discovered before it is asked."""
        return iter(())

    def reach(self, kind: RequestKind, rp_id: str, *, event: threading.Event | None = None) -> None:
        """Announce the next command and wait until a phone is connected, which then gets it.

        Without this call, a command announces itself. With it, getInfo is that of the connected phone. A command that
        differs from the announcement is refused, and ends the ceremony.
        """
        with _as_fido2_has_it(), _Alone(self._busy):
            if self._run is not None:
                raise LocalProtocolError("a phone has been reached already")
            run = self._start(Ask(kind=kind, origin=self._origin or f"https://{rp_id}", rp_id=rp_id))
            self._wait(run, event, None, until=Stage.CHANNEL_OPEN)
            self._run = run

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: threading.Event | None = None,
        on_keepalive: OnKeepalive | None = None,
    ) -> bytes:
        """Run one CTAP2 command; returns a status byte and CBOR.

        A failed ceremony raises fido2's `CtapError` where CTAP has a status for it, and `OSError` for
        radio, tunnel and relay, with this project's error as the cause. event: set it to cancel.
        """
        if cmd != CTAPHID.CBOR or not data:
            raise Fido2Error(Fido2Error.ERR.INVALID_COMMAND)
        command, payload = data[0], data[1:]
        with _as_fido2_has_it():
            match command:
                case Command.GET_INFO:
                    self._probed.clear()  # a new start of the program
                    return bytes([Status.SUCCESS]) + self._get_info().encode()
                case Command.GET_ASSERTION:
                    return self._get_assertion(payload, event, on_keepalive)
                case Command.MAKE_CREDENTIAL:
                    return self._make_credential(payload, event, on_keepalive)
                case Command.SELECTION:
                    return bytes([Status.SUCCESS])
        return bytes([Status.INVALID_COMMAND])

    def close(self) -> None:
        """Cancel a running ceremony and end the event loop. Idempotent, and callable from any thread."""
        with self._opening:
            self._closed = True
            loop = self._loop
        if loop is not None:
            loop.close()

    def _get_info(self) -> GetInfoResponse:
        """The last phone's getInfo without what hybrid lacks: PIN, and commands other than the two.

        It names a PIN protocol nevertheless: without one, python-fido2 (2.2.1) requests no user verification.
        """
        said = self._phone or _ANY_PHONE
        return replace(
            said,
            extensions=tuple(name for name in said.extensions if name not in _NEED_OTHER_COMMANDS),
            options={name: value for name, value in said.options.items() if name in _OPTIONS},
            others={0x05: MAX_MESSAGE_SIZE, 0x06: [2], 0x07: MAX_PROBES},
        )

    def _get_assertion(
        self, payload: bytes, event: threading.Event | None, on_keepalive: OnKeepalive | None
    ) -> bytes:
        refusal = _refusal(payload, pin_uv_auth_param=6)
        if refusal is not None:
            return refusal
        request = GetAssertionRequest.parse(payload)
        if not request.user_presence:
            return self._remember(request)
        options = _Assertion(
            origin=self._origin or f"https://{request.rp_id}",
            rp_id=request.rp_id,
            challenge=b"",
            allow_list=self._whole_list(request.rp_id, request.allow_list, only_for=(b"\0",)),
            user_verification="required" if request.user_verification else "discouraged",
            request=request,
        )
        return self._exchange(options, event, on_keepalive)

    def _make_credential(
        self, payload: bytes, event: threading.Event | None, on_keepalive: OnKeepalive | None
    ) -> bytes:
        refusal = _refusal(payload, pin_uv_auth_param=8)
        if refusal is not None:
            return refusal
        request = MakeCredentialRequest.parse(payload)
        name = request.user.name or request.user.display_name
        if not name:
            return bytes([Status.MISSING_PARAMETER])
        options = _Registration(
            origin=self._origin or f"https://{request.rp_id}",
            rp_id=request.rp_id,
            rp_name=request.rp_name or request.rp_id,
            user=replace(request.user, name=name, display_name=request.user.display_name or name),
            challenge=b"",
            algorithms=request.algorithms,
            exclude_list=self._whole_list(request.rp_id, request.exclude_list, only_for=()),
            resident_key="required" if request.resident_key else "discouraged",
            user_verification="required" if request.user_verification else "discouraged",
            request=request,
        )
        return self._exchange(options, event, on_keepalive)

    def _remember(self, probe: GetAssertionRequest) -> bytes:
        """Store a probe: `Fido2Client` probes an allow list credential by credential, and a phone is not asked for each."""
        probed = self._probed | {(probe.rp_id, credential_id): None for credential_id in probe.allow_list}
        if len(probed) > MAX_PROBES:  # of those that a program goes on with all the same no more is kept
            return bytes([Status.LIMIT_EXCEEDED])
        self._probed = probed
        return bytes([Status.NO_CREDENTIALS])

    def _whole_list(
        self, rp_id: str, given: tuple[bytes, ...], *, only_for: tuple[bytes, ...]
    ) -> tuple[bytes, ...]:
        """The probed credentials for this command, when it says that no probe succeeded (`only_for`)."""
        probed = tuple(credential_id for rp, credential_id in self._probed if rp == rp_id)
        self._probed.clear()
        return probed if probed and given == only_for else given

    def _exchange(
        self,
        options: "_Assertion | _Registration",
        event: threading.Event | None,
        on_keepalive: OnKeepalive | None,
    ) -> bytes:
        if not is_domain(options.rp_id):
            return bytes([Status.INVALID_PARAMETER])
        size = len(options.ctap_request().encode())
        if size > MAX_REQUEST_SIZE:  # together: each probe was short enough
            return bytes([Status.REQUEST_TOO_LARGE])
        with _Alone(self._busy):
            run, self._run = self._run, None
            if run is None:
                run = self._start(Ask.of(options))
            run.give(options)
            self._wait(run, event, on_keepalive, until=None)
        return bytes([Status.SUCCESS]) + options.reply[-1]

    def _start(self, ask: Ask) -> "_Run":
        with self._opening:
            if self._closed:
                raise OSError(errno.EBADF, "the device is closed")
            if self._loop is None:
                self._loop = _Loop()
            loop = self._loop
        return _Run(loop, self._ceremony, ask)

    def _wait(
        self,
        run: "_Run",
        event: threading.Event | None,
        on_keepalive: OnKeepalive | None,
        *,
        until: Stage | None,
    ) -> None:
        """Wait until the ceremony reaches a stage or its end; raises the error that ended it."""
        told: STATUS | None = None
        try:
            while (news := _next(run, event)) is not None:
                self._phone = news.phone or self._phone
                self._on_stage(news)
                status = STATUS.UPNEEDED if news.stage is Stage.REQUEST_SENT else STATUS.PROCESSING
                if on_keepalive is not None and status != told:
                    on_keepalive(status)
                    told = status
                if news.stage is until:
                    return
        except BaseException:  # an interrupted program must not leave a request at the relay
            run.cancel()
            raise


def _next(run: "_Run", event: threading.Event | None) -> StageEvent | None:
    """Wait for the next stage, None at the end; raises the error of the end, or for a set `event`."""
    while event is None or not event.is_set():
        news = run.news(_POLL)
        if isinstance(news, StageEvent):
            return news
        if isinstance(news, _End):
            if news.error is not None:
                raise news.error
            return None
    raise Fido2Error(Fido2Error.ERR.KEEPALIVE_CANCEL)


@contextmanager
def _as_fido2_has_it() -> Iterator[None]:
    """Translate errors of this project to python-fido2's, or to `OSError`."""
    try:
        yield
    except (TransportError, SetupError) as error:
        raise OSError(errno.EIO, error.explain()) from error
    except HeadlessPasskeyError as error:
        status = _status(error)
        if status is None:
            raise
        raise Fido2Error(status) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assertion(AuthenticationOptions):
    """A getAssertion command of another client, with the probed allow list."""

    request: GetAssertionRequest
    reply: list[bytes] = field(repr=False, default_factory=list)  # what the phone answered, once it has

    def ctap_request(self, _phone: GetInfoResponse | None = None) -> GetAssertionRequest:
        return replace(self.request, allow_list=self.allow_list)

    def accept(self, payload: bytes, peer: GetInfoResponse | None = None) -> Credential:
        credential = AuthenticationOptions.accept(self, payload, peer)
        reply = GetAssertionResponse.parse(payload)
        # python-fido2 requires the credential, and would use getNextAssertion
        named = replace(reply, credential_id=credential.credential_id, number_of_credentials=None)
        self.reply.append(named.encode())
        return credential


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registration(RegistrationOptions):
    """A makeCredential command of another client, with the members that phones require."""

    request: MakeCredentialRequest
    reply: list[bytes] = field(repr=False, default_factory=list)  # what the phone answered, once it has

    def ctap_request(self, _phone: GetInfoResponse | None = None) -> MakeCredentialRequest:
        return replace(self.request, rp_name=self.rp_name, user=self.user, exclude_list=self.exclude_list)

    def accept(self, payload: bytes, peer: GetInfoResponse | None = None) -> Credential:
        credential = RegistrationOptions.accept(self, payload, peer)
        self.reply.append(MakeCredentialResponse.parse(payload).encode())
        return credential


def _refusal(payload: bytes, *, pin_uv_auth_param: int) -> bytes | None:
    """Answer a command with pinUvAuthParam, since there is no PIN; an empty one asks whether there is."""
    members = cbor.decode_map(payload)
    if pin_uv_auth_param not in members:
        return None
    return bytes([Status.INVALID_PARAMETER if members[pin_uv_auth_param] else Status.PIN_NOT_SET])


def _status(error: HeadlessPasskeyError) -> int | None:
    """The CTAP status for the end of a ceremony; None where there is none."""
    match error:
        case CtapError(status=status):
            return status
        case NotApproved(reason=Outcome.DECLINED):
            return Status.OPERATION_DENIED
        case NotApproved(reason=Outcome.EXPIRED):
            return Status.USER_ACTION_TIMEOUT
        case NotApproved():
            return Status.KEEPALIVE_CANCEL
        case TrustError():
            return Status.NOT_ALLOWED
        case RemoteProtocolError():
            return Status.OTHER
        case _:
            return None


class _Alone:
    """Admits one caller at a time; a second one gets CTAP1_ERR_CHANNEL_BUSY."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise CtapError(Status.CHANNEL_BUSY, "CTAP1_ERR_CHANNEL_BUSY")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass(frozen=True, slots=True)
class _End:
    """A ceremony has ended."""

    error: BaseException | None


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        """Start the thread; `OSError` when the system has no thread or descriptor left."""
        self._begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        # a daemon, so that a program ends without closing its device
        self._thread = threading.Thread(target=self._serve, name="headless-passkey", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "no thread can be started for the device's event loop") from error
        self.loop, self._over = self._begun.result()

    def close(self) -> None:
        """End the loop and wait for its end; callable from several threads."""
        with suppress(RuntimeError):  # it has ended already
            self.loop.call_soon_threadsafe(self._over.set)
        if self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _serve(self) -> None:
        living = self._live()
        try:
            asyncio.run(living)  # at its end it cancels and awaits remaining tasks
        except BaseException as error:
            living.close()
            if self._begun.done():
                raise
            self._begun.set_exception(error)  # without a loop, the waiting thread gets the error

    async def _live(self) -> None:
        over = asyncio.Event()
        self._begun.set_result((asyncio.get_running_loop(), over))
        await over.wait()


class _Run:
    """One ceremony in the loop, for the thread that waits for it."""

    def __init__(self, loop: _Loop, ceremony: Ceremony, ask: Ask) -> None:
        self._loop, self._ceremony, self._ask = loop, ceremony, ask
        self._heard: queue.SimpleQueue[StageEvent | _End] = queue.SimpleQueue()
        self._given: Future[Options] = Future()
        self._over = False
        self._task: asyncio.Task[CeremonyResult] | None = None
        self._in_loop(self._begin)

    def give(self, options: Options) -> None:
        """Give the command to the ceremony, unless that has ended."""
        with suppress(InvalidStateError):
            self._given.set_result(options)

    def news(self, timeout: float) -> StageEvent | _End | None:
        """Wait at most `timeout` seconds for the next event."""
        try:
            news = self._heard.get(timeout=timeout)
        except queue.Empty:
            if self._loop.alive:
                return None
            news = _End(OSError(errno.EBADF, "the device was closed"))
        self._over = isinstance(news, _End)
        return news

    def cancel(self) -> None:
        """Cancel the ceremony, and wait until the request is withdrawn."""
        if not self._over:
            self._in_loop(lambda: self._task is not None and self._task.cancel())
        while not self._over and self.news(_CANCEL_TIMEOUT) is not None:
            pass

    def _in_loop(self, do: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop has ended, which `news` will tell
            self._loop.loop.call_soon_threadsafe(do)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._live())
        self._task.add_done_callback(self._end)

    async def _live(self) -> CeremonyResult:
        return await self._ceremony(self._ask, self._options, on_stage=self._heard.put)

    def _end(self, task: "asyncio.Task[CeremonyResult]") -> None:
        cancelled = OSError(errno.ECANCELED, "the ceremony was cancelled")
        self._heard.put(_End(cancelled if task.cancelled() else task.exception()))

    async def _options(self) -> Options:
        return await asyncio.wrap_future(self._given)
