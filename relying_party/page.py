"""The pages: sign in or register, and the account of who is signed in. Rendered here, without a template engine.

Everything that came from outside goes through `escape`; the pages run under a policy that allows no inline
script and no inline style, so a slip would still do nothing. Without their script they show what there is;
with it, one can do something about it.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import resources
from string import Template
from typing import Final

from relying_party.callers import ClientKind
from relying_party.config import Config
from relying_party.credentials import Credential, Registered, User
from relying_party.sessions import Session

_NO_AAGUID: Final = "00000000-0000-0000-0000-000000000000"
_KINDS: Final = {ClientKind.WEB: "in a browser", ClientKind.DEVICE: "on a device"}
_SECURITY_KEY: Final = frozenset({"usb", "nfc", "ble", "smart-card"})


def render(
    config: Config, registered: Sequence[Registered], *, me: User | None, current: Session | None
) -> str:
    """The whole page. registered: whom to show. me, current: who looks at it, when signed in."""
    own = next((one for one in registered if me is not None and one.user.handle == me.handle), None)
    if own is not None and current is not None:
        who, title = _who(own.user), "Your account"
        content = _account(own, current)
    else:
        who, title = "", "Sign in"
        content = _fill("sign-in.html")
    if config.page_shows == "everyone":
        content += _everyone(registered, current)
    return _fill(
        "index.html",
        title=escape(f"{title} · {config.rp_name}"),
        rp_name=escape(config.rp_name),
        rp_id=escape(config.rp_id),
        who=who,
        content=content,
    )


def provider(credential: Credential) -> str:
    """Who made a passkey, or what kind of thing did, for people to recognise theirs by."""
    known = _providers().get(_aaguid(credential.aaguid))
    if known is not None:
        return known
    only_keys = bool(credential.transports) and _SECURITY_KEY.issuperset(credential.transports)
    return "Security key" if only_keys else "Passkey"


def _who(me: User) -> str:
    return (
        f"<p><span>Signed in as <strong>{escape(me.display_name)}</strong>{_other_name(me)}</span> "
        '<button type="button" class="plain" data-do="sign-out">Sign out</button></p>'
    )


def _account(own: Registered, current: Session) -> str:
    return _fill(
        "account.html",
        user_name=escape(own.user.name),
        passkeys=_join(map(_passkey, own.credentials)),
        sessions=_join(_session(session, current) for session in own.sessions),
    )


def _passkey(credential: Credential) -> str:
    aaguid = _aaguid(credential.aaguid)
    unknown = aaguid not in _providers() and aaguid != _NO_AAGUID
    used = "never" if credential.last_used_at is None else _time(credential.last_used_at)
    facts = {
        "Created": _time(credential.created_at),
        "Last used": used,
        "Reached by": escape(", ".join(credential.transports)) or "unknown",
    }
    if unknown:
        facts["Model"] = f'<span class="mono">{aaguid}</span>'
    return _card(
        "key",
        f"<h3>{escape(provider(credential))}</h3> {_synced(credential)}",
        facts,
        warning=_counter(credential),
    )


def _synced(credential: Credential) -> str:
    if not credential.backup_eligible:
        return '<span class="badge">on one device</span>'
    if not credential.backed_up:
        return '<span class="badge">not synced yet</span>'
    return '<span class="badge on">synced</span>'


def _counter(credential: Credential) -> str:
    times = credential.counter_anomalies
    if not times:
        return ""
    often = "once" if times == 1 else f"{times} times"
    return f'<p class="warning">Did not count up {often}: it may have been copied.</p>'


def _session(session: Session, current: Session) -> str:
    here = current.token_hash == session.token_hash
    name = "This browser" if here else _KINDS[session.client_kind].capitalize()
    badge = ' <span class="badge on">here</span>' if here else ""
    return _card(
        "browser" if session.client_kind is ClientKind.WEB else "device",
        f"<h3>{name}</h3>{badge}",
        {"Since": _time(session.created_at), "Until": _time(session.expires_at)},
    )


def _card(icon: str, heading: str, facts: Mapping[str, str], *, warning: str = "", actions: str = "") -> str:
    listed = _join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        f'<li><svg aria-hidden="true"><use href="#{icon}"/></svg>'
        f"<div>{heading}<dl>{listed}</dl>{warning}</div>{actions}</li>\n"
    )


def _everyone(registered: Sequence[Registered], current: Session | None) -> str:
    people = _join(_person(one, current) for one in registered)
    listed = f'<ul class="cards people">{people}</ul>' if people else "<p>Nobody yet.</p>"
    return (
        '<section aria-labelledby="people"><div class="heading"><h2 id="people">Everyone</h2>'
        '<p class="quiet">Shown because this is a demonstration on localhost.</p></div>'
        f"{listed}</section>"
    )


def _person(one: Registered, current: Session | None) -> str:
    badge = (
        '<span class="badge on">signed in</span>' if one.sessions else '<span class="badge">signed out</span>'
    )
    sessions = _join(f"<li>{_since(session, current)}</li>" for session in one.sessions)
    passkeys = ", ".join(escape(provider(credential)) for credential in one.credentials)
    return (
        f"<li><div><h3>{escape(one.user.display_name)}{_other_name(one.user)}</h3> {badge}"
        f"<ul>{sessions}<li>{passkeys}</li></ul></div></li>\n"
    )


def _since(session: Session, current: Session | None) -> str:
    here = " (here)" if current is not None and current.token_hash == session.token_hash else ""
    return f"{_KINDS[session.client_kind]}{here} since {_time(session.created_at)}"


def _other_name(user: User) -> str:
    if user.name == user.display_name:
        return ""
    return f' <span class="quiet">({escape(user.name)})</span>'


def _time(seconds: int) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M} UTC</time>'


def _aaguid(value: bytes) -> str:
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _join(parts: Iterable[str]) -> str:
    return "".join(parts)


def _fill(name: str, **values: str) -> str:
    return Template(_read(name)).substitute(values)


@cache
def _providers() -> Mapping[str, str]:
    return dict(tomllib.loads(_read("providers.toml"))["names"])


@cache
def _read(name: str) -> str:
    return resources.files("relying_party").joinpath("pages", name).read_text("utf-8")
