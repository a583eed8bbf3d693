"""A user and their own account: what is registered, what is signed in, and how to change it.

Each change needs a step-up made for it (`relying_party.core.operations`), except that a session may end itself. It
answers with the account as it is afterwards and with the signals that keep passkey providers in step with it; the
other sessions are told. A removal that is delayed (`relying_party.core.removals`) is called off without a step-up, in a
session of a passkey that is old enough. A browser is known by its cookie and, when it changes something, by its origin.
"""

import logging
from typing import Final

from aiohttp import web

from program_parts.base64url import from_base64url
from relying_party.core.callers import ClientKind
from relying_party.core.credentials import User
from relying_party.core.messages import parse_display_name, parse_label
from relying_party.core.operations import Operation, OperationKind
from relying_party.core.sessions import Session
from relying_party.errors import NotFound, NotSignedIn
from relying_party.http.answers import account_json, json_answer, set_cookie
from relying_party.http.request import STATE, SignedIn, State, account_holder, json_body, spend_step_up

REMOVAL_ID_SIZE: Final = 16

logger = logging.getLogger(__name__)


async def get_account(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state, reads=True)
    return await _account(state, found.user, found.session)


async def rename_user(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state)
    name = parse_display_name(await json_body(request))
    await spend_step_up(state, found.session, Operation(kind=OperationKind.RENAME_USER, name=name))
    await state.store.rename_user(name, by=found.session, now=state.clock())
    return await _account(state, found.user, found.session)


async def rename_credential(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state)
    label, named = parse_label(await json_body(request)), _named(request)
    operation = Operation(kind=OperationKind.RENAME_PASSKEY, target=named, name=label)
    await spend_step_up(state, found.session, operation)
    await state.store.rename_credential(named, label, by=found.session, now=state.clock())
    return await _account(state, found.user, found.session)


async def remove_credential(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state)
    named = _named(request)
    await spend_step_up(state, found.session, Operation(kind=OperationKind.REMOVE_PASSKEY, target=named))
    removal = await state.store.remove_credential(
        named, removal_id=state.random(REMOVAL_ID_SIZE), by=found.session, now=state.clock()
    )
    return await _account(state, found.user, found.session, status=200 if removal is None else 202)


async def remove_user(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state)
    await spend_step_up(state, found.session, Operation(kind=OperationKind.DELETE_ACCOUNT))
    removal = await state.store.remove_user(
        removal_id=state.random(REMOVAL_ID_SIZE), by=found.session, now=state.clock()
    )
    if removal is not None:
        return await _account(state, found.user, found.session, status=202)
    logger.info("an account was deleted")
    return _signed_out(state, found.session)


async def call_off(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state)
    await state.store.call_off(_named(request), by=found.session, now=state.clock())
    return await _account(state, found.user, found.session)


async def end_session(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state)
    named = _named(request)
    if named == found.session.session_id:
        return await end_own_session(state, found)
    await spend_step_up(state, found.session, Operation(kind=OperationKind.END_SESSION, target=named))
    if not await state.store.end_sessions(named, by=found.session, now=state.clock()):
        raise NotFound("no such session")
    return await _account(state, found.user, found.session)


async def end_other_sessions(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state)
    await spend_step_up(state, found.session, Operation(kind=OperationKind.END_OTHER_SESSIONS))
    await state.store.end_sessions(None, by=found.session, now=state.clock())
    return await _account(state, found.user, found.session)


async def end_own_session(state: State, found: SignedIn) -> web.Response:
    """End the session of a request, and take a browser's cookie back."""
    await state.store.end_session(found.user.handle, found.session.session_id)
    return _signed_out(state, found.session)


async def require_target(state: State, user: User, operation: Operation) -> None:
    """Check that what an operation is done to is the user's; `NotFound` when it is not."""
    if operation.target is None:
        return
    own = await state.store.registered(user.handle, now=state.clock())
    if operation.kind is OperationKind.END_SESSION:
        theirs = [] if own is None else [one.session_id for one in own.sessions]
    else:
        theirs = [] if own is None else [one.credential_id for one in own.credentials]
    if operation.target not in theirs:
        raise NotFound("no such passkey, or no such session")


ROUTES: Final = [
    web.get("/me", get_account),
    web.patch("/me", rename_user),
    web.delete("/me", remove_user),
    web.delete("/me/removals/{id}", call_off),
    web.patch("/me/credentials/{id}", rename_credential),
    web.delete("/me/credentials/{id}", remove_credential),
    web.delete("/me/sessions/{id}", end_session),
    web.delete("/me/sessions", end_other_sessions),
]


def _named(request: web.Request) -> bytes:
    data = from_base64url(request.match_info["id"])
    if not data:
        raise NotFound
    return data


def _signed_out(state: State, session: Session) -> web.Response:
    response = web.Response(status=204)
    if session.client_kind is ClientKind.WEB:
        set_cookie(state.config, response, "", lifetime=0)
    return response


async def _account(state: State, user: User, session: Session, *, status: int = 200) -> web.Response:
    registered = await state.store.registered(user.handle, now=state.clock())
    if registered is None:
        raise NotSignedIn("there is none, or it has ended")
    return json_answer(account_json(state.config, registered, session), status=status)
