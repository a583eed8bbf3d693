"""What `/graphql` admits: one operation with one root field, within limits that hold before a document is validated."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLError, GraphQLSchema, build_schema, get_introspection_query
from hypothesis import given
from hypothesis import strategies as st

from companion_push.relay.graphql.documents import Documents, Refused, Submitted
from companion_push.relay.graphql.schema import make_schema
from companion_push.relay.problems import Problem
from headless_passkey.errors import UsageError

ROOT = Path(__file__).parents[2]
SDL = make_schema().as_str()
SCHEMA: GraphQLSchema = build_schema(SDL)
CURSOR = "{ inbox { cursor } }"
CLAIM = "mutation Claim($d: ID!, $i: ID!, $w: Base64Url!) { claimRequest(device: $d, id: $i, word: $w) { state } }"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def admit(text: str, **more: Any) -> str:
    """The root field of an admitted document."""
    return Documents(SCHEMA, **more).admit(Submitted(query=text)).field


def refusal(text: str, **more: Any) -> str:
    """Why a document is not admitted."""
    try:
        admit(text, **more)
    except Problem as problem:
        return str(problem)
    except Refused as refused:
        return "; ".join(error.message for error in refused.errors)
    raise AssertionError("it was admitted")


def test_the_committed_schema_is_the_one_that_the_relay_has() -> None:
    assert (ROOT / "docs/reference/relay.graphql").read_text(encoding="utf-8") == SDL + "\n"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (CURSOR, "inbox"),
        ("query Open { inbox { cursor requests { ...Shown } } } fragment Shown on InboxItem { id sealed }", "inbox"),
        ("query { ...All } fragment All on Query { rings(after: 3) { version } }", "rings"),
        ("{ ... on Query { inbox { cursor } } }", "inbox"),
        ("{ mine: inbox { cursor } }", "inbox"),
        ("{ __typename }", "__typename"),
        ("{ __typename inbox { __typename cursor } }", "inbox"),
        (CLAIM, "claimRequest"),
    ],
    ids=["short", "fragment", "root fragment", "inline fragment", "alias", "typename", "beside it", "mutation"],
)  # fmt: skip
def test_a_document_of_one_call_is_admitted(text: str, field: str) -> None:
    assert admit(text) == field


@pytest.mark.threat("T17")
@pytest.mark.parametrize(
    "text",
    [
        "{ rings { a: rings b: rings } }",
        "{ rings { rings b: rings } }",
        "{ inbox { requests { a: sealed } requests { b: sealed } } }",
        "{ rings { ...A ...B } } fragment A on Rings { a: rings } fragment B on Rings { b: rings }",
        "{ rings { ...A ... on Rings { b: rings } } } fragment A on Rings { rings }",
        "{ rings { ... { a: rings } ... { b: rings } } }",
        "{ rings { ... @include(if: true) { a: rings } b: rings } }",
        "{ rings { words { by } more: words { by } } }",
    ],
    ids=["aliases", "alias", "merged", "fragments", "kinds", "inline", "directive", "objects"],
)
def test_an_answer_holds_nothing_twice(text: str) -> None:
    assert "Expected one name for the field" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "{ rings { a: rings } }",
        "{ rings { rings rings ...A } } fragment A on Rings { rings }",
        "{ inbox { requests { theirs: version } ring { newest: version } } }",
    ],
    ids=["alias", "the same", "other types"],
)
def test_a_field_has_one_name_of_its_callers_choice(text: str) -> None:
    assert admit(text)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Unexpected <EOF>"),
        ("{", "Expected Name"),
        ("{ inbox { cursor } ", "Expected Name"),
        ("{ inbox }", "must have a selection"),
        ("{ inbox { cursor { x } } }", "must not have a selection"),
        ("{ inbox { nothing } }", "Cannot query field 'nothing'"),
        ("{ inbox(wait: 1, wait: 2) { cursor } }", "only one argument named 'wait'"),
        ("{ inbox(wait: 9999999999) { cursor } }", "32-bit"),
        ('{ inbox(wait: "1") { cursor } }', "Int cannot represent"),
        ("query($x: Int) { inbox { cursor } }", "never used"),
        ("{ inbox(wait: $x) { cursor } }", "not defined"),
        ("{ ...F } fragment F on Query { ...F }", "Cannot spread fragment 'F' within itself"),
        ("{ ...F }", "Unknown fragment"),
        ("{ inbox { cursor } } fragment F on Query { rings { gap } }", "never used"),
        ("{ inbox { cursor } } type Query { a: Int }", "no definitions of types"),
        ("fragment F on Query { inbox { cursor } }", "expected one operation"),
        ("query A { inbox { cursor } } query B { rings { gap } }", "expected one operation"),
        ("{ inbox { cursor } rings { gap } }", "one root field"),
        ("{ a: inbox { cursor } b: inbox { cursor } }", "one root field"),
        ("{ ...F rings { gap } } fragment F on Query { inbox { cursor } }", "one root field"),
        ("{ inbox { cursor } @defer }", "Expected Name"),
        ("{ inbox { cursor @everything } }", "Unknown directive"),
        ("{ inbox { cursor\x07 } }", "Unexpected character: U+0007"),
        ("{ inbox { \ud800 } }", "U+D800"),
    ],
)  # fmt: skip
def test_what_is_no_such_document_is_refused_with_the_reason(text: str, why: str) -> None:
    assert why in refusal(text)


BOMB = "{ ...F0 } " + " ".join(f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(60))


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{" + " ".join(f"a{n}: __typename" for n in range(11)) + "}", "at most 10 aliases"),
        ("{ inbox {" + " ".join(["cursor"] * 200) + "} }", "at most 200 fields"),
        ("{ inbox {" + " ".join(["cursor @skip(if: false)"] * 11) + "} }", "at most 10 directives"),
        ("query" + " @a" * 11 + CURSOR, "at most 10 directives"),
        ("{ inbox" + " { requests" * 6 + "{ id" + " }" * 8, "at most 5 nested"),
        ("{ inbox" + " { requests" * 500 + "}" * 500, "nested too deeply"),
        ("{" * 900, "Expected Name"),
        ("[" * 900, "Unexpected"),
        ("{ inbox(cursor: " + "[" * 900 + ") { cursor } }", "nested too deeply"),
        ("{ inbox {" + " ".join(["cursor"] * 1000) + "} }", "more than 1000 tokens"),
        ("#\n" * 60 + CURSOR, "more than 50 comments"),
        (CURSOR + " " * 16_384, "at most 16384 characters"),
        (BOMB + " fragment F60 on Query { inbox { cursor } }", "at most 200 fields"),
        (
            "{ inbox { ...A } } " + " ".join(f"fragment {x} on Inbox {{ ring {{ ...R }} ...{y} ...{y} }}" for x, y in
            zip("ABCDEFGHIJ", "BCDEFGHIJK", strict=True)) + " fragment K on Inbox { cursor } fragment R on RingHead { hash }",
            "at most 200 fields",
        ),
        (CURSOR + " fragment F on Inbox {" + " ring { hash }" * 200 + "}", "fragment that is never used"),
        (CURSOR + " fragment F on Inbox { ...G } fragment G on Inbox { ...F }", "fragment that is never used"),
        (
            "{ inbox { ...F } } fragment F on Inbox {" + " ring { hash }" * 200 + "} fragment F on Inbox { cursor }",
            "names of their own",
        ),
    ],
    ids=[
        "aliases", "fields", "directives", "directives of the operation", "depth", "nested", "braces", "brackets", "lists",
        "tokens", "comments", "characters", "fragments of fragments", "fragments with fields", "unused fragment",
        "unused circle", "two of one name",
    ],
)  # fmt: skip
def test_what_costs_too_much_is_refused_before_it_is_validated(
    text: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validated(*_: object, **__: object) -> list[GraphQLError]:
        raise AssertionError("it was validated")

    monkeypatch.setattr("companion_push.relay.graphql.documents.validate", validated)
    assert why in refusal(text)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("variables", "fits"),
    [
        ({f"v{n}": n for n in range(256)}, True),
        ({f"v{n}": n for n in range(257)}, False),
        ({"v": [0] * 255}, True),
        ({"v": [0] * 256}, False),
        ({"v": [{"to": "a", "sealed": "b"}] * 85}, True),
        ({"v": [{"to": "a", "sealed": "b"}] * 86}, False),
        ({"v": [[[]] * 100, {"a": {"b": [1] * 60}}]}, True),
        ({"v": [[[]] * 200, {"a": {"b": [1] * 60}}]}, False),
        ({"v": "a" * 90_000}, True),
    ],
    ids=["names", "more names", "list", "longer list", "objects", "more objects", "nested", "more nested", "long text"],
)  # fmt: skip
def test_variables_have_so_many_values(variables: dict[str, Any], *, fits: bool) -> None:
    expected = pytest.raises(Problem, match="at most 256 values") if not fits else contextlib.nullcontext()
    with expected:
        Documents(SCHEMA).admit(Submitted(query=CURSOR, variables=variables))


@pytest.mark.threat("T12")
@given(text=st.text() | st.lists(st.sampled_from(
    ["{", "}", "(", ")", "...", "on", "F", "fragment", "query", "mutation", "inbox", "cursor", "Query", ":", "$", "@", "!", '"', "1", "[", "]"]
)).map(" ".join))  # fmt: skip
def test_any_text_is_admitted_or_refused(text: str) -> None:
    with contextlib.suppress(Problem, Refused):
        admit(text)


@pytest.mark.parametrize(
    "text",
    [
        "{ inbx { cursor } }",
        "{ inbox { curso } }",
        "{ inbox(curser: 1) { cursor } }",
        "{ ... on Quer { inbox { cursor } } }",
        "query($x: Strin) { inbox(cursor: $x) { cursor } }",
        'mutation { reportRequest(id: "a", event: CANCELED) { state } }',
        'mutation { submitRequest(id: "a", expiresIn: 1, envelopes: [{too: "a", sealed: ""}]) { state } }',
        "{ inbox { cursor @skp(if: true) } }",
    ],
    ids=["root", "field", "argument", "type", "variable", "enum", "input", "directive"],
)
def test_names_are_suggested_only_where_the_schema_may_be_asked_for(text: str) -> None:
    assert "Did you mean" not in refusal(text)
    if "@skp" not in text:
        assert "Did you mean" in refusal(text, introspection=True)


def test_the_schema_is_shown_only_where_it_may_be() -> None:
    query = get_introspection_query()
    assert "at most" in refusal(query)
    assert "introspection has been disabled" in refusal('{ __type(name: "Inbox") { name } }')
    assert admit(query, introspection=True) == "__schema"


def test_the_operations_name_is_that_of_the_document() -> None:
    documents = Documents(SCHEMA)
    assert documents.admit(Submitted(query=CLAIM, operation_name="Claim")).name == "Claim"
    for text, named in ((CLAIM, "Other"), (CURSOR, "Claim")):
        with pytest.raises(Problem, match="operationName"):
            documents.admit(Submitted(query=text, operation_name=named))


def test_a_document_is_parsed_once_while_it_is_among_the_last_ones() -> None:
    documents = Documents(SCHEMA)
    first = documents.admit(Submitted(query=CURSOR))
    assert documents.admit(Submitted(query=CURSOR)) is first
    for number in range(64):
        documents.admit(Submitted(query=f"query Q{number} {CURSOR}"))
    assert len(documents._cached) == 64
    assert documents.admit(Submitted(query=CURSOR)) is not first


# Documents of a file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "documents.json"
    path.write_text(json.dumps({sha256(text): text for text in (CURSOR, CLAIM)}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "named",
    [
        Submitted(document_id=sha256(CLAIM)),
        Submitted(document_id=f"sha256:{sha256(CLAIM)}", operation_name="Claim"),
        Submitted(extensions={"persistedQuery": {"version": 1, "sha256Hash": sha256(CLAIM)}}),
        Submitted(query=CLAIM),
    ],
    ids=["id", "id with its kind", "as Apollo's clients name it", "text"],
)
def test_a_document_of_the_file_is_named_by_its_hash(file: Path, named: Submitted) -> None:
    for only in (False, True):
        assert Documents(SCHEMA, file=file, only=only).admit(named).field == "claimRequest"


@pytest.mark.parametrize(
    "named",
    [
        Submitted(document_id=sha256("{ rings { gap } }")),
        Submitted(document_id=""),
        Submitted(extensions={"persistedQuery": {"sha256Hash": "0" * 64}}),
        Submitted(extensions={"persistedQuery": {"sha256Hash": 1}}),
        Submitted(extensions={"persistedQuery": "x"}),
        Submitted(),
    ],
    ids=["unknown", "empty", "Apollo", "number", "text", "nothing"],
)
def test_what_names_no_document_is_refused(file: Path, named: Submitted) -> None:
    for documents in (Documents(SCHEMA), Documents(SCHEMA, file=file)):
        with pytest.raises(Problem, match="expected a document"):
            documents.admit(named)


def test_only_the_documents_of_the_file_are_admitted_where_it_is_said(file: Path) -> None:
    other = "{ rings { gap } }"
    assert admit(other, file=file) == "rings"
    assert refusal(other, file=file, only=True) == "expected a document that the relay knows"
    assert refusal("{", file=file, only=True) == "expected a document that the relay knows"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "is not a JSON object"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps({"0" * 64: CURSOR}), "is not its document's SHA-256"),
        (json.dumps({sha256(CURSOR).upper(): CURSOR}), "is not its document's SHA-256"),
        (json.dumps({sha256(CURSOR): 1}), "is not its document's SHA-256"),
        (json.dumps({sha256("{ inbox }"): "{ inbox }"}), "must have a selection"),
        (json.dumps({sha256("{}{}"): "{}{}"}), "expected one operation"),
    ],
    ids=["list", "no JSON", "deep", "other hash", "upper case", "number", "invalid", "two operations"],
)
def test_a_file_that_cannot_be_used_is_a_usage_error(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "documents.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=why):
        Documents(SCHEMA, file=path)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Documents(SCHEMA, file=tmp_path / "none.json")
