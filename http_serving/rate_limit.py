"""What an answer that a limit refuses tells in its headers: which limit that is, and when to come again.

`RateLimit-Policy` and `RateLimit` are those of draft-ietf-httpapi-ratelimit-headers, structured fields (RFC 9651); the draft
may still rename them, and they are written here alone. `Retry-After` is RFC 9110's.
"""

import math
from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """What a policy counts, in the draft's words."""

    REQUESTS = "requests"
    BYTES = "content-bytes"
    AT_A_TIME = "concurrent-requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A limit, under the one name that headers, metrics and documentation have for it."""

    name: str  # a word of ours: a-z and hyphens
    quota: float
    seconds: float | None = None  # in which the quota may be used; None for what counts at one time
    unit: Unit = Unit.REQUESTS


def limit_headers(policy: Policy | None, retry_after: int) -> dict[str, str]:
    """The headers of an answer that `policy` refuses. retry_after: seconds. policy: None for what is no limit, such as a full disk."""
    headers = {"Retry-After": str(retry_after)}
    if policy is not None:
        unit = "" if policy.unit is Unit.REQUESTS else f';qu="{policy.unit}"'
        window = "" if policy.seconds is None else f";w={max(1, math.ceil(policy.seconds))}"
        headers["RateLimit-Policy"] = f'"{policy.name}";q={int(policy.quota)}{unit}{window}'
        headers["RateLimit"] = f'"{policy.name}";r=0;t={retry_after}'
    return headers
