"""The page: who is registered, and who is signed in. Rendered here, without a template engine.

Everything that came from outside goes through `escape`; the page runs under a policy that allows no inline
script and no inline style, so a slip would still do nothing.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from string import Template
from typing import Final

from relying_party.callers import ClientKind
from relying_party.config import Config
from relying_party.credentials import Credential, Registered, User
from relying_party.sessions import Session

# Who makes passkeys with these AAGUIDs, for people to recognise theirs by.
PROVIDERS: Final = {
    "08987058-cadc-4b81-b6e1-30de50dcbe96": "Windows Hello",
    "531126d6-e717-415c-9320-3d9aa6981239": "Dashlane",
    "53414d53-554e-4700-0000-000000000000": "Samsung Pass",
    "adce0002-35bc-c60a-648b-0b25f1f05503": "Chrome on macOS",
    "bada5566-a7aa-401f-bd96-45619a55120d": "1Password",
    "d548826e-79b4-db40-a3d8-11116f7e8349": "Bitwarden",
    "ea9b8d66-4d01-1d21-3ce4-b6b48cb575d4": "Google Password Manager",
    "f314e1c7-a943-4e95-be5a-b739b2b90776": "Software phone (for demos)",
    "fbfc3007-154e-4ecc-8c0b-6e020557d7bd": "iCloud Keychain",
}
_NO_AAGUID: Final = "00000000-0000-0000-0000-000000000000"
_KINDS: Final = {ClientKind.WEB: "in a browser", ClientKind.DEVICE: "on a device"}


def render(
    config: Config, registered: Sequence[Registered], *, me: User | None, current: Session | None
) -> str:
    """The whole page. me, current: who looks at it, when signed in."""
    template = Template(resources.files("relying_party").joinpath("pages", "index.html").read_text("utf-8"))
    return template.substitute(
        rp_name=escape(config.rp_name),
        rp_id=escape(config.rp_id),
        me=_me(me, current),
        add_or_create="Add a passkey" if me else "Create a passkey",
        user_name=escape(me.name if me else ""),
        people="".join(_person(one, current) for one in registered) or _nobody(config, me),
        heading="Registered" if config.page_shows == "everyone" else "Your passkeys",
    )


def _me(me: User | None, current: Session | None) -> str:
    if me is None or current is None:
        return '<p class="me none">Nobody is signed in in this browser.</p>'
    return (
        f'<p class="me">Signed in as <strong>{escape(me.display_name)}</strong>{_other_name(me)} '
        f'<span class="quiet">until {_time(current.expires_at)}</span> '
        '<button type="button" id="sign-out" class="plain">Sign out</button></p>'
    )


def _nobody(config: Config, me: User | None) -> str:
    if config.page_shows == "own" and me is None:
        return '<p class="empty">Sign in to see your passkeys.</p>'
    return '<p class="empty">Nobody yet. Create the first passkey above, or register from a device.</p>'


def _person(one: Registered, current: Session | None) -> str:
    badge = (
        '<span class="badge on">signed in</span>' if one.sessions else '<span class="badge">signed out</span>'
    )
    return (
        '<article class="person">'
        f"<h3>{escape(one.user.display_name)}{_other_name(one.user)} {badge}</h3>"
        f'<ul class="sessions">{"".join(_session(session, current) for session in one.sessions)}</ul>'
        '<div class="scroll"><table><thead><tr>'
        "<th>Passkey</th><th>Created</th><th>Last used</th><th>Synced</th><th>Transports</th>"
        f"</tr></thead><tbody>{''.join(map(_passkey, one.credentials))}</tbody></table></div>"
        "</article>"
    )


def _other_name(user: User) -> str:
    if user.name == user.display_name:
        return ""
    return f' <span class="quiet">({escape(user.name)})</span>'


def _session(session: Session, current: Session | None) -> str:
    here = " (here)" if current is not None and current.token_hash == session.token_hash else ""
    return (
        f"<li>{_KINDS[session.client_kind]}{here} since {_time(session.created_at)}"
        f'<span class="quiet">, until {_time(session.expires_at)}</span></li>'
    )


def _passkey(credential: Credential) -> str:
    aaguid = _aaguid(credential.aaguid)
    name = PROVIDERS.get(aaguid, "Passkey")
    about = "" if aaguid == _NO_AAGUID else f'<br><span class="quiet mono">{aaguid}</span>'
    warning = ""
    if credential.counter_anomalies:
        warning = f'<br><span class="warning">did not count up: {credential.counter_anomalies}</span>'
    synced = ("yes" if credential.backed_up else "not yet") if credential.backup_eligible else "no"
    used = "never" if credential.last_used_at is None else _time(credential.last_used_at)
    return _row(
        f"{escape(name)}{about}{warning}",
        _time(credential.created_at),
        used,
        synced,
        escape(", ".join(credential.transports)) or "unknown",
    )


def _row(*cells: str) -> str:
    return f"<tr>{_join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _join(parts: Iterable[str]) -> str:
    return "".join(parts)


def _aaguid(value: bytes) -> str:
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _time(seconds: int) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M} UTC</time>'
