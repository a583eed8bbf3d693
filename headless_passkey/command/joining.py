"""What `headless-passkey join` and `companion-push companion join` show, and how they ask."""

import contextlib

from headless_passkey.process.terminal import Terminal
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.invitation import Invitation
from program_parts.names import quoted


def whereto(means: Invitation | AccountCode) -> str:
    """Describe where an invitation or account code leads, before anything is sent."""
    account = f"account {quoted(means.account_name)} ({means.account}) at {means.relay_url}"
    if isinstance(means, AccountCode):
        return f"this code founds {account}"
    return f"{quoted(means.inviter_label)} invites into {account}"


def details(means: Invitation | AccountCode) -> dict[str, str | None]:
    """The same for programs."""
    inviter = means.inviter_label if isinstance(means, Invitation) else None
    return {
        "account": means.account,
        "account_name": means.account_name,
        "inviter": inviter,
        "relay": means.relay_url,
    }


def number_line(number: str) -> str:
    """Show a newcomer's number, as 123 456."""
    return f"check number: {number}; type it at the inviter"


def waiting_line(seconds: float) -> str:
    return f"waiting for the inviter, {seconds:.0f} s at most"


def terminal_to_ask(stack: contextlib.ExitStack, *, json: bool, expected: str | None) -> Terminal | None:
    """The terminal at which to ask whether to go on; None where nobody looks, or where the account was named before.

    json: whether programs read what is shown. expected: the id of the account that was asked for.
    """
    return None if json or expected is not None else stack.enter_context(Terminal.of_stderr())


async def go_on(terminal: Terminal | None) -> bool:
    """Ask whether to go on."""
    return terminal is None or bool(await terminal.yes("Go on? y or n:"))
