"""The pages: sign in or register, the account, and problems. Rendered here, without a template engine.

All input is escaped (`escape`). The content security policy allows neither inline scripts nor inline styles, so that a
missed escape has no effect (XSS). Without their script the pages show everything; actions need the script.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import resources
from string import Template
from types import MappingProxyType
from typing import Final
from uuid import UUID

from program_parts.base64url import base64url
from relying_party.config import Config
from relying_party.core.callers import ClientKind
from relying_party.core.credentials import Credential, Registered, User
from relying_party.core.removals import Change, ChangeKind, Removal
from relying_party.core.sessions import Session

_KINDS: Final = {
    ClientKind.WEB: "in a browser",
    ClientKind.DEVICE: "on a device",
    ClientKind.ANDROID: "in an app",
}
# Words for transports (WebAuthn Level 3 §5.8.4); others are not shown.
_WAYS: Final = {
    "internal": "on the device that has it",
    "hybrid": "from a phone nearby",
    "usb": "plugged in",
    "nfc": "held to a reader",
    "ble": "over Bluetooth",
    "smart-card": "in a card reader",
}
_SECURITY_KEY: Final = frozenset({"usb", "nfc", "ble", "smart-card"})

_CHANGES: Final = {  # what happened, with the name of what it happened to, or without
    ChangeKind.PASSKEY_ADDED: ("The passkey {name} was added", "A passkey was added"),
    ChangeKind.PASSKEY_REMOVED: ("The passkey {name} was removed", "A passkey was removed"),
    ChangeKind.PASSKEY_RENAMED: ("A passkey was renamed to {name}", "A passkey lost its name"),
    ChangeKind.NAME_CHANGED: ("Your name was changed to {name}", "Your name was changed"),
    ChangeKind.SESSIONS_ENDED: ("{name} was signed out", "Sessions were signed out"),
    ChangeKind.REMOVAL_ASKED: ("The removal of {name} was asked for", "A removal was asked for"),
    ChangeKind.REMOVAL_CALLED_OFF: ("The removal of {name} was called off", "A removal was called off"),
}

_LAST: Final = 253_402_300_799  # Unix time: 9999 has no second after it, and a `datetime` no later year
_NO_PAGE: Final = "There is no page here", "The address may be mistyped, or what was here is gone."
_PROBLEMS: Final = {
    400: ("This page cannot be shown", "The address is not one for people to open."),
    401: ("You are not signed in", "What is at this address is for those who are."),
    404: _NO_PAGE,
    405: _NO_PAGE,
    429: ("Too many requests", "Please try again {when}."),
    500: (
        "Something went wrong",
        "It is not your fault. Please try again {when}; if that does not help, tell those who run this site.",
    ),
    503: ("The site is not available now", "It cannot look anything up. Please try again {when}."),
}


def render(
    config: Config, own: Registered | None, *, current: Session | None, everyone: Sequence[Registered] = ()
) -> str:
    """Render the page. own, current: the signed-in user and session, if any. everyone: the users to show, where all are shown."""
    if own is not None and current is not None:
        who, title = _who(own.user), "Your account"
        content = _account(own, current)
    else:
        who, title = "", "Sign in"
        content = _fill("sign-in.html")
    if config.page_shows == "everyone":
        content += _everyone(everyone, current)
    return _whole(config, title, content, who=who)


def render_problem(config: Config, status: int, *, retry_after: int | None = None) -> str:
    """Render the page for a problem. status: of HTTP. retry_after: seconds, if a retry may help."""
    title, text = _PROBLEMS.get(status, _PROBLEMS[500 if status >= 500 else 400])
    when = (
        "in a while" if retry_after is None else f"in {retry_after} second{'' if retry_after == 1 else 's'}"
    )
    content = _fill("problem.html", title=title, text=text.format(when=when), root=config.path)
    return _whole(config, title, content)


def provider(credential: Credential) -> str:
    """Name a passkey's provider or transport, so that users recognise their passkey."""
    known = _providers().get(str(UUID(bytes=credential.aaguid)))
    if known is not None:
        return known
    only_keys = bool(credential.transports) and _SECURITY_KEY.issuperset(credential.transports)
    return "Security key" if only_keys else "Passkey"


def _whole(config: Config, title: str, content: str, *, who: str = "") -> str:
    return _fill(
        "index.html",
        root=config.path,
        title=escape(f"{title} · {config.rp_name}"),
        rp_name=escape(config.rp_name),
        rp_id=escape(config.rp_id),
        origins=escape(" ".join((config.home, *sorted(config.web_origins - {config.home})))),
        who=who,
        content=content,
    )


def _who(me: User) -> str:
    return (
        f"<p><span>Signed in as <strong>{escape(me.display_name)}</strong>{_other_name(me)}</span> "
        '<button type="button" class="plain" data-do="sign-out" disabled>Sign out</button></p>'
    )


def _account(own: Registered, current: Session) -> str:
    others = len(own.sessions) > 1
    return _fill(
        "account.html",
        display_name=escape(own.user.display_name),
        user_name=escape(own.user.name),
        removals=_join(_removal(one, own, current) for one in own.removals),
        changes=_changes(own.changes, current),
        passkeys=_join(_passkey(one, only=len(own.credentials) == 1) for one in own.credentials),
        sessions=_join(_session(session, current) for session in own.sessions),
        end_others=_button("end-other-sessions", "Sign out everywhere else") if others else "",
    )


def _removal(removal: Removal, own: Registered, current: Session) -> str:
    """Render a removal that is to come, and how it is called off."""
    names = {one.credential_id: one.label or provider(one) for one in own.credentials}
    name = None if removal.credential_id is None else names.get(removal.credential_id, "Passkey")
    what = "Your account is" if name is None else f"The passkey “{escape(name)}” is"
    asked_by = names.get(removal.asked_by, "a passkey that is gone")
    about = {"id": base64url(removal.removal_id), "name": name or "your account"}
    if own.may_call_off(removal, current):
        then = _button("call-off", "Keep it", about, spoken=f"Keep {about['name']}")
    else:
        then = "<p>To keep it, sign in with a passkey that is older than that one.</p>"
    return (
        f'<section class="alarm" role="alert"><p><strong>{what} removed on {_time(removal.due_at)}.</strong> '
        f"This was asked for with “{escape(asked_by)}” on {_time(removal.asked_at)}. If it was not you, keep it, "
        f"and remove every passkey that is not yours.</p>{then}</section>\n"
    )


def _changes(changes: Sequence[Change], current: Session) -> str:
    """Render what has happened to the account, for the sessions that did not do it."""
    if not changes:
        return ""
    listed = _join(f"<li>{_change(one, current)}</li>" for one in changes)
    return (
        '<section aria-labelledby="changes"><div class="heading"><h2 id="changes">Recent changes</h2></div>'
        f'<ul class="changes">{listed}</ul></section>'
    )


def _change(change: Change, current: Session) -> str:
    named, unnamed = _CHANGES[change.kind]
    text = unnamed if change.name is None else named.format(name=f"“{escape(change.name)}”")
    here = ", here" if change.session_id == current.session_id else ""
    where = "" if change.client_kind is None else f", {_KINDS[change.client_kind]}{here}"
    return f"{text}{where}: {_time(change.at)}"


def _passkey(credential: Credential, *, only: bool) -> str:
    """Render a passkey. only: it is the user's only one, without a button to remove it."""
    made_by = provider(credential)
    name = credential.label or made_by
    used = "never" if credential.last_used_at is None else _time(credential.last_used_at)
    facts = {
        "Created": _time(credential.created_at),
        "Last used": used,
    }
    ways = [_WAYS[transport] for transport in credential.transports if transport in _WAYS]
    if ways:
        facts["Works"] = ", ".join(ways)
    if str(UUID(bytes=credential.aaguid)) in _providers() and credential.label:
        facts["Kept by"] = escape(made_by)
    about = {"id": base64url(credential.credential_id), "name": name}
    actions = _button("rename-passkey", "Rename", about, spoken=f"Rename {name}")
    if not only:
        actions += _button("remove-passkey", "Remove", about, spoken=f"Remove {name}", risky=True)
    return _card(
        "key",
        name,
        _synced(credential),
        facts,
        warning=_counter(credential) + _by_name_only(credential),
        actions=actions,
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
    return (
        f'<p class="warning">May have been copied: its counter stood still {often}. '
        "Unless you know why, remove it and add a new one.</p>"
    )


def _by_name_only(credential: Credential) -> str:
    if credential.discoverable is not False:
        return ""
    return (
        '<p class="warning">May sign in only where you are signed in already. Try it before you need it.</p>'
    )


def _session(session: Session, current: Session) -> str:
    here = current.session_id == session.session_id
    name = session.label or ("This browser" if here else _KINDS[session.client_kind].capitalize())
    facts = {"Since": _time(session.created_at), "Until": _time(session.ends_at)}
    if session.label:
        facts["Signed in"] = _KINDS[session.client_kind]
    return _card(
        "browser" if session.client_kind is ClientKind.WEB else "device",
        name,
        '<span class="badge on">here</span>' if here else "",
        facts,
        actions="" if here else _sign_out(session, name),
    )


def _sign_out(session: Session, name: str) -> str:
    about = {"id": base64url(session.session_id), "name": name}
    return _button("end-session", "Sign out", about, spoken=f"Sign out: {name}", risky=True)


def _card(
    icon: str, name: str, badge: str, facts: Mapping[str, str], *, warning: str = "", actions: str = ""
) -> str:
    listed = _join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        f'<li><svg aria-hidden="true"><use href="#{icon}"/></svg>'
        f'<div><div class="title"><h3>{escape(name)}</h3>{badge}</div><dl>{listed}</dl>{warning}</div><div class="actions">{actions}</div></li>\n'
    )


def _button(
    deed: str,
    text: str,
    about: Mapping[str, str] = MappingProxyType({}),
    *,
    spoken: str | None = None,
    risky: bool = False,
) -> str:
    """Render a button, which the script enables. spoken: its accessible name where several have the same text; about: its purpose."""
    label = "" if spoken is None else f' aria-label="{escape(spoken)}"'
    data = _join(f' data-{name}="{escape(value)}"' for name, value in about.items())
    kind = "plain risky" if risky else "plain"
    return f'<button type="button" class="{kind}" data-do="{deed}"{data}{label} disabled>{text}</button>'


def _everyone(registered: Sequence[Registered], current: Session | None) -> str:
    people = _join(_person(one, current) for one in registered)
    listed = f'<ul class="cards people">{people}</ul>' if people else "<p>Nobody yet.</p>"
    return (
        '<section aria-labelledby="people"><div class="heading"><h2 id="people">Everyone</h2>'
        '<p class="quiet">Shown to all who look, as on localhost by default.</p></div>'
        f"{listed}</section>"
    )


def _person(one: Registered, current: Session | None) -> str:
    badge = (
        '<span class="badge on">signed in</span>' if one.sessions else '<span class="badge">signed out</span>'
    )
    sessions = _join(f"<li>{_since(session, current)}</li>" for session in one.sessions)
    passkeys = ", ".join(escape(provider(credential)) for credential in one.credentials)
    return (
        f'<li><div><div class="title"><h3>{escape(one.user.display_name)}{_other_name(one.user)}</h3>{badge}</div>'
        f"<ul>{sessions}<li>{passkeys}</li></ul></div></li>\n"
    )


def _since(session: Session, current: Session | None) -> str:
    here = " (here)" if current is not None and current.session_id == session.session_id else ""
    return f"{_KINDS[session.client_kind]}{here} since {_time(session.created_at)}"


def _other_name(user: User) -> str:
    if user.name == user.display_name:
        return ""
    return f' <span class="quiet">({escape(user.name)})</span>'


def _time(seconds: int) -> str:
    moment = datetime.fromtimestamp(
        min(seconds, _LAST), UTC
    )  # sessions of before lifetimes had a limit may end later
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M} UTC</time>'


def _join(parts: Iterable[str]) -> str:
    return "".join(parts)


def _fill(name: str, **values: str) -> str:
    return Template(_read(name)).substitute(values)


@cache
def _providers() -> Mapping[str, str]:
    return dict(tomllib.loads(_read("providers.toml"))["names"])


@cache
def _read(name: str) -> str:
    return resources.files("relying_party.http").joinpath("pages", name).read_text("utf-8")
