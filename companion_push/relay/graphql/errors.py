"""Errors of GraphQL as callers see them: the problems of the HTTP contract, in ``extensions``."""

import logging
from http import HTTPStatus
from typing import Any

from graphql import GraphQLError

from companion_push.errors import StoreUnavailable
from companion_push.relay.app import place_of
from companion_push.relay.problems import Problem, Slug, invalid

logger = logging.getLogger(__name__)


def formatted(error: GraphQLError) -> dict[str, Any]:
    """An error as callers see it. What is a bug is logged by its place, and tells nothing."""
    problem = problem_of(error)
    if problem is None:
        logger.error("%s", place_of(error.original_error or error))
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        members = {"type": "about:blank", "title": status.phrase, "status": status.value}
        shown: dict[str, Any] = {"message": status.phrase, "extensions": members}
    else:
        shown = told(problem)
    where = error.formatted
    return shown | {name: where[name] for name in ("locations", "path") if name in where}


def problem_of(error: GraphQLError) -> Problem | None:
    """The problem that an error is; None for a bug."""
    cause = error.original_error
    if isinstance(cause, Problem):
        return cause
    if isinstance(cause, StoreUnavailable):
        return Problem(Slug.STORE_UNAVAILABLE, retry_after=2)
    if cause is None or isinstance(cause, GraphQLError):  # of the document or its variables
        return invalid(error.message.partition(" Did you mean ")[0])
    return None


def told(problem: Problem) -> dict[str, Any]:
    body = problem.body()
    return {"message": problem.detail or body["title"], "extensions": body}
