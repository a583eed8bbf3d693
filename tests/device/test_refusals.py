"""Why companions could not take a request: each word is a branch of the error tree, and a sentence for people."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import (
    CtapError,
    ExitStatus,
    HeadlessPasskeyError,
    NotApproved,
    RemoteProtocolError,
    TransportError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.ctap2 import Status
from headless_passkey.mends import mend
from headless_passkey.refusals import Refusal, ctap_error, refused

WORDS = [
    ("clock-skew", TrustError, "clock-skew", 8),
    ("expired", TrustError, "expired", 8),
    ("stale-ring", TrustError, "stale-ring", 8),
    ("forked-ring", TrustError, "forked-ring", 8),
    ("unknown-device", TrustError, "unknown-device", 8),
    ("cannot-open", TrustError, "cannot-open", 8),
    ("bad-url", TrustError, "bad-url", 8),
    ("wrong-digits", TrustError, "wrong-digits", 8),
    ("digits-missing", TrustError, "digits-missing", 8),
    ("replayed", TrustError, "replayed", 8),
    ("no-adapter", TransportError, "no-adapter", 4),
    ("unreachable", TransportError, "unreachable", 4),
    ("state-damaged", TransportError, None, 4),
    ("failed", TransportError, None, 4),
    ("unspecified", TransportError, None, 4),
    ("something-new", TransportError, None, 4),
    ("malformed", RemoteProtocolError, "refused", 3),
    ("interrupted", NotApproved, "cancelled", 7),
    ("removed", NotApproved, "cancelled", 7),
    ("unanswered", NotApproved, "expired", 7),
    ("ctap2-err-no-credentials", CtapError, "CTAP2_ERR_NO_CREDENTIALS", 5),
]


def by(label: str | None, reason: str) -> Refusal:
    return Refusal(companion=label or "?", label=label, reason=reason)


@pytest.mark.parametrize(("word", "kind", "reason", "status"), WORDS, ids=[word for word, *_ in WORDS])
def test_each_word_is_a_branch_of_the_error_tree(
    word: str, kind: type[HeadlessPasskeyError], reason: str | None, status: int
) -> None:
    error = refused([by("Ada's phone", word)])
    assert (type(error), error.reason, error.exit_status) == (kind, reason, status)
    if kind is not CtapError:
        assert str(error).startswith('"Ada\'s phone" ')


def test_every_check_has_an_error_and_every_word_a_sentence() -> None:
    for reason in TrustReason:
        error = refused([by("phone", reason)])
        assert isinstance(error, TrustError)
        assert error.reason is reason
    assert str(by("phone", "clock-skew")) == (
        '"phone" refuses the request: its clock and this device\'s are too far apart'
    )
    assert str(by("phone", "vanished")) == '"phone" has vanished'
    assert (
        str(by(None, "something-new"))
        == "a companion could not hand the request to the phone (something-new)"
    )


def test_of_what_is_wrong_with_its_machine_its_state_is_told_apart() -> None:
    assert str(by("phone", "state-damaged")) == '"phone" cannot use what it keeps of its account'
    assert str(by("phone", "disk-full")) == '"phone" is not set up to take it (disk-full)'
    assert str(by("phone", "output-unwritable")) == '"phone" is not set up to take it (output-unwritable)'


def test_for_the_clocks_it_is_said_what_to_do() -> None:
    assert (
        refused([by("phone", "clock-skew")])
        .explain()
        .endswith("set both clocks, here with `sudo timedatectl set-ntp true`")
    )


def test_of_several_reasons_a_refused_check_counts_first_and_all_are_said() -> None:
    error = refused([by("phone", "no-adapter"), by("tablet", "cannot-open"), by("laptop", "interrupted")])
    assert (error.exit_status, error.reason) == (ExitStatus.NOT_TRUSTED, "cannot-open")
    assert str(error) == (
        '"tablet" refuses the request: it cannot open what was sealed to it; '
        '"phone" could not hand the request to the phone; "laptop" was ended before the phone had answered'
    )


def test_what_others_say_counts_before_a_removal() -> None:
    error = refused([by("tablet", "removed"), by("phone", "no-adapter")])
    assert (error.exit_status, error.reason) == (ExitStatus.TRANSPORT, "no-adapter")
    assert str(error).endswith('; "tablet" was removed from the account meanwhile')


def test_of_what_the_phone_said_the_advice_is_the_same_whoever_tells() -> None:
    told = refused([by("phone", "ctap2-err-no-credentials")])
    assert told.advice == ctap_error(Status.NO_CREDENTIALS).advice == mend("CTAP2_ERR_NO_CREDENTIALS")
    assert ctap_error(Status.OTHER).advice is None


def test_who_had_claimed_it_counts_before_the_others() -> None:
    error = refused([by("tablet", "cannot-open"), by("phone", "no-adapter")], holder="phone")
    assert (error.exit_status, error.reason) == (ExitStatus.TRANSPORT, "no-adapter")


@pytest.mark.threat("T12")
@given(label=st.none() | st.text(), reason=st.text())
def test_whatever_a_relay_says_is_an_error_that_a_terminal_may_show(label: str | None, reason: str) -> None:
    refusal = Refusal(companion="?", label=label, reason=reason)
    assert isinstance(refused([refusal]), HeadlessPasskeyError)
    assert not {unicodedata.category(character) for character in str(refusal)} & {"Cc", "Zl", "Zp"}
    assert not {"\u202e", "\u2066", "\u200b"} & set(str(refusal))
