"""``POST /graphql``: one request is one call of the relay, with one proof, one operation and one root field.

Its errors are the problems of the HTTP contract, in ``extensions``. What is refused before the operation runs has the
problem's HTTP status; an operation that has run is answered with 200, and its error says the status it would have had.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiohttp import hdrs, web
from graphql import OperationType, build_schema
from strawberry.extensions import SchemaExtension

from companion_push.relay.app import (
    OPERATION,
    RelayEndpoints,
    json_response,
    problem_response,
    read_body,
)
from companion_push.relay.config import RelayConfig
from companion_push.relay.graphql.documents import Documents, Refused, Submitted
from companion_push.relay.graphql.errors import formatted, problem_of, told
from companion_push.relay.graphql.schema import Caller, make_schema
from companion_push.relay.graphql.subscriptions import Subscriptions
from companion_push.relay.inbox_stream import REFUSED
from companion_push.relay.messages import parse_body
from companion_push.relay.problems import Problem, Slug, invalid
from companion_push.relay.proofs import HEADER

PATH: Final = "/graphql"
_MEDIA_TYPE: Final = "application/graphql-response+json"

logger = logging.getLogger(__name__)


def add_graphql(app: web.Application, relay: RelayEndpoints, config: RelayConfig) -> None:
    """Add ``/graphql`` to the relay. `UsageError` for a file of documents that cannot be used."""
    shell = Shell(relay, config)
    app.router.add_post(PATH, shell.answer)
    app.router.add_get(PATH, shell.subscriptions.answer, allow_head=False)
    app.on_shutdown.append(shell.subscriptions.close)


class Shell:
    """The endpoint for queries and mutations, and beside it that for subscriptions."""

    def __init__(self, relay: RelayEndpoints, config: RelayConfig) -> None:
        self._relay = relay
        self._schema = make_schema([_Admitted])
        self._documents = Documents(
            build_schema(self._schema.as_str()),
            introspection=config.graphql_introspection,
            file=config.graphql_documents,
            only=config.graphql_documents_only,
        )
        self.subscriptions = Subscriptions(relay, self._schema, self._documents, path=PATH)

    async def answer(self, request: web.Request) -> web.Response:
        try:
            return await self._answer(request)
        except Problem as problem:
            return _refusal(request, problem, [told(problem)])
        except Refused as refused:
            errors = [formatted(error) for error in refused.errors]
            return _refusal(request, Problem(Slug.INVALID_REQUEST), errors)

    async def _answer(self, request: web.Request) -> web.Response:
        name = await self._relay.authenticate(request, request.headers.getall(HEADER, []), PATH)
        if request.content_type != "application/json":  # which no form in a browser can send (CSRF)
            raise web.HTTPUnsupportedMediaType
        submitted = parse_body(await read_body(request), Submitted)
        more = self._documents.calls(submitted) - 1
        if more:
            await self._relay.count_call(name, more)
        admitted = self._documents.admit(submitted)
        if admitted.operation is OperationType.SUBSCRIPTION:
            raise invalid("query: expected a query or a mutation; a subscription needs a WebSocket")
        request[OPERATION] = admitted.field
        result = await self._schema.execute(
            admitted.text,
            variable_values=submitted.variables,
            context_value=Caller(self._relay, request, name, admitted.document),
        )
        errors = result.errors or []
        if any(error.path is None for error in errors):  # of the variables: nothing has run
            raise Refused(errors)
        body: dict[str, Any] = {"data": result.data}
        if errors:
            body["errors"] = [formatted(error) for error in errors]
            problem = problem_of(errors[0])
            if problem is not None:
                request[REFUSED] = problem
        return _response(request, body, 200)


class _Admitted(SchemaExtension):
    """Executes the document that was admitted: it is neither parsed nor validated again."""

    def on_parse(self) -> Iterator[None]:
        self.execution_context.graphql_document = self.execution_context.context.document
        yield

    def on_validate(self) -> Iterator[None]:
        self.execution_context.validation_rules = ()
        yield


def _refusal(request: web.Request, problem: Problem, errors: list[dict[str, Any]]) -> web.Response:
    request[REFUSED] = problem
    response = _response(request, {"errors": errors}, problem.status)
    for name, value in problem_response(problem).headers.items():
        response.headers.setdefault(name, value)
    return response


def _response(request: web.Request, body: Mapping[str, Any], status: int) -> web.Response:
    """The answer; in plain JSON for callers that ask for nothing else (GraphQL over HTTP, Accept)."""
    accepted = ",".join(request.headers.getall(hdrs.ACCEPT, ["*/*"]))
    plain = "application/json" in accepted and _MEDIA_TYPE not in accepted
    return json_response(body, status, "application/json" if plain else _MEDIA_TYPE)
