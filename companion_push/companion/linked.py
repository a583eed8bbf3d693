"""The software phone as linked devices reach it (CTAP 2.2 §11.5.2): it waits to be woken, and answers one transaction after another.

Links are of the tunnel service that the phone uses now; those of another one wait until it is used again. A request that names
no link of this phone, or whose device has gone, gets no answer and no question.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from companion_push.companion.link_file import Link, LinkFile
from companion_push.companion.phone import SoftwarePhone, TunnelService
from companion_push.companion.waking_client import open_waking
from companion_push.waking import Wake
from headless_passkey.errors import HeadlessPasskeyError, RemoteProtocolError, TransportError
from headless_passkey.hybrid.linking import ClientPayload
from headless_passkey.net.tunnel import TunnelRefused
from headless_passkey.process.tasks import end_quietly

FIRST_PAUSE: Final = 1.0  # seconds until a lost connection is opened again; doubled each time
LAST_PAUSE: Final = 60.0
LOOK: Final = 2.0  # seconds between two looks for links that were made meanwhile

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedWaiting:
    """A software phone that waits for its linked devices."""

    phone: SoftwarePhone
    links: LinkFile
    timeout: float  # seconds for one transaction
    on_end: Callable[[HeadlessPasskeyError | None], None]  # told how each transaction ended; None: answered

    async def run(self) -> None:
        """Wait and answer until cancelled. A connection that is lost is opened again; one that is refused for good is an error.

        A link that is made meanwhile is registered over a new connection.
        """
        pause = FIRST_PAUSE
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._wait()
                continue
            except TunnelRefused as error:
                if error.status == 404:  # it wakes no phones
                    raise
                lost: TransportError = error
            except TransportError as error:
                lost = error
            if asyncio.get_running_loop().time() - began > LAST_PAUSE:
                pause = FIRST_PAUSE
            logger.warning("%s; trying again in %g s", lost, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def _wait(self) -> None:
        """Answer devices until there is a new link."""
        async with open_waking(self.phone.tunnel_service.base, tls=self.phone.tls) as waking:
            registered = [each.registration_secret for each in self._links()]
            if registered:
                await waking.register(registered)
            self.phone.on_stage("waiting")
            while True:
                wake = asyncio.ensure_future(waking.wake())
                try:
                    while not wake.done():
                        await asyncio.wait({wake}, timeout=LOOK)
                        there = {each.registration_secret for each in self._links()}
                        if not wake.done() and not there <= set(registered):
                            return
                finally:
                    await end_quietly(wake)
                await self.answer(wake.result())

    def _links(self) -> tuple[Link, ...]:
        return tuple(
            each for each in self.links.load() if each.tunnel_domain == self.phone.tunnel_service.number
        )

    async def answer(self, wake: Wake) -> None:
        """Answer one contact request; its failure is told, and ends nothing else."""
        try:
            payload = ClientPayload.parse(wake.client_payload)
        except RemoteProtocolError as error:
            logger.info("a contact request was ignored: %s", error)
            return
        link = next((each for each in self._links() if each.offered.link_id == payload.link_id), None)
        if link is None:
            logger.info("a contact request was ignored: it is for a link that is not there")
            return
        try:
            await self.phone.answer_linked(wake, link, payload, timeout=self.timeout)
        except HeadlessPasskeyError as error:
            self.on_end(error)
        else:
            self.on_end(None)


async def forget_link(links: LinkFile, name: str, service: TunnelService, tls: ssl.SSLContext | None) -> Link:
    """Forget a link: its contact ID answers 410 from now on, and its device is recognised no more.

    tls: trusted roots; None: the system's. `TransportError` when the tunnel service does not answer; then the link is kept, so that
    this can be tried again.
    """
    link = links.named(name)
    if link.tunnel_domain != service.number:
        raise TransportError(
            f"the link is known to the tunnel service of domain {link.tunnel_domain}: name that one with --tunnel"
        )
    async with open_waking(service.base, tls=tls) as waking:
        await waking.forget([link.registration_secret])
    await links.remove(link.name)
    return link
