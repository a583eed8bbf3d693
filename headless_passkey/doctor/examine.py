"""The whole examination: all checks, concurrently where they are independent.

::

    for finding in await examine(state=Path("/var/lib/frame"), tunnels={}):
        if finding.status is Status.PROBLEM:
            print(finding.check, finding.reason, finding.mend)
"""

import asyncio
import logging
import ssl
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from headless_passkey.doctor.account import examine_account, examine_users
from headless_passkey.doctor.bluetooth import LISTEN, examine_bluetooth
from headless_passkey.doctor.finding import Check, Finding, Status
from headless_passkey.doctor.servers import examine_relying_party, examine_tunnel_services
from headless_passkey.errors import TransportError, TransportReason, UsageError
from headless_passkey.net.base_url import BaseUrl

LIMIT: Final = 45.0  # seconds for each part: more than the sum of the part's own limits

logger = logging.getLogger(__name__)


async def examine(
    *,
    state: Path,
    radio: str = "bleak",
    passive: bool = False,
    tls: ssl.SSLContext | None = None,
    tunnels: Mapping[int, str] | None = None,
    rp: BaseUrl | None = None,
    listen: float = LISTEN,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Run all checks for a sign-in with these settings; returns at least one finding for each check.

    state: the device's directory. radio, passive: as for `headless_passkey.radio.choose.open_radio`. tls: trusted
    roots, None for the system's. tunnels: base URLs of tunnel services by domain number. rp: a
    relying party. listen: seconds to scan. clock: this machine's, in Unix seconds. It takes as long as the
    slowest check, which is some seconds, and at most `LIMIT`. `UsageError` for settings that are not usable.
    """
    parts = [
        (Check.SCAN, examine_bluetooth(radio, passive=passive, listen=listen)),
        (Check.RELAY, examine_account(state, tls, clock=clock)),
        (Check.USERS, _examine_users(state)),
        (Check.TUNNEL_SERVICE, examine_tunnel_services(tunnels or {}, tls)),
        (Check.RELYING_PARTY, _examine_relying_party(rp, tls)),
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_guarded(check, part)) for check, part in parts]
    findings: list[Finding] = []
    for task in tasks:
        result = task.result()
        if isinstance(result, UsageError):
            raise result
        findings += result
    return findings


async def _examine_users(state: Path) -> list[Finding]:
    return examine_users(state)


async def _examine_relying_party(rp: BaseUrl | None, tls: ssl.SSLContext | None) -> list[Finding]:
    if rp is None:
        return [Finding.not_checked(Check.RELYING_PARTY, "none was named (--rp)")]
    return await examine_relying_party(rp, tls)


async def _guarded(check: Check, part: Coroutine[Any, Any, list[Finding]]) -> list[Finding] | UsageError:
    """Run a part; its failure becomes a finding, so that the other parts' findings are not lost.

    A `UsageError` is returned and not raised: the task group would wrap it in an exception group.
    """
    try:
        async with asyncio.timeout(LIMIT):
            return await part
    except UsageError as error:
        return error
    except TimeoutError:
        slow = TransportError(f"no answer within {LIMIT:g} s", reason=TransportReason.UNREACHABLE)
        return [Finding.of(check, slow)]
    except Exception as error:  # noqa: BLE001  a bug of ours; as everywhere, its message may hold anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}; please report it"
        logger.debug("%s", message)
        return [Finding(check=check, status=Status.PROBLEM, message=message)]
