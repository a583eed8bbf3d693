"""GraphQL documents of device and companion, and how the tests send them."""

from collections.abc import Mapping
from typing import Any, Final

from tests.relay.household import PROBLEM, SEALED, Caller, Reply, fresh_id

SUBMIT: Final = """mutation Submit($id: ID!, $expiresIn: Int!, $envelopes: [EnvelopeInput!]!) {
  submitRequest(id: $id, expiresIn: $expiresIn, envelopes: $envelopes) {
    id state version expiresAt now claim { by word } ring { version hash } reason failures { by reason }
    notified { to channel outcome }
  }
}"""
STATUS: Final = """query Status($id: ID!, $version: Int, $wait: Int) {
  request(id: $id, version: $version, wait: $wait) {
    id state version expiresAt now claim { by word } ring { version hash } reason failures { by reason }
    notified { to channel outcome }
  }
}"""
REPORT: Final = """mutation Report($id: ID!, $event: DeviceEvent!, $reason: String) {
  reportRequest(id: $id, event: $event, reason: $reason) { state reason version }
}"""
INBOX: Final = """query Inbox($cursor: String, $wait: Int) {
  inbox(cursor: $cursor, wait: $wait) {
    cursor
    requests { device id state version sealed submittedAt expiresAt claimedBy stays }
    wordWanted muted
    ring { version hash }
  }
}"""
CLAIM: Final = """mutation Claim($device: ID!, $id: ID!, $word: Base64Url!) {
  claimRequest(device: $device, id: $id, word: $word) { state version expiresAt now }
}"""
OPEN: Final = """mutation Open($device: ID!, $id: ID!, $stays: Boolean!) {
  openRequest(device: $device, id: $id, stays: $stays) { state version }
}"""
RELEASE: Final = "mutation($device: ID!, $id: ID!) { releaseRequest(device: $device, id: $id) { state } }"
DECLINE: Final = """mutation($device: ID!, $id: ID!, $reason: String) {
  declineRequest(device: $device, id: $id, reason: $reason) { state }
}"""
FAIL: Final = """mutation($device: ID!, $id: ID!, $reason: String) {
  failRequest(device: $device, id: $id, reason: $reason) { state }
}"""
RINGS: Final = (
    "query Rings($after: Int!) { rings(after: $after) { version hash rings words { by word } gap } }"
)
CHANNELS: Final = """{ channels {
  channels { handle kind state registeredAt }
  offers { webPush { vapidKey } fcm { apps } apns { topics } }
} }"""
REGISTER: Final = """mutation Register($handle: ID!, $address: AddressInput!) {
  registerChannel(handle: $handle, address: $address)
}"""


async def send(caller: Caller, document: str, /, **variables: object) -> Reply:
    return await caller.post("/graphql", {"query": document, "variables": variables})


async def ask(caller: Caller, document: str, /, **variables: object) -> Any:
    """The value of the only root field."""
    reply = await send(caller, document, **variables)
    assert reply.status == 200, reply
    assert "errors" not in reply.body, reply.body
    (value,) = reply.body["data"].values()
    return value


def error(reply: Reply) -> Mapping[str, Any]:
    """The members of the problem in the reply's only error."""
    (one,) = reply.body["errors"]
    assert one["message"] == one["extensions"].get("detail", one["extensions"]["title"])
    return dict(one["extensions"])


def slug(reply: Reply) -> str:
    return str(error(reply)["type"]).removeprefix(PROBLEM)


async def submit(device: Caller, *to: Caller, name: str | None = None) -> str:
    """Submit a request; returns its id."""
    envelopes = [{"to": recipient.name, "sealed": SEALED} for recipient in to]
    status = await ask(device, SUBMIT, id=name or fresh_id(), expiresIn=300, envelopes=envelopes)
    return str(status["id"])
