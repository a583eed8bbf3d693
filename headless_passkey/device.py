"""The device in one object: the interface for most programs.

::

    async with Device.open(state) as device:
        session = await device.sign_in("https://login.example", on_stage=print)
        answer = await session.fetch("https://login.example/session")

`join` enrols a device once, in a state directory (`headless_passkey.account.enrolment`). Every step can be cancelled, which
is a normal exit: the radio stops, the request is withdrawn. Errors are the branches of `HeadlessPasskeyError`. Programs
with parts of their own use these: `run_ceremony`, `Conduit`, `RelayDelivery`, `Session`.

Importing this module loads next to nothing. `Device.open` loads what a sign-in needs (`load`), in a thread.
"""

from __future__ import annotations  # most types are loaded when a device is opened

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

from headless_passkey.errors import LocalProtocolError, SetupReason
from headless_passkey.request import CEREMONY_TIMEOUT

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from headless_passkey.delivery import Delivery
    from headless_passkey.net.base_url import BaseUrl
    from headless_passkey.radio.source import AdvertSource
    from headless_passkey.rp.key_store import OriginKeys
    from headless_passkey.rp.session import Session
    from headless_passkey.rp_ceremony import Asked, Opened, RelyingPartyCeremonies
    from headless_passkey.stages import StageEvent


def load() -> None:
    """Load what a sign-in needs, but for the radio and what few sign-ins need.

    `Device.open` does this in a thread. Programs call it at their start that could not load it later, since they give up the
    right to read the installed packages, or run while another version is installed in their place. `SetupError`
    (missing-package) where the extra ``device`` is not installed.
    """
    try:
        import headless_passkey.rp_ceremony  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        from headless_passkey.mends import setup_error  # noqa: PLC0415

        what = f"a device needs {error.name}"
        raise setup_error(what, SetupReason.MISSING_PACKAGE, extra="device") from error


def _load_with(radio: AdvertSource | str) -> AdvertSource:
    """Load what a sign-in needs and the radio; returns the radio."""
    load()
    if not isinstance(radio, str):
        return radio
    from headless_passkey.radio.choose import open_radio  # noqa: PLC0415

    return open_radio(radio)


class Device:
    """A device: its state directory, radio and connections. `open` makes it."""

    def __init__(self, ceremonies: RelyingPartyCeremonies) -> None:
        self._ceremonies = ceremonies

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        state: Path,
        *,
        radio: AdvertSource | str = "bleak",
        tunnels: Mapping[int, str] | None = None,
        tls: ssl.SSLContext | None = None,
        require_witness: int | None = None,
        direct: bool = False,
        keys: OriginKeys | None = None,
    ) -> AsyncIterator[Self]:
        """Open the device whose account and sessions are in `state`; its connections close with the context.

        state: the directory that `join` filled. radio: one of your own, or a name as `--radio` takes it; it is turned on
        for a ceremony only. tunnels: base URLs of tunnel services by domain number, beside the assigned ones. tls: whom to
        believe, None for the system's roots. require_witness: days after which a membership that no companion has confirmed
        is refused with `TrustError` (unconfirmed-ring); None: that is told only. direct: whether phones may come over the direct channel, which needs no tunnel service; a ceremony raises `UsageError` when the radio cannot open it. keys: for relying parties, None for those in `state`. `UsageError` for a radio that there is not, `SetupError` for one whose package
        is not installed, and where the extra ``device`` is not.

        The first call loads what a sign-in needs (`load`), in a thread: a program that only imports this module does not wait for it.
        """
        source = await asyncio.to_thread(_load_with, radio)
        from headless_passkey.net.proven_http import open_session  # noqa: PLC0415
        from headless_passkey.rp_ceremony import RelyingPartyCeremonies  # noqa: PLC0415

        async with open_session(tls) as http:
            yield cls(
                RelyingPartyCeremonies(
                    state,
                    http=http,
                    radio=source,
                    tunnels=tunnels,
                    tls=tls,
                    require_witness=require_witness,
                    direct=direct,
                    keys=keys,
                )
            )

    @property
    def state(self) -> Path:
        """The state directory."""
        return self._ceremonies.state

    async def sign_in(
        self,
        relying_party: str,
        *,
        user_name: str | None = None,
        user_handle: bytes | None = None,
        on_stage: Callable[[StageEvent], None] = lambda _event: None,
        timeout: float = CEREMONY_TIMEOUT,  # noqa: ASYNC109  one deadline over all steps is the interface
        note: str | None = None,
        digits: str | None = None,
        audience: Sequence[str] = (),
        add_user: bool = False,
        any_user: bool = False,
        link: bool = False,
    ) -> Session:
        """Sign in with a passkey on a phone; returns the session, which is stored in the state directory.

        relying_party: its address, with the path it is mounted at. user_handle: whose passkey must answer. Without it
        and without `user_name`, the first user who signs in or registers is pinned, and later another one is refused with
        `TrustError` (unexpected-user), unless add_user: pin one more, or any_user: whoever approves. on_stage: told of each stage. timeout: seconds for everything. note: a
        line to show on the companion. digits: two digits that this device shows, to be typed there. audience: origins
        of services that may have the session's token, beside those that the relying party names. link: ask the phone for a
        link, by which this device reaches it without a request in future: linked phones are always tried first.
        """
        from headless_passkey.hybrid.fido_url import RequestKind  # noqa: PLC0415
        from headless_passkey.rp_ceremony import Asked  # noqa: PLC0415

        asked = Asked(
            kind=RequestKind.GET_ASSERTION,
            user_name=user_name,
            user_handle=user_handle,
            note=note,
            digits=digits,
            audience=tuple(audience),
            add_user=add_user,
            any_user=any_user,
        )
        return self._kept(await self.ask(relying_party, asked, on_stage=on_stage, timeout=timeout, link=link))

    async def register(
        self,
        relying_party: str,
        user_name: str,
        *,
        display_name: str | None = None,
        on_stage: Callable[[StageEvent], None] = lambda _event: None,
        timeout: float = CEREMONY_TIMEOUT,  # noqa: ASYNC109  as above
        note: str | None = None,
        digits: str | None = None,
        audience: Sequence[str] = (),
        add_user: bool = False,
        any_user: bool = False,
        link: bool = False,
    ) -> Session:
        """Register a new user with a passkey on a phone; returns the session. Arguments as for `sign_in`."""
        from headless_passkey.hybrid.fido_url import RequestKind  # noqa: PLC0415
        from headless_passkey.rp_ceremony import Asked  # noqa: PLC0415

        asked = Asked(
            kind=RequestKind.MAKE_CREDENTIAL,
            user_name=user_name,
            display_name=display_name,
            note=note,
            digits=digits,
            audience=tuple(audience),
            add_user=add_user,
            any_user=any_user,
        )
        return self._kept(await self.ask(relying_party, asked, on_stage=on_stage, timeout=timeout, link=link))

    def session(self, relying_party: str | None = None, *, url: str | None = None) -> Session:
        """Load a stored session, as `Session.load` does."""
        return self._ceremonies.session(relying_party, url=url)

    async def ask(
        self,
        relying_party: str | BaseUrl,
        asked: Asked,
        *,
        on_stage: Callable[[StageEvent], None] = lambda _event: None,
        timeout: float = CEREMONY_TIMEOUT,  # noqa: ASYNC109  as above
        delivery: Delivery | None = None,
        keep: bool = True,
        link: bool = False,
        min_rssi: int | None = None,
        join_within: float | None = None,
    ) -> Opened:
        """Run a ceremony at a relying party with all options; `sign_in` and `register` call this.

        delivery: None for the account's relay. keep: the session. link: as for `sign_in`. min_rssi, join_within: as
        `headless_passkey.ceremony.run_ceremony` takes them.
        """
        return await self._ceremonies.ask(
            relying_party,
            asked,
            on_stage=on_stage,
            timeout=timeout,
            delivery=delivery,
            keep=keep,
            link=link,
            min_rssi=min_rssi,
            join_within=join_within,
        )

    @staticmethod
    def _kept(opened: Opened) -> Session:
        if opened.session is None:
            raise LocalProtocolError("the session was not kept, as requested")
        return opened.session
