"""The newcomer's side of a join, which devices and companions share (docs/protocol/trust.md).

==================================  ==========================================================================
a crash or a lost connection …      what happens then
==================================  ==========================================================================
before the introduction is stored   the invitation is unused; join again
after that, before the answer       the same invitation resumes with the same bytes: the relay takes the same introduction
                                    and the same nonce again (idempotent)
after the inviter's nonce came      as before, and another nonce of the inviter is refused (replayed)
==================================  ==========================================================================
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from headless_passkey.account.relay import MemberClient
from headless_passkey.errors import JoinDiffers, NotApproved, Outcome, TrustError, TrustReason, UsageError
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.admission import Newcomer
from headless_passkey.trust.fields import is_account
from headless_passkey.trust.invitation import LIFETIME, Invitation
from headless_passkey.trust.ring import Ring

JOIN_TIMEOUT: Final = float(LIFETIME)  # seconds that a newcomer waits for its inviter


async def go_on_anyway() -> bool:
    """Go on without asking anybody."""
    return True


async def be_admitted(
    relay: MemberClient,
    newcomer: Newcomer,
    *,
    store: Callable[[Newcomer], None],
    on_check_number: Callable[[str], None],
    go_on: Callable[[], Awaitable[bool]] = go_on_anyway,
) -> Ring:
    """Introduce a newcomer, whose record is on disk, and wait until its inviter admits it; returns its first ring.

    store: writes the changed record to disk, before the number is shown and the nonce revealed. on_check_number: called
    with the number that a person types at the inviter. go_on: asked then; False withdraws the invitation (`NotApproved`,
    declined). There is no timeout.
    """
    invitation = newcomer.invitation
    await relay.introduce(newcomer)
    heard = newcomer.hears(await relay.inviter_nonce(invitation))
    if heard != newcomer:
        store(heard)
    on_check_number(heard.number)
    if not await go_on():
        await relay.withdraw(invitation)
        raise NotApproved(Outcome.DECLINED, "this join was given up before anything was revealed")
    await relay.reveal(heard)
    answer = await relay.admission(invitation)
    return heard.accept(ring=answer.ring, mac=answer.mac)


def check_account(means: Invitation | AccountCode, expected: str | None) -> None:
    """Refuse an invitation or account code of another account than the expected one. expected: an id; None for any."""
    if expected is None:
        return
    if not is_account(expected):
        raise UsageError("an account's id has 22 characters: letters, digits, - and _")
    if means.account != expected:
        raise TrustError(
            TrustReason.ACCOUNT_MISMATCH, f"it leads into account {means.account}, and not into {expected}"
        )


def check_same_words(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> None:
    """Refuse to resume a join with other values. before, now: values by name, such as ``label``."""
    for what, was in before.items():
        if now[what] != was:
            raise JoinDiffers(
                f"this join was begun with {f'the {what} {was!r}' if was is not None else f'no {what}'}, and goes on with"
                " the same only",
                advice="for another one, ask for a new invitation",
            )


def unanswered(seconds: float) -> str:
    """The message of a join that has timed out."""
    return f"the inviter did not answer within {round(seconds, 1):g} s; the same command goes on waiting, while the invitation is open"
