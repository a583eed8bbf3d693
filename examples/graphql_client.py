"""A device and a companion that speak GraphQL with their relay, for the demo and the tests.

    python examples/graphql_client.py companion-push companion run --state …
    python examples/graphql_client.py headless-passkey sign-in --rp …

They are the real programs with another transport below their clients of the relay: each call of the HTTP contract that a
sign-in needs is a GraphQL document here, and the inbox is a subscription. What the schema does not have (founding an account,
invitations) and calls to relying parties go their usual way. A program that has a `Device` of its own gives it the client::

    relay = RelayClient(GraphQLHttp(session, joined.relay_url, joined.key))
    await device.sign_in(rp, delivery=RelayDelivery(relay, state))
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from unittest.mock import patch

import aiohttp

import headless_passkey.account.delivery
import headless_passkey.account.relay
import headless_passkey.command.ceremony
import headless_passkey.rp_ceremony
from companion_push.cli import main as companion_push
from headless_passkey.command.cli import main as headless_passkey_main
from headless_passkey.errors import ProtocolReason, RemoteProtocolError, TransportError, TransportReason
from headless_passkey.net.proof import NONCE_HEADER, PROOF_HEADER, make_proof
from headless_passkey.net.proven_http import PATIENCE, TRANSIENT, ProblemAnswer, ProvenHttp
from headless_passkey.text.members import Members, answer_members

STATUS: Final = (
    "id state version expiresAt now claim { by word } ring { version hash } reason failures { by reason }"
    " notified { to channel outcome }"
)
INBOX: Final = (
    "cursor requests { device id state version sealed submittedAt expiresAt claimedBy stays }"
    " wordWanted muted ring { version hash }"
)
CHANGE: Final = "state version expiresAt now"
OF: Final = "$device: ID!, $id: ID!"

# by method and path of the HTTP contract; groups of the path, the query and the body are the variables
DOCUMENTS: Final[Mapping[tuple[str, str], str]] = {
    ("GET", "/v1/ring"): "query Rings($after: Int!) { rings(after: $after) { version hash rings words { by word } gap } }",
    ("POST", "/v1/ring"): "mutation($ring: Base64Url!) { appendRing(ring: $ring) { version hash } }",
    ("POST", "/v1/ring/links"): "mutation($rings: [Base64Url!]!) { appendRings(rings: $rings) { version hash } }",
    ("PUT", "/v1/word"): "mutation($word: Base64Url!) { giveWord(word: $word) }",
    ("POST", "/v1/words/call"): "mutation { callForWords }",
    ("PUT", "/v1/requests/(?P<id>[^/]+)"):
        "mutation Submit($id: ID!, $expiresIn: Int!, $envelopes: [EnvelopeInput!]!)"
        f" {{ submitRequest(id: $id, expiresIn: $expiresIn, envelopes: $envelopes) {{ {STATUS} }} }}",
    ("GET", "/v1/requests/(?P<id>[^/]+)"):
        f"query Status($id: ID!, $version: Int, $wait: Int) {{ request(id: $id, version: $version, wait: $wait) {{ {STATUS} }} }}",
    ("POST", "/v1/requests/(?P<id>[^/]+)/events"):
        "mutation Report($id: ID!, $event: DeviceEvent!, $reason: String)"
        f" {{ reportRequest(id: $id, event: $event, reason: $reason) {{ {STATUS} }} }}",
    ("GET", "/v1/inbox"): f"query Inbox($cursor: String) {{ inbox(cursor: $cursor) {{ {INBOX} }} }}",
}  # fmt: skip
EVENTS: Final[Mapping[str, str]] = {
    "claimed": f"mutation({OF}, $word: Base64Url!) {{ claimRequest(device: $device, id: $id, word: $word) {{ {CHANGE} }} }}",
    "opened": f"mutation({OF}, $stays: Boolean!) {{ openRequest(device: $device, id: $id, stays: $stays) {{ {CHANGE} }} }}",
    "released": f"mutation({OF}) {{ releaseRequest(device: $device, id: $id) {{ {CHANGE} }} }}",
    "declined": f"mutation({OF}, $reason: String) {{ declineRequest(device: $device, id: $id, reason: $reason) {{ {CHANGE} }} }}",
    "failed": f"mutation({OF}, $reason: String) {{ failRequest(device: $device, id: $id, reason: $reason) {{ {CHANGE} }} }}",
}  # fmt: skip
FOLLOW: Final = f"subscription Follow($cursor: String) {{ inbox(cursor: $cursor) {{ {INBOX} }} }}"


class GraphQLHttp(ProvenHttp):
    """A client of a relay whose calls are GraphQL."""

    _nonce: str | None = None  # for connections; requests have theirs from ProvenHttp
    _newest: Mapping[str, Any] | None = None  # of the inbox
    _inbox: "asyncio.Queue[dict[str, Any]] | None" = None
    _following: "asyncio.Task[None] | None" = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | int] | None = None,
        wait: int = 0,
        patience: float = PATIENCE,
        access_token: str | None = None,
        meets_nonce: bool = True,
        any_clock: bool = False,
    ) -> Members:
        variables = {**(query or {}), **(body or {})}
        document = _document(method, path, variables)
        if document is None:
            return await super().call(
                method, path, body=body, query=query, wait=wait, patience=patience, access_token=access_token,
                meets_nonce=meets_nonce, any_clock=any_clock,
            )  # fmt: skip
        if (method, path) == ("GET", "/v1/inbox") and wait:
            return await self._next(variables.get("cursor"), wait)
        if wait:
            variables["wait"] = wait
        sent = {"query": document, "variables": {_camel(name): value for name, value in variables.items()}}
        # its time-out is longer by the time that the relay may hold the answer
        answer = await super().call(
            "POST", "/graphql", body=sent, wait=wait, patience=patience, any_clock=any_clock
        )
        return self._value(answer._value)  # noqa: SLF001  its members have other names than those asked for

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, accept: str, query: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Find no stream of events at this address: a companion then polls, and a subscription answers it here."""
        del path, query
        async with super().stream("/graphql", accept=accept, query={}) as answer:
            yield answer

    def _value(self, answer: Mapping[str, Any]) -> Members:
        """The root field's value as an answer of the HTTP contract, or the error that is its problem there."""
        for error in answer.get("errors") or ():
            members = answer_members(error["extensions"], self._host)
            slug, status = members.text("type").rpartition(":")[2], members.integer("status")
            if status in TRANSIENT:
                raise TransportError(f"not now ({slug})", reason=TransportReason.SERVER_FAILED)
            raise self._typed(ProblemAnswer(f"refused ({slug})", status=status, slug=slug, members=members))
        (value,) = answer["data"].values()
        return answer_members(_snake(value) if isinstance(value, dict) else {}, self._host)

    # The inbox as a subscription

    async def _next(self, cursor: object, wait: int) -> Members:
        """The inbox as soon as it differs from that of `cursor`; the one of before after `wait` seconds."""
        if self._newest is not None and self._newest["inbox"]["cursor"] != cursor:
            return self._value({"data": self._newest})
        if self._following is None or self._following.done():
            self._inbox = asyncio.Queue()
            self._following = asyncio.create_task(self._follow(cursor, self._inbox))
        assert self._inbox is not None  # noqa: S101  made with the task
        coming = asyncio.ensure_future(self._inbox.get())
        try:
            await asyncio.wait({coming, self._following}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                self._newest = coming.result()
            elif self._following.done() and (error := self._following.exception()) is not None:
                raise error
        finally:
            coming.cancel()
        if self._newest is None:
            return await self.call("GET", "/v1/inbox")
        return self._value({"data": self._newest})

    async def _follow(self, cursor: object, inbox: "asyncio.Queue[dict[str, Any]]") -> None:
        """Pass on what one connection brings, until the relay ends it."""
        async with await self._connected() as socket:
            await socket.send_json({"type": "connection_init"})
            async for received in socket:
                message = json.loads(received.data)
                match message["type"]:
                    case "connection_ack":
                        payload = {"query": FOLLOW, "variables": {"cursor": cursor}}
                        await socket.send_json({"type": "subscribe", "id": "inbox", "payload": payload})
                    case "ping":
                        await socket.send_json({"type": "pong"})
                    case "next":
                        inbox.put_nowait(message["payload"]["data"])
                    case "error":
                        self._value({"errors": message["payload"]})
                    case _:
                        return

    async def _connected(self) -> aiohttp.ClientWebSocketResponse:
        """A connection with a proof in its upgrade request; another one where the proof lacks the newest nonce."""
        url = f"{self._base_url}/graphql"
        for _ in range(3):
            proof = make_proof(self._key, method="GET", url=url, now=self._clock(), nonce=self._nonce)
            try:
                return await self._session.ws_connect(
                    url, protocols=["graphql-transport-ws"], headers={PROOF_HEADER: proof}
                )
            except aiohttp.WSServerHandshakeError as refused:
                self._nonce = refused.headers.get(NONCE_HEADER) if refused.headers else None
            except aiohttp.ClientError as error:
                raise TransportError("the relay cannot be reached") from error
        raise RemoteProtocolError("the relay takes no proof", reason=ProtocolReason.REFUSED)


def _document(method: str, path: str, variables: dict[str, Any]) -> str | None:
    """The document for a call, which takes its part of the variables from the path; None where there is none."""
    event = re.fullmatch("/v1/inbox/(?P<device>[^/]+)/(?P<id>[^/]+)/events", path)
    if event is not None:
        variables.update(event.groupdict())
        return EVENTS[variables.pop("event")]
    for (known, pattern), document in DOCUMENTS.items():
        found = re.fullmatch(pattern, path)
        if known == method and found is not None:
            variables.update(found.groupdict())
            if "event" in variables:
                variables["event"] = str(variables["event"]).upper()
            return document
    return None


def _camel(name: str) -> str:
    first, *more = name.split("_")
    return first + "".join(map(str.title, more))


def _snake(value: Any) -> Any:
    """A value with the names and states of the HTTP contract."""
    if isinstance(value, list):
        return [_snake(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {re.sub("[A-Z]", lambda c: f"_{c[0].lower()}", name): _snake(one) for name, one in value.items()}
    return found | ({"state": found["state"].lower()} if "state" in found else {})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="WORD", help="a program, its command and options"
    )
    program, *words = parser.parse_args().words
    with contextlib.ExitStack() as changed:
        for module in (
            headless_passkey.rp_ceremony,
            headless_passkey.account.relay,
            headless_passkey.account.delivery,
            headless_passkey.command.ceremony,
        ):
            changed.enter_context(patch.object(module, "ProvenHttp", GraphQLHttp))
        return companion_push(words) if program.endswith("companion-push") else headless_passkey_main(words)


if __name__ == "__main__":
    sys.exit(main())
