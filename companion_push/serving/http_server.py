"""The push programs' HTTP layer: `http_serving` with the problem documents and errors of this package."""

import asyncio
import json
import logging
import shlex
from http import HTTPStatus
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

import http_serving.runner
from companion_push.errors import cannot_listen
from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.mends import setup_error
from http_serving.errors import Errors

# for a service that mounts an application of this package
http_logger: Final = http_serving.runner.http_logger

logger = logging.getLogger(__name__)


def problem(status: int, detail: str | None = None) -> web.Response:
    """A problem document without a type of its own: RFC 9457 §4.2.1 calls it ``about:blank``.

    detail: for people; says what was expected, never what came.
    """
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    if detail is not None:
        body["detail"] = detail
    return web.Response(
        body=json.dumps(body).encode(),
        status=status,
        content_type="application/problem+json",
        headers={hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff"},
    )


class Runner(http_serving.runner.Runner):
    """Serves one application of the push programs."""

    problem = staticmethod(problem)

    async def setup(self) -> None:
        logger.info("event loop: %s", type(asyncio.get_running_loop()).__module__.partition(".")[0])
        await super().setup()


def _bad_certificate(path: Path, what: str) -> SetupError:
    return setup_error(what, SetupReason.BAD_CERTIFICATE, file=shlex.quote(str(path)))


ERRORS: Final = Errors(usage=UsageError, certificate=_bad_certificate, address=cannot_listen)
