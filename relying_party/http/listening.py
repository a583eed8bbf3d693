"""Listening and shutdown of the relying party: `http_serving.listening` with what it answers and raises, and the signals."""

import asyncio
import functools
import signal
from typing import Final

import http_serving.listening
from relying_party.http.http_server import ERRORS, Runner

listening: Final = functools.partial(http_serving.listening.listening, errors=ERRORS)
inherited: Final = functools.partial(http_serving.listening.inherited, errors=ERRORS)
serving: Final = functools.partial(http_serving.listening.serving, Runner)


def until_terminated() -> "asyncio.Future[None]":
    """Done when the process is asked to end (SIGTERM, SIGINT, SIGHUP): a server's clean stop, status 0.

    It listens from the call on. Whoever started the process may ignore SIGHUP, as nohup does.
    """
    loop = asyncio.get_running_loop()
    asked = loop.create_future()

    def ask() -> None:
        if not asked.done():
            asked.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, ask)
    return asked
