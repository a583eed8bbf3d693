"""Founding an account by a sign-in at the relay's account service, and founding it anew (reset).

The companion chooses the account's id and signs the founding ring; the relay verifies the token and stores both. The ring is
written to disk before it is sent: after a crash or a lost answer the same command goes on with the same key and a new token,
and with the same bytes where they have founded the account that there is.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable

from companion_push.companion.keys import CompanionState, Identity, Joining, KeyPair
from companion_push.companion.membership import refuse_enrolled
from companion_push.companion.relay_client import CompanionRelay, account_exists
from headless_passkey.account.joining import JOIN_TIMEOUT, check_same_words
from headless_passkey.errors import NotApproved, Outcome
from headless_passkey.text.names import name_of
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.fields import new_account
from headless_passkey.trust.ring import Ring

TokenSource = Callable[[CompanionRelay, KeyPair], Awaitable[str]]
Agree = Callable[[str], Awaitable[bool]]


async def found_by_sign_in(
    state: CompanionState,
    relay_url: str,
    *,
    label: str,
    token: TokenSource,
    agree: Agree | None = None,
    tls: ssl.SSLContext | None = None,
    clock: Callable[[], float] = time.time,
    seconds: float = JOIN_TIMEOUT,
) -> Identity:
    """Found the account of who signs in, with this companion as its only member.

    token: gets the token, a secret. agree: for a reset, asked with the account's name; the account that there is is then
    closed for good, and its members are told so. seconds: for all of it, then `NotApproved` (expired).
    `TrustError` (account-exists) where there is an account and this is no reset.
    """
    label, resets = name_of(label), agree is not None
    state.create()
    with state.sole_joiner():
        if not resets:
            refuse_enrolled(state)
        line = f"{'reset' if resets else 'sign-in'} {relay_url}"
        begun = state.joining()
        if begun is not None and begun.line != line:
            begun = None
        if begun is not None:
            check_same_words({"label": begun.label}, {"label": label})
        keys = KeyPair() if begun is None else begun.keys
        try:
            async with (
                asyncio.timeout(seconds),
                CompanionRelay.connect(relay_url, keys.signing, tls=tls, clock=clock) as relay,
            ):
                shown = await token(relay, keys)
                mine = await relay.mine(shown)
                ring = None if begun is None else begun.said
                if not isinstance(ring, Ring) or ring.account != mine.account:
                    # none was begun, or it did not arrive, or is closed
                    if mine.account is not None:
                        if agree is None:
                            raise account_exists()
                        if not await agree(mine.account_name):
                            raise NotApproved(Outcome.DECLINED, "nothing was closed")
                    ring = Ring.found(
                        keys.signing,
                        account=new_account(),
                        account_name=mine.account_name,
                        hpke_key=keys.hpke.public,
                        label=label,
                        now=clock(),
                    )
                    state.begin_joining(Joining(line=line, keys=keys, said=ring))
                await relay.found_by_sign_in(shown, ring, resets=resets)
        except TimeoutError as error:
            why = f"this was not done within {round(seconds, 1):g} s; the same command goes on"
            raise NotApproved(Outcome.EXPIRED, why) from error
        identity = Identity(relay_url=relay_url, account=ring.account, keys=keys)
        state.finish_joining(identity, RingChain.start(ring), replaces=resets)
        return identity
