"""Errors are what the drawings in the docstrings say: who is whose kind, and what each one tells a program."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from graphql import GraphQLError

import companion_push.errors
import headless_passkey.errors
import relying_party.errors
from headless_passkey.doctor.finding import Check, Finding
from headless_passkey.errors import (
    CtapError,
    ExitStatus,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.rp.session import Answer
from http_serving.rate_limit import Policy
from tests.programs import PACKAGES, ROOT

TREES = (headless_passkey.errors, companion_push.errors, relying_party.errors)

# what each parameter of a constructor is given, by its name
GIVEN: dict[str, Any] = {
    "answer": Answer(status=503, headers={}, body=b""),
    "message": "what is wrong",
    "detail": "what is wrong",
    "reason": TrustReason.BAD_MAC,
    "outcome": Outcome.SUPERSEDED,
    "status": 0x27,
    "name": "CTAP2_ERR_OPERATION_DENIED",
    "clean": True,
    "host": "tunnels.example",
    "proxy": "proxy.example:3128",
    "slug": "not-found",
    "nonce": "a nonce",
    "operation": "remove-passkey",
    "members": {"a": 1},
    "problems": (Finding.of(Check.CLOCK, TrustError(TrustReason.CLOCK_SKEW, "wrong")),),
    "advice": "mend it",
    "error_name": "org.bluez.Error.Failed",
    "member": "StartDiscovery",
    "now": 1_800_000_000,
    "account": "alice",
    "given": False,
    "errors": [GraphQLError("wrong")],
    "policy": Policy(name="requests", quota=3, seconds=60),
    "retry_after": 5,
    "check": relying_party.errors.Check.ORIGIN,
}


class Drawn(NamedTuple):
    """One line of a drawing."""

    name: str
    parent: str | None
    attributes: tuple[str, ...]


def drawing(tree: ModuleType) -> list[Drawn]:
    """The lines of the drawing in a module's docstring, from the root on."""
    drawn: list[Drawn] = []
    above: list[tuple[int, str]] = []
    for line in (tree.__doc__ or "").splitlines():
        found = re.match(r"( {4}[│├└─ ]*)(\w+)(?:\(([\w, ]+)\))?(?: |$)", line)
        if found is None:
            continue
        column, name = len(found[1]), found[2]
        while above and above[-1][0] >= column:
            above.pop()
        drawn.append(Drawn(name, above[-1][1] if above else None, tuple((found[3] or "").split(", "))))
        above.append((column, name))
    assert drawn, tree
    return [each._replace(attributes=tuple(filter(None, each.attributes))) for each in drawn]


def named(tree: ModuleType, name: str) -> Any:
    """The class of that name: the tree's own, or of the tree that it grows on."""
    return getattr(tree, name, None) or getattr(headless_passkey.errors, name)


def errors() -> Iterator[type[Exception]]:
    """Every public exception of our packages."""
    for package in PACKAGES:
        for found in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            for name, thing in vars(module).items():
                is_error = inspect.isclass(thing) and issubclass(thing, Exception)
                if is_error and thing.__module__ == module.__name__ and not name.startswith("_"):
                    yield thing


ERRORS = sorted(errors(), key=lambda error: f"{error.__module__}.{error.__qualname__}")


def made(error: type[Exception]) -> tuple[Exception, dict[str, Any]]:
    """One of a kind, and what its constructor was given."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(error.__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        given[name] = GIVEN[name]
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = GIVEN[name]
        else:
            positional.append(GIVEN[name])
    return error(*positional, **named), given


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_a_drawing_says_whose_kind_each_error_is(tree: ModuleType) -> None:
    for name, parent, _ in drawing(tree):
        error = named(tree, name)
        assert issubclass(error, Exception), name
        if parent is not None:
            assert error.__bases__ == (named(tree, parent),), name


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_every_error_of_a_tree_is_in_its_drawing(tree: ModuleType) -> None:
    names = {each.name for each in drawing(tree)}
    assert {error.__name__ for error in ERRORS if error.__module__ == tree.__name__} <= names


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_what_a_drawing_has_in_parentheses_is_a_public_attribute(tree: ModuleType) -> None:
    for name, _, attributes in drawing(tree):
        error = named(tree, name)
        if error.__module__ == tree.__name__:
            instance, given = made(error)
            for attribute in attributes:
                assert getattr(instance, attribute) == given[attribute], (name, attribute)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{error.__module__}.{error.__qualname__}")
def test_what_an_error_is_made_of_can_be_asked_of_it(error: type[Exception]) -> None:
    """But for the message, which is its text."""
    instance, given = made(error)
    for name, value in given.items():
        if name == "message":
            assert str(instance) == value
        else:
            assert getattr(instance, name) == value, name


def test_an_outcome_and_a_status_can_be_asked_for_by_name() -> None:
    assert NotApproved(Outcome.DECLINED, "no").outcome is Outcome.DECLINED
    denied = CtapError(0x27, "CTAP2_ERR_OPERATION_DENIED")
    assert (denied.status, denied.name, denied.reason) == (0x27, denied.name, "CTAP2_ERR_OPERATION_DENIED")
    assert TransportError("away", reason=TransportReason.UNREACHABLE).reason == "unreachable"
    assert TrustError(TrustReason.BAD_MAC, "no").reason == "bad-mac"
    assert SetupError("bad", reason=SetupReason.STATE_DAMAGED).reason == "state-damaged"
    assert RemoteProtocolError("bad", reason=ProtocolReason.MALFORMED_CBOR).reason == "malformed-cbor"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.DECLINED, 6),
        (Outcome.EXPIRED, 7),
        (Outcome.CANCELLED, 7),
        (Outcome.SUPERSEDED, 7),
    ],
)
def test_a_request_without_an_answer_ends_with_7_unless_somebody_said_no(
    outcome: Outcome, status: int
) -> None:
    assert NotApproved(outcome, "no answer").exit_status == status


def test_each_exit_status_is_documented_with_each_outcome_that_it_stands_for() -> None:
    """docs/cli.md takes its table from `ExitStatus.meaning`."""
    assert all(status.meaning for status in ExitStatus)
    for outcome in Outcome:
        meaning = NotApproved(outcome, "").exit_status.meaning
        assert str(outcome) in meaning, (outcome, meaning)
