"""A push address as its file has it: what a browser calls a PushSubscription, or the members that the relay takes.

{"endpoint": "https://…", "expirationTime": null, "keys": {"p256dh": "…", "auth": "…"}}
{"kind": "fcm", "app": "…", "token": "…"}
{"kind": "apns", "topic": "…", "token": "…", "sandbox": true}
"""

from collections.abc import Mapping
from typing import Final

from companion_push.push.channel import Kind
from headless_passkey.errors import UsageError
from headless_passkey.text.members import Members
from program_parts.json_text import decode_json

MAX_ADDRESS: Final = 8192  # bytes of such a file
_LONGEST: Final = 1024  # characters of a member


def parse_address(data: bytes) -> Mapping[str, str | bool]:
    """Parse to the members that the relay takes. `UsageError`, which repeats nothing of it: addresses are secrets."""
    if len(data) > MAX_ADDRESS:
        raise UsageError(f"a push address has at most {MAX_ADDRESS} bytes")
    try:
        value = decode_json(data)
    except ValueError as error:
        raise UsageError("expected a push address as JSON, such as a browser's PushSubscription") from error
    members = Members(value, "the push address", error=UsageError)
    try:
        kind = Kind(members.optional_text("kind") or Kind.WEB_PUSH)
    except ValueError as error:
        raise UsageError(f"the push address: kind: expected {', '.join(Kind)}") from error
    match kind:
        case Kind.WEB_PUSH:
            keys = members.optional_object("keys") or members
            return {
                "kind": kind,
                "endpoint": members.text("endpoint", _LONGEST),
                "p256dh": keys.text("p256dh", _LONGEST),
                "auth": keys.text("auth", _LONGEST),
            }
        case Kind.FCM:
            return {
                "kind": kind,
                "app": members.text("app", _LONGEST),
                "token": members.text("token", _LONGEST),
            }
        case Kind.APNS:
            apns = {"topic": members.text("topic", _LONGEST), "token": members.text("token", _LONGEST)}
            sandbox = members.boolean("sandbox") if "sandbox" in value else False
            return {"kind": kind, "sandbox": sandbox, **apns}
