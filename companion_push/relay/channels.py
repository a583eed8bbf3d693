"""The channels of companions in the store, and the pushes that follow from what operations change.

Each function is a part of one transaction on an open store (`companion_push.relay.database`). A push is stored in the
transaction that causes it, and deleted when its outcome is known: what a relay that was killed had not handed over yet,
it finds again when it starts. Addresses are secrets; nobody is told one.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec.structs import replace
from yarl import URL

from companion_push.errors import StoreBusy, StoreUnavailable
from companion_push.push.channel import (
    Address,
    Apns,
    Delivery,
    Fcm,
    Kind,
    Purpose,
    Push,
    PushOutcome,
    WebPush,
)
from companion_push.push.dispatcher import Order, kind_of
from companion_push.relay.account_states import States
from companion_push.relay.mailbox import HELD, INBOX, LIVE, Key, Notice, Request
from companion_push.relay.problems import Problem, Slug
from companion_push.relay.transaction import Transaction, ask
from headless_passkey.request import RequestState
from headless_passkey.text.base64url import from_base64url
from program_parts.base64url import base64url

MAX_CHANNELS: Final = 4  # of a companion
MAX_AGAIN: Final = 2  # further notifications of one request, after claims that were given back
PENDING: Final = "pending"  # in place of an outcome: the push is under way
STALE_KEPT: Final = 7 * 86_400  # seconds in which the companion confirms a stale channel, or it is deleted
_LIFE: Final = {  # seconds that a push is worth anything, where it is about no request
    Purpose.WORD: 3600,
    Purpose.RING: 86_400,
    Purpose.REMOVED: 86_400,
    Purpose.RESET: 86_400,
}
_TEST_LIFE: Final = 300  # seconds
_DISMISS_LIFE: Final = 600  # seconds: what it dismisses is gone from the phone by then, too
_TAG_SIZE: Final = 16  # bytes
_COLLECTED: Final = 1000  # pushes that one sweep takes up
_FURTHEST: Final = 60.0  # seconds: what is kept for longer was kept by a clock that has gone back since
_UNSEEN: Final = (
    PushOutcome.GONE,
    PushOutcome.STALE,
    PushOutcome.REFUSED,
    PushOutcome.BUSY,
    PushOutcome.LATE,
)
_UNRESERVED: Final = re.compile(r"%([0-9A-Fa-f]{2})")


class ChannelState(StrEnum):
    """The state of a channel, as its owner sees it."""

    GOOD = "good"
    STALE = "stale"  # the push service calls it dead: it is deleted unless the companion registers it again
    REFUSED = "refused"  # the push service takes nothing for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A channel as its owner sees it."""

    handle: str
    kind: Kind
    state: ChannelState
    registered_at: int  # Unix seconds, the last time


@dataclass(frozen=True, slots=True, kw_only=True)
class Notified:
    """What has become of one push for a request."""

    to: str  # a companion's name
    channel: str  # its kind, or `INBOX`
    outcome: str  # of `PushOutcome`, or `PENDING`


# Registration


def registered(db: Transaction, companion: str) -> list[Registered]:
    """List the channels of a companion."""
    rows = db.execute(
        "SELECT handle, kind, state, registered_at FROM channels WHERE companion = ? ORDER BY handle",
        (companion,),
    )
    return [
        Registered(handle=row[0], kind=Kind(row[1]), state=ChannelState(row[2]), registered_at=int(row[3]))
        for row in rows
    ]


def register(
    db: Transaction, *, companion: str, account: str, handle: str, address: Address, now: float
) -> bool:
    """Store a channel; returns whether it is another one than before. The same again confirms it.

    Whoever had its token or endpoint, by this handle or another, has it no longer.
    """
    blob, identity = _encoded(address), identity_of(address)
    known = db.execute(
        "UPDATE channels SET registered_at = ?, state = ?, stale_at = NULL"
        " WHERE companion = ? AND handle = ? AND address = ? RETURNING 1",
        (now, ChannelState.GOOD, companion, handle, blob),
    ).fetchall()
    if known:
        return False
    db.execute(
        "DELETE FROM channels WHERE identity IN (?, ?) OR (companion = ? AND handle = ?)",
        (identity, _identity_before(address), companion, handle),
    )
    (others,) = db.execute("SELECT count(*) FROM channels WHERE companion = ?", (companion,)).fetchone()
    if others >= MAX_CHANNELS:
        raise Problem(Slug.TOO_MANY_CHANNELS, limit=MAX_CHANNELS)
    db.execute(
        "INSERT INTO push_tags VALUES (?, ?) ON CONFLICT (account) DO NOTHING",
        (account, secrets.token_bytes(_TAG_SIZE)),
    )
    db.execute(
        "INSERT INTO channels VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (companion, handle, account, kind_of(address), blob, identity, now, ChannelState.GOOD),
    )
    return True


def remove(db: Transaction, companion: str, handle: str) -> None:
    """Remove a channel of the companion (idempotent)."""
    db.execute("DELETE FROM channels WHERE companion = ? AND handle = ?", (companion, handle))


def set_poll_only(db: Transaction, account: str, *, on: bool) -> None:
    """Let an account have no channels, or let it have some again (idempotent). What is under way goes on."""
    if on:
        db.execute("INSERT INTO poll_only VALUES (?) ON CONFLICT (account) DO NOTHING", (account,))
        db.execute("DELETE FROM channels WHERE account = ?", (account,))
    else:
        db.execute("DELETE FROM poll_only WHERE account = ?", (account,))


def is_poll_only(db: Transaction, account: str) -> bool:
    """Whether the account may have no channels."""
    return db.execute("SELECT 1 FROM poll_only WHERE account = ?", (account,)).fetchone() is not None


def forget(db: Transaction, companions: Iterable[str]) -> None:
    """Remove all channels of companions that are no longer members."""
    db.executemany("DELETE FROM channels WHERE companion = ?", [(name,) for name in companions])


def close(db: Transaction, account: str, now: float) -> None:
    """Tell all companions that the account is closed, and remove their channels.

    The pushes are for whichever relay works on this store.
    """
    db.execute("DELETE FROM pushes WHERE account = ?", (account,))
    tell(db, account, Purpose.RESET, now, kinds=frozenset(Kind))
    for table in ("channels", "push_tags"):
        db.execute(f"DELETE FROM {table} WHERE account = ?", (account,))  # noqa: S608


def identity_of(address: Address) -> bytes:
    """A hash of the token or endpoint in its canonical form: what addresses the same is the same."""
    match address:
        case Fcm():
            canonical = f"fcm {address.token}"
        case Apns():
            canonical = f"apns {address.token.lower()}"
        case _:
            # as a push is sent there: each character has one encoding
            canonical = f"web-push {_canonical_url(str(URL(address.endpoint)))}"
    return hashlib.sha256(canonical.encode()).digest()


def _identity_before(address: Address) -> bytes:
    """The hash with which a relay of 0.1.0 has stored the same address: a few endpoints have another one now."""
    if not isinstance(address, WebPush):
        return identity_of(address)
    return hashlib.sha256(f"web-push {_canonical_url(address.endpoint)}".encode()).digest()


def _encoded(address: Address) -> bytes:
    """An address as it is stored."""
    match address:
        case Fcm():
            members: dict[str, str | bool] = {"app": address.app, "token": address.token}
        case Apns():
            members = {"topic": address.topic, "token": address.token, "sandbox": address.sandbox}
        case _:
            keys = {"p256dh": base64url(address.p256dh), "auth": base64url(address.auth)}
            members = {"endpoint": address.endpoint, **keys}
    return json.dumps(members).encode()


def _decoded(kind: Kind, stored: bytes) -> Address:
    members = json.loads(stored)
    match kind:
        case Kind.FCM:
            return Fcm(**members)
        case Kind.APNS:
            return Apns(**members)
        case Kind.WEB_PUSH:
            return WebPush(
                endpoint=members["endpoint"],
                p256dh=from_base64url(members["p256dh"]),
                auth=from_base64url(members["auth"]),
            )


def _canonical_url(url: str) -> str:
    """Normalise an https URL for comparison (RFC 3986 §6.2.2, §6.2.3)."""

    def decoded(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        return (
            character
            if character.isascii() and (character.isalnum() or character in "-._~")
            else found[0].upper()
        )

    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    path = _UNRESERVED.sub(decoded, parts.path) or "/"
    return f"https://{host}:{parts.port or 443}{path}?{_UNRESERVED.sub(decoded, parts.query)}"


# Pushes


def tell(
    db: Transaction,
    account: str,
    purpose: Purpose,
    now: float,
    *,
    kinds: frozenset[Kind],
    companions: Collection[str] | None = None,
) -> tuple[Order, ...]:
    """Push to companions of the account what is about no request. companions: None for all."""
    if not kinds:
        return ()
    rows = [row for row in _channels_of(db, account, kinds) if companions is None or row[0] in companions]
    return _orders(db, rows, purpose, now + _LIFE[purpose])


def test(db: Transaction, companion: str, handle: str, now: float) -> Order | None:
    """Make a push that tests a channel; None without such a channel. It is not stored: somebody waits for its outcome."""
    row = db.execute(
        "SELECT address, kind, tag FROM channels JOIN push_tags USING (account) WHERE companion = ? AND handle = ?",
        (companion, handle),
    ).fetchone()
    if row is None:
        return None
    push = Push(purpose=Purpose.TEST, handle=handle, account=row[2], expires_at=now + _TEST_LIFE)
    return Order(number=0, address=_decoded(Kind(row[1]), row[0]), push=push)


def tested(db: Transaction, companion: str, order: Order, delivery: Delivery, now: float) -> None:
    """Conclude from the outcome of a test what the channel is worth."""
    _judge(db, (companion, order.push.handle, _encoded(order.address)), delivery, now)


def notify(
    db: Transaction,
    request: Request,
    *,
    kinds: frozenset[Kind],
    waiting: Collection[str],
    may_wait: Iterable[str] = (),
) -> tuple[Request, tuple[Order, ...]]:
    """Push a new request to its recipients; returns it with what has become of that.

    waiting: who is waiting at its inbox. may_wait: who may be doing so at another process; who is pushed needs not.
    """
    notices = [Notice(to=name, handle="", kind=INBOX, outcome=PushOutcome.SENT) for name in waiting]
    rows = _channels_of(db, request.account, kinds) if kinds else []
    rows = [row for row in rows if row[0] in request.recipients]
    notices.extend(Notice(to=row[0], handle=row[1], kind=row[2]) for row in rows)
    told = {each.to for each in notices}
    notices.extend(Notice(to=name, handle="", kind=INBOX) for name in may_wait if name not in told)
    notices.sort(key=lambda each: (each.to, each.handle))
    orders = _orders(db, rows, Purpose.REQUEST, request.expires_at, request)
    return replace(request, notices=tuple(notices)), orders


def lacking(db: Transaction, request: Request, *, kinds: frozenset[Kind]) -> tuple[Order, ...]:
    """Push a request that is submitted again where its first pushes were never stored.

    Where account states are in a store beside the database, a relay may have ended between the two commits.
    """
    without = {
        (each.to, each.handle)
        for each in request.notices
        if each.kind in kinds and each.outcome is None and request.waits_for(each.to)
    }
    if not without or request.state in HELD:
        return ()
    stored = db.execute(
        "SELECT companion, handle FROM pushes WHERE account = ? AND device = ? AND request = ?",
        (request.account, *request.key),
    )
    without.difference_update((companion, handle) for companion, handle in stored)
    rows = [row for row in _channels_of(db, request.account, kinds) if row[:2] in without]
    return _orders(db, rows, Purpose.REQUEST, request.expires_at, request)


def notified(request: Request) -> list[Notified]:
    """List what has become of the pushes for a request; an outcome that is known never changes."""
    return [
        Notified(to=each.to, channel=each.kind, outcome=each.outcome or PENDING) for each in request.notices
    ]


def follow_up(
    db: Transaction,
    states: States,
    request: Request,
    *,
    was: RequestState | None,
    by: str | None,
    now: float,
    kinds: frozenset[Kind],
) -> list[Order]:
    """Push what follows from a request's change to the companions that were notified of it.

    A claim or an end dismisses what the others show. A claim that is given back notifies them again.
    was: the state before; None when it was submitted. by: the member who changed it.
    """
    if was in HELD and request.live and request.state not in HELD:
        told = {each.to for each in request.notices if each.to != by and request.waits_for(each.to)}
        return _tell_notified(
            db, states, request, kinds, Purpose.REQUEST, told=told, expires_at=request.expires_at
        )
    if (request.state in HELD and was not in HELD) or (was in LIVE and not request.live):
        told = {each.to for each in request.notices if each.to not in (by, request.claimed_by)}
        return _tell_notified(
            db, states, request, kinds, Purpose.DISMISS, told=told, expires_at=now + _DISMISS_LIFE
        )
    return []


def _tell_notified(
    db: Transaction,
    states: States,
    request: Request,
    kinds: frozenset[Kind],
    purpose: Purpose,
    *,
    told: Collection[str],
    expires_at: float,
) -> list[Order]:
    """Dismiss a request, or notify of it again, over the channels to which a push for it has gone or may have.

    told: the companions that it is for. One channel is notified again `MAX_AGAIN` times at most.
    """
    dismisses = purpose is Purpose.DISMISS
    open_ones = {
        (each.to, each.handle): each
        for each in request.notices
        if each.to in told
        and each.dismissed is not dismisses
        and not (each.dismissed and each.again >= MAX_AGAIN)
        and each.outcome not in _UNSEEN
    }
    rows = _channels_of(db, request.account, kinds) if open_ones else []
    rows = [row for row in rows if row[:2] in open_ones]
    changed = {
        row[:2]: replace(
            open_ones[row[:2]], dismissed=dismisses, again=open_ones[row[:2]].again + (not dismisses)
        )
        for row in rows
    }
    if changed:
        _renotice(states, request, changed)
    return list(_orders(db, rows, purpose, expires_at, request))


def _renotice(states: States, request: Request, changed: Mapping[tuple[str, str], Notice]) -> None:
    """Store notices in place of those of their channels, by recipient and handle."""
    notices = tuple(changed.get((each.to, each.handle), each) for each in request.notices)
    states.save(replace(request, notices=notices))


def record(db: Transaction, states: States, ends: Sequence[tuple[int, Delivery]], now: float) -> set[Key]:
    """Store the outcomes of pushes, by their numbers; returns the requests whose `notified` has changed."""
    changed = set()
    deleted = [
        ask(
            db,
            "DELETE FROM pushes WHERE id = ? RETURNING account, companion, handle, address, purpose, device, request",
            (number,),
        )
        for number, _ in ends
    ]
    for rows, (_, delivery) in zip(deleted, ends, strict=True):
        for account, companion, handle, address, purpose, device, request in rows():
            _judge(db, (companion, handle, address), delivery, now)
            about = states.of(account).request((device, request)) if purpose == Purpose.REQUEST else None
            if about is not None and _note(states, about, (companion, handle), delivery.outcome):
                changed.add(about.key)
    return changed


def collect(
    db: Transaction,
    states: States,
    now: float,
    *,
    in_flight: Collection[int],
    kinds: frozenset[Kind],
    apart: bool = False,
) -> tuple[tuple[Order, ...], set[Key]]:
    """Take up the pushes that are nobody's: of a relay that was killed, or of an account that was closed beside it.

    Dropped is what is over, what its recipient has fetched, and what this relay is not set up for. Returns the others,
    and the requests whose `notified` has changed. in_flight: numbers of those that are known. apart: leave what is over, and
    accounts whose state does not answer, to a later time, so that they are not in the way of the others.
    """
    db.execute("DELETE FROM channels WHERE stale_at <= ?", (now - STALE_KEPT,))
    rows = db.execute(
        "SELECT id, account, companion, handle, kind, address, tag, purpose, device, request, expires_at FROM pushes"
        " WHERE taken_until <= ? OR taken_until > ? ORDER BY id LIMIT ?",
        (now, now + _FURTHEST, _COLLECTED + len(in_flight)),
    ).fetchall()
    orders, over = [], []
    for number, account, companion, handle, kind, address, tag, purpose, device, request, expires_at in rows:
        if number in in_flight:
            continue
        try:
            stored = None if request is None else states.of(account).request((device, request))
        except StoreUnavailable as error:
            if not apart or isinstance(error, StoreBusy):
                raise
            continue
        is_wanted = purpose != Purpose.REQUEST or (
            stored is not None
            and stored.waits_for(companion)
            and stored.state not in HELD
            and companion not in stored.fetched_by
        )
        if is_wanted and kind in kinds and expires_at > now:
            orders.append(
                Order(
                    number=number,
                    address=_decoded(Kind(kind), address),
                    push=Push(
                        purpose=Purpose(purpose),
                        handle=handle,
                        account=tag,
                        expires_at=expires_at,
                        request_id=request,
                    ),
                )
            )
        elif not apart:
            over.append((number, Delivery(outcome=PushOutcome.LATE)))
    return tuple(orders), record(db, states, over, now)


def keep(db: Transaction, numbers: Collection[int], until: float) -> None:
    """Let pushes be of this process until then: no other one takes them up."""
    chosen = sorted(numbers)
    for first in range(0, len(chosen), _COLLECTED):
        portion = chosen[first : first + _COLLECTED]
        places = ", ".join("?" * len(portion))
        db.execute(f"UPDATE pushes SET taken_until = ? WHERE id IN ({places})", (until, *portion))  # noqa: S608


def _judge(db: Transaction, channel: tuple[str, str, bytes], delivery: Delivery, now: float) -> None:
    """Conclude from an outcome what the channel is worth, unless it has another address by now."""
    where = "companion = ? AND handle = ? AND address = ?"
    match delivery.outcome:
        case PushOutcome.SENT:
            db.execute(
                f"UPDATE channels SET state = ?, stale_at = NULL WHERE {where} AND state <> ?",  # noqa: S608
                (ChannelState.GOOD, *channel, ChannelState.GOOD),
            )
        case PushOutcome.STALE:
            db.execute(
                f"UPDATE channels SET state = ?, stale_at = coalesce(stale_at, ?) WHERE {where}",  # noqa: S608
                (ChannelState.STALE, now, *channel),
            )
        case PushOutcome.REFUSED:
            db.execute(
                f"UPDATE channels SET state = ? WHERE {where} AND state <> ?",  # noqa: S608
                (ChannelState.REFUSED, *channel, ChannelState.STALE),
            )
        case PushOutcome.GONE:
            since = now if delivery.since is None else delivery.since
            db.execute(f"DELETE FROM channels WHERE {where} AND registered_at <= ?", (*channel, since))  # noqa: S608


def _note(states: States, request: Request, channel: tuple[str, str], outcome: PushOutcome) -> bool:
    """Note the outcome of a push for a request, by recipient and handle; False when one is known already."""
    for each in request.notices:
        if (each.to, each.handle) == channel and each.outcome is None:
            _renotice(states, request, {channel: replace(each, outcome=outcome)})
            return True
    return False


def _channels_of(db: Transaction, account: str, kinds: frozenset[Kind]) -> list[tuple[Any, ...]]:
    """Read the account's channels: companion, handle, kind, address, the account's tag, and its id."""
    rows = db.execute(
        "SELECT companion, handle, kind, address, tag, account FROM channels JOIN push_tags USING (account)"
        " WHERE account = ? ORDER BY companion, handle",
        (account,),
    )
    return [row for row in rows if row[2] in kinds]


def _orders(
    db: Transaction,
    rows: Sequence[tuple[Any, ...]],
    purpose: Purpose,
    expires_at: float,
    request: Request | None = None,
) -> tuple[Order, ...]:
    """Store pushes, as ones that are under way, in one round trip. rows: of `_channels_of`."""
    about = (None, None) if request is None else (request.device, request.id)
    stored = [
        ask(
            db,
            "INSERT INTO pushes (account, companion, handle, kind, address, tag, purpose, device, request, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (account, companion, handle, kind, address, tag, purpose, *about, expires_at),
        )
        for companion, handle, kind, address, tag, account in rows
    ]
    return tuple(
        Order(
            number=number()[0][0],
            address=_decoded(Kind(kind), address),
            push=Push(
                purpose=purpose, handle=handle, account=tag, expires_at=expires_at, request_id=about[1]
            ),
        )
        for number, (_, handle, kind, address, tag, _) in zip(stored, rows, strict=True)
    )
