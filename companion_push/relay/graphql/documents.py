"""What callers may send to ``/graphql``: one JSON request with one document, within limits that are checked before it is validated.

A document is text of somebody who may be hostile. So its tokens are bounded before it is parsed, and what it selects is
measured with every fragment counted where it is spread, in time linear to its tokens, before any rule sees it.
"""

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    ValidationContext,
    ValidationRule,
    parse,
    specified_rules,
    validate,
)

from companion_push.relay.problems import Problem, invalid
from headless_passkey.errors import UsageError

MAX_TEXT: Final = 16_384  # characters of a document: envelopes are variables
MAX_TOKENS: Final = 1000
MAX_COMMENTS: Final = 50
MAX_DEPTH: Final = 5  # of nested selections; the schema has 3
MAX_FIELDS: Final = 200  # with fragments counted where they are spread
_SCHEMA_LIMITS: Final = (20, 1000)  # depth and fields where the schema may be asked for
MAX_ALIASES: Final = 10
MAX_DIRECTIVES: Final = 10
MAX_VALUES: Final = 256  # of variables, those inside lists and objects too: 16 envelopes are 49
_MAX_ERRORS: Final = 5  # of one document, that are told
_CACHED: Final = 64  # documents that were admitted
PARSED_AS: Final = 10  # calls: parsing, measuring and validating take up to 35 ms
_SHA256: Final = re.compile("[0-9a-f]{64}")


class Submitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A request of GraphQL over HTTP. `document_id` names a document that the relay knows."""

    query: str | None = None
    document_id: str | None = None
    operation_name: str | None = None
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return "Submitted()"  # it holds a secret

    def known_as(self) -> str | None:
        """The SHA-256 of a document that is not sent along, in hexadecimal: ``documentId``, or as Apollo's clients say it."""
        if self.document_id is not None:
            return self.document_id.removeprefix("sha256:")
        apollo = (self.extensions or {}).get("persistedQuery")
        named = apollo.get("sha256Hash") if isinstance(apollo, dict) else None
        return named if isinstance(named, str) else None


@dataclass(frozen=True, slots=True)
class Admitted:
    """A document with one operation, which is valid and within the limits."""

    text: str
    document: DocumentNode
    operation: OperationType
    name: str | None
    field: str  # the operation's only root field, or __typename


class Refused(Exception):  # noqa: N818  spelled as `Problem` is
    """A document is not admitted; `errors` say why."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


class Documents:
    """The documents that are admitted: any that is valid, or only those of a file."""

    def __init__(
        self,
        schema: GraphQLSchema,
        *,
        introspection: bool = False,
        file: Path | None = None,
        only: bool = False,
    ) -> None:
        """introspection: whether callers may ask for the schema. file: JSON, documents by their SHA-256. only: no others.

        `UsageError` for a file that does not hold that, or holds a document that is not admitted.
        """
        self._schema, self._introspection, self._only = schema, introspection, only
        hidden = () if introspection else (NoSchemaIntrospectionCustomRule,)
        self._rules = (*specified_rules, _OneNameRule, *hidden)
        self._cached: OrderedDict[str, Admitted] = OrderedDict()
        self._known = {} if file is None else self._read(file)

    def admit(self, submitted: Submitted) -> Admitted:
        """Find or parse the request's document, and check how many values come with it. Refuses with a `Problem`, or `Refused` for what is wrong with the document."""
        text, named = submitted.query, submitted.known_as()
        if text is None and named is None:
            raise invalid("query: expected a document")
        if _has_too_many(submitted.variables or {}):
            raise invalid(
                f"variables: expected at most {MAX_VALUES} values, with those inside lists and objects"
            )
        if text is None or self._only:
            key = named if text is None else _hash(text)
            admitted = self._known.get(key or "")
            if admitted is None:
                raise invalid("expected a document that the relay knows")
        else:
            admitted = self._parsed(text)
        if submitted.operation_name not in (None, admitted.name):
            raise invalid("operationName: expected the name of the document's operation")
        return admitted

    def calls(self, submitted: Submitted) -> int:
        """As how many calls a request counts: more than one where its document has to be parsed first."""
        parsed = submitted.query is None or self._only or submitted.query in self._cached
        return 1 if parsed else PARSED_AS

    def _parsed(self, text: str) -> Admitted:
        found = self._cached.get(text)
        if found is not None:
            self._cached.move_to_end(text)
            return found
        admitted = self._cached[text] = self._parse(text)
        if len(self._cached) > _CACHED:
            self._cached.popitem(last=False)
        return admitted

    def _parse(self, text: str) -> Admitted:
        if len(text) > MAX_TEXT:
            raise invalid(f"query: expected at most {MAX_TEXT} characters; what is long is a variable")
        try:
            document = parse(text, max_lexical_tokens=MAX_TOKENS, max_comments=MAX_COMMENTS)
        except GraphQLError as error:
            raise Refused([error]) from error
        deepest, most = _SCHEMA_LIMITS if self._introspection else (MAX_DEPTH, MAX_FIELDS)
        operation, field = _measured(document, deepest=deepest, most=most)
        errors = validate(
            self._schema,
            document,
            self._rules,
            max_errors=_MAX_ERRORS,
            hide_suggestions=not self._introspection,
        )
        if errors:
            raise Refused(errors)
        name = None if operation.name is None else operation.name.value
        return Admitted(text=text, document=document, operation=operation.operation, name=name, field=field)

    def _read(self, file: Path) -> dict[str, Admitted]:
        try:
            content = json.loads(file.read_bytes())
        except OSError as error:
            raise UsageError(f"graphql_documents: cannot read {file}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"graphql_documents: {file} is not JSON") from error
        if not isinstance(content, dict):
            raise UsageError(f"graphql_documents: {file} is not a JSON object of documents by their SHA-256")
        known = {}
        for key, text in content.items():
            if not isinstance(text, str) or not _SHA256.fullmatch(key) or _hash(text) != key:
                raise UsageError(f"graphql_documents: {key[:64]!r} in {file} is not its document's SHA-256")
            try:
                known[key] = self._parse(text)
            except Problem as problem:
                raise UsageError(f"graphql_documents: {key} in {file}: {problem}") from problem
            except Refused as refused:
                raise UsageError(
                    f"graphql_documents: {key} in {file}: {refused.errors[0].message}"
                ) from refused
        return known


@dataclass(frozen=True, slots=True)
class _Size:
    """What a selection set amounts to."""

    depth: int = 0
    fields: int = 0
    aliases: int = 0
    directives: int = 0
    roots: tuple[str, ...] = ()  # names of its own fields, at most two, without __typename


def _measured(document: DocumentNode, *, deepest: int, most: int) -> tuple[OperationDefinitionNode, str]:
    """Check the document's limits; returns its only operation and that one's only root field."""
    fragments: dict[str, FragmentDefinitionNode] = {}
    operations: list[OperationDefinitionNode] = []
    for definition in document.definitions:
        if isinstance(definition, FragmentDefinitionNode):
            if definition.name.value in fragments:
                raise invalid("query: expected fragments with names of their own")
            fragments[definition.name.value] = definition
        elif isinstance(definition, OperationDefinitionNode):
            operations.append(definition)
        else:
            raise invalid("query: expected an operation and fragments, and no definitions of types")
    if len(operations) != 1:
        raise invalid("query: expected one operation")
    (operation,) = operations
    meter = _Meter(fragments)
    size = meter.of(operation.selection_set)
    if not meter.has_all():  # the rules would look into the others too, whatever their size
        raise invalid("query: expected no fragment that is never used")
    limits = (
        ("nested selections", size.depth, deepest),
        ("fields, with those of fragments", size.fields, most),
        ("aliases", size.aliases, MAX_ALIASES),
        ("directives", size.directives + len(operation.directives or ()), MAX_DIRECTIVES),
    )
    for what, count, limit in limits:
        if count > limit:
            raise invalid(f"query: expected at most {limit} {what}")
    if len(size.roots) > 1:
        raise invalid("query: expected one root field, as each call has a proof of its own")
    return operation, size.roots[0] if size.roots else "__typename"


class _OneNameRule(ValidationRule):
    """A field of a type has one name in a document, its own or an alias: an answer holds nothing twice.

    The limits of what a member reads count what the operation answers.
    """

    def __init__(self, context: ValidationContext) -> None:
        super().__init__(context)
        self._names: dict[tuple[str, str], str] = {}  # by type and field

    def enter_field(self, node: FieldNode, *_: object) -> None:
        parent = self.context.get_parent_type()
        field = ("" if parent is None else parent.name, node.name.value)
        name = (node.alias or node.name).value
        if self._names.setdefault(field, name) != name:
            self.report_error(GraphQLError(f"Expected one name for the field '{field[1]}'.", node))


class _Meter:
    """Measures selection sets. Each fragment is measured once, and counted at each spread."""

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode]) -> None:
        self._fragments = fragments
        self._sizes: dict[str, _Size] = {}
        self._open: set[str] = set()

    def has_all(self) -> bool:
        """Whether every fragment was measured: is spread somewhere in what was."""
        return self._sizes.keys() == self._fragments.keys()

    def of(self, selections: SelectionSetNode | None) -> _Size:
        depth = fields = aliases = directives = 0
        roots: tuple[str, ...] = ()
        for node in () if selections is None else selections.selections:
            directives += len(node.directives or ())
            if isinstance(node, FieldNode):
                inner = self.of(node.selection_set)
                depth, fields = max(depth, 1 + inner.depth), fields + 1
                aliases += node.alias is not None
                if node.name.value != "__typename":
                    roots += (node.name.value,)
            else:
                if isinstance(node, FragmentSpreadNode):
                    inner = self._spread(node)
                else:
                    inner = self.of(node.selection_set) if isinstance(node, InlineFragmentNode) else _Size()
                depth, roots = max(depth, inner.depth), roots + inner.roots
            fields, aliases = fields + inner.fields, aliases + inner.aliases
            directives += inner.directives
        return _Size(depth, fields, aliases, directives, roots[:2])

    def _spread(self, node: FragmentSpreadNode) -> _Size:
        """The size of a fragment; one that is unknown or spreads itself is refused by the rules."""
        name = node.name.value
        if name not in self._sizes:
            if name in self._open or name not in self._fragments:
                return _Size()
            self._open.add(name)
            self._sizes[name] = self.of(self._fragments[name].selection_set)
            self._open.discard(name)
        return self._sizes[name]


def _has_too_many(variables: dict[str, Any]) -> bool:
    """Whether variables have more than `MAX_VALUES` values. They are counted no further than that."""
    left, unseen = MAX_VALUES, list[Any]([variables])
    while unseen:
        one = unseen.pop()
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        left -= len(inner)
        if left < 0:
            return True
        unseen.extend(inner)
    return False


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
