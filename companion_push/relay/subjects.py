"""Accounts in the store that belong to a subject of an account authority, and suspensions of any account.

Each function is a part of one transaction on an open store (`companion_push.relay.database`). A subject has at most one
open account. What an authority said last is kept here, so the relay goes on while the authority cannot be asked.
"""

from dataclasses import dataclass, field
from typing import Final

from companion_push.identity.authority import SignIn, Subject
from companion_push.relay import accounts
from companion_push.relay.limits import Rate
from companion_push.relay.problems import Problem, Slug, invalid
from companion_push.relay.transaction import Transaction

FRESH: Final = 300  # seconds since the sign-in that a reset needs
_SKEW: Final = 60  # seconds by which the authority's clock may be ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """The outcome of a founding."""

    account: str
    news: bool  # False: it was founded with these bytes before
    told: frozenset[str] = field(default=frozenset())  # members of the account that was closed for it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a subject."""

    account: str | None
    suspended: bool
    not_before: int


_NOBODY: Final = _Known(account=None, suspended=False, not_before=-1)


def account_of(db: Transaction, subject: Subject) -> str | None:
    """The subject's open account."""
    return _known(db, subject).account


def subject_of(db: Transaction, account: str) -> Subject | None:
    """The subject to whom an account belongs; None for a built-in account."""
    row = db.execute("SELECT issuer, subject FROM subjects WHERE account = ?", (account,)).fetchone()
    return None if row is None else Subject(issuer=row[0], id=row[1])


def standing(db: Transaction, sign_in: SignIn) -> str | None:
    """The account of who signed in, None without one; refuses a token that may not found any more, and a suspended subject."""
    known = _known(db, sign_in.subject)
    _refuse(known, sign_in)
    return known.account


def found(
    db: Transaction, *, caller: str, sign_in: SignIn, document: bytes, resets: bool, now: float
) -> Founded:
    """Found the account of who signed in; resets: close the one before, which needs a recent sign-in. Idempotent."""
    ring = accounts.founding_ring(document, caller=caller)
    known = _known(db, sign_in.subject)
    if known.account == ring.account and accounts.holds_ring(db, ring.account, 1, ring.hash):
        return Founded(account=ring.account, news=False)
    _refuse(known, sign_in)
    if not sign_in.may_found:
        raise Problem(Slug.NOT_ALLOWED, "the account service does not let this user have an account here")
    if known.account is not None and not resets:
        raise Problem(Slug.ACCOUNT_EXISTS, account=known.account)
    if resets and not _is_fresh(sign_in, now):
        raise Problem(Slug.SIGN_IN_TOO_OLD, max_age=FRESH)
    if ring.account_name != sign_in.account_name:
        raise invalid("ring: the account has another name")
    accounts.refuse_closed(db, ring.account)
    if accounts.is_known(db, ring.account):
        raise Problem(Slug.REQUEST_CONFLICT)
    told = frozenset() if known.account is None else accounts.close(db, known.account, now=now)
    db.execute("INSERT INTO accounts (id, created_at) VALUES (?, ?)", (ring.account, int(now)))
    _set(db, sign_in.subject, account=ring.account, label=sign_in.account_name)
    accounts.store_ring(db, ring, now)
    return Founded(account=ring.account, news=True, told=told)


def count_founding(db: Transaction, subject: Subject, rate: Rate, now: float) -> None:
    """Take one of a subject's rate of new accounts (`rate-limited`)."""
    (full_at,) = db.execute(
        "SELECT foundings FROM subjects WHERE issuer = ? AND subject = ?", (subject.issuer, subject.id)
    ).fetchone()
    _set(db, subject, foundings=rate.take(full_at, now, of="foundings"))


def refuse_tokens(db: Transaction, subject: Subject, *, until: float | None) -> None:
    """Let no token that was made until then found an account of this subject; None: let each."""
    _set(db, subject, not_before=-1 if until is None else int(until))


def suspend(db: Transaction, *, account: str | None, subject: Subject | None, now: float) -> None:
    """Suspend an account, and what its subject founds."""
    if account is not None:
        db.execute(
            "INSERT INTO suspensions VALUES (?, ?) ON CONFLICT (account) DO NOTHING", (account, int(now))
        )
        accounts.change_authority(db, account)
    if subject is not None:
        _set(db, subject, suspended=1)


def lift(db: Transaction, *, account: str | None, subject: Subject | None) -> None:
    """Lift a suspension."""
    if account is not None:
        db.execute("DELETE FROM suspensions WHERE account = ?", (account,))
    if subject is not None:
        _set(db, subject, suspended=0)


def _refuse(known: _Known, sign_in: SignIn) -> None:
    if known.suspended:
        raise Problem(Slug.ACCOUNT_SUSPENDED)
    if sign_in.issued_at <= known.not_before:
        raise Problem(Slug.TOKEN_REFUSED, "the token was made before its subject's account was closed")


def _is_fresh(sign_in: SignIn, now: float) -> bool:
    return sign_in.signed_in_at is not None and -_SKEW <= now - sign_in.signed_in_at <= FRESH


def _known(db: Transaction, subject: Subject) -> _Known:
    row = db.execute(
        "SELECT account, suspended, not_before FROM subjects WHERE issuer = ? AND subject = ?",
        (subject.issuer, subject.id),
    ).fetchone()
    return _NOBODY if row is None else _Known(account=row[0], suspended=bool(row[1]), not_before=row[2])


def _set(db: Transaction, subject: Subject, **values: str | float) -> None:
    """Set columns of a subject's row, which is made where there is none. values: columns of this module, never a caller's."""
    key = (subject.issuer, subject.id)
    db.execute(
        "INSERT INTO subjects (issuer, subject) VALUES (?, ?) ON CONFLICT (issuer, subject) DO NOTHING", key
    )
    assignments = ", ".join(f"{column} = ?" for column in values)
    db.execute(
        f"UPDATE subjects SET {assignments} WHERE issuer = ? AND subject = ?",  # noqa: S608
        (*values.values(), *key),
    )
