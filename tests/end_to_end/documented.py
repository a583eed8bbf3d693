"""Runs Python code of a page as it stands: in the environment of a household, whose addresses stand in for the page's.

    python documented.py SETTINGS  < code

SETTINGS: a JSON file: radio, tunnel domain and URL, and the authority to believe. They become what the SDK's functions do
without an argument, as a machine's radio, the internet and the system's roots do elsewhere. The code may
use ``await`` outside functions, as pages do.
"""

import ast
import asyncio
import functools
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headless_passkey import ceremony
from headless_passkey.account import enrolment
from headless_passkey.account.delivery import RelayDelivery
from headless_passkey.device import Device
from headless_passkey.net.tls import tls_context
from headless_passkey.radio import choose
from headless_passkey.radio.source import AdvertSource
from headless_passkey.rp.conduit import Conduit


def stand_in(settings: dict[str, Any]) -> None:
    tls = tls_context(settings["ca"])
    tunnels = {settings["number"]: settings["tunnel"]}
    opened = functools.partial(Device.open, radio=settings["radio"], tunnels=tunnels, tls=tls)
    Device.open = opened  # type: ignore[method-assign]
    enrolment.join = functools.partial(enrolment.join, tls=tls)
    for connected in (RelayDelivery, Conduit):
        connected.connect = functools.partial(connected.connect, tls=tls)  # type: ignore[method-assign]
    ceremony.run_ceremony = functools.partial(ceremony.run_ceremony, tunnels=tunnels, tls=tls)
    choose.open_radio = functools.partial(_open_radio, choose.open_radio, settings["radio"])


def _open_radio(open_radio: Callable[[str], AdvertSource], spec: str, _asked: str) -> AdvertSource:
    return open_radio(spec)


def main() -> None:
    stand_in(json.loads(Path(sys.argv[1]).read_text()))
    code = compile(sys.stdin.read(), "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {"__name__": "__main__"}
    ran = eval(code, names)  # noqa: S307  our own page
    if inspect.iscoroutine(ran):
        asyncio.run(ran)


if __name__ == "__main__":
    main()
