"""The servers' HTTP layer: TLS settings, and problem documents and log lines for requests that are not HTTP.

aiohttp itself answers a request that it cannot parse, with plain text that repeats the request, and logs a traceback
that repeats it too, tunnel ID or proof included. `Runner` answers with a problem document (RFC 9457) instead. `http_logger` logs one
line for each, without a byte of the request, and in a flood a few lines a minute and the number of the rest; a service that mounts an application of this package gives it to its own::

    service = web.Application(handler_args={"logger": http_logger})
"""

import asyncio
import json
import logging
import shlex
import ssl
import traceback
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from yarl import URL

from companion_push.serving.addresses import Network, client_address
from companion_push.serving.log_limit import PERIOD, LogLimit
from headless_passkey.errors import SetupError, SetupReason
from headless_passkey.mends import setup_error

DRAIN_SECONDS: Final = 5.0  # for running requests at shutdown
IDLE_TIMEOUT: Final = 75.0  # seconds after which an idle connection is closed


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
        headers={hdrs.CACHE_CONTROL: "no-store"},
    )


class Runner(web.AppRunner):
    """Serves one application, and answers requests that aiohttp refuses before the application.

    Bodies come as they were sent: an application refuses a Content-Encoding, and nothing is unpacked for one
    that does not look.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        shutdown_timeout: float = DRAIN_SECONDS,
        idle_timeout: float = IDLE_TIMEOUT,
        trusted_proxies: Sequence[Network] = (),
        prefix: str = "",
        handler_cancellation: bool = False,
    ) -> None:
        """shutdown_timeout, idle_timeout: seconds. trusted_proxies: whose ``X-Forwarded-For`` is believed.

        prefix: of paths that a proxy may have left on or taken off; no slash at its end. handler_cancellation: whether
        who hangs up ends its handler.
        """
        super().__init__(app, shutdown_timeout=shutdown_timeout, handler_cancellation=handler_cancellation)
        self._idle_timeout, self._trusted_proxies, self._prefix = idle_timeout, trusted_proxies, prefix

    async def cleanup(self) -> None:
        await super().cleanup()
        _limit.end()

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._idle_timeout, self._trusted_proxies, self._prefix)


class _Server(web.Server):
    def __init__(
        self, of_app: web.Server, idle_timeout: float, trusted_proxies: Sequence[Network], prefix: str
    ) -> None:
        super().__init__(
            self._explained,
            request_factory=of_app.request_factory,
            handler_cancellation=of_app.handler_cancellation,
        )
        self._handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = of_app.request_handler
        self._idle_timeout, self._trusted_proxies, self._prefix = idle_timeout, trusted_proxies, prefix

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            logger=http_logger,
            access_log=None,  # type: ignore[arg-type]  # None is none: paths hold tunnel IDs
            keepalive_timeout=self._idle_timeout,
            auto_decompress=False,
        )

    async def _explained(self, request: web.BaseRequest) -> web.StreamResponse:
        """Let the application answer; a refusal by aiohttp, such as of Expect, becomes a problem document."""
        try:
            return await self._handle(self._before_proxies(request))
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return problem(error.status)

    def _before_proxies(self, request: web.BaseRequest) -> web.BaseRequest:
        """Undo what proxies changed: set the client's address, and remove the prefix of the path."""
        changes: dict[str, Any] = {}
        if self._trusted_proxies:
            told = request.headers.getall(hdrs.X_FORWARDED_FOR, [])
            changes["remote"] = client_address(request.remote or "", told, self._trusted_proxies)
        path = request.rel_url.raw_path
        own = path.removeprefix(self._prefix)
        if own != path and own.startswith("/") and not own.startswith("//"):
            query = request.rel_url.raw_query_string
            changes["rel_url"] = URL.build(path=own, query_string=query, encoded=True)
        return request.clone(**changes) if changes else request


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  it repeats the request
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):
            raise exc  # who has hung up is told nothing, and is no news
        self.log_exception("", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: there is no other one")
        response = problem(status)
        response.force_close()
        return response


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """A server's TLS settings. `SetupError` (bad-certificate) says which of the two files is wrong, and how.

    cert: the chain, its own certificate first; key: that one's private key, without a passphrase; both PEM.
    """
    for option, path in (("--cert", cert), ("--key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise _bad(path, f"{option}: cannot read {path}: {error.strerror}") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password=b"")  # no prompt for a passphrase
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _bad(cert, _why_not(cert, key, error)) from error
    return context


def _bad(path: Path, what: str) -> SetupError:
    return setup_error(what, SetupReason.BAD_CERTIFICATE, file=shlex.quote(str(path)))


def _why_not(cert: Path, key: Path, error: Exception) -> str:
    """Say which of certificate and key is wrong: OpenSSL has the same error for most cases."""
    try:
        own = x509.load_pem_x509_certificates(cert.read_bytes())[0].public_key()
    except ValueError:
        return f"--cert: {cert} holds no certificate in PEM form"
    except (OSError, UnsupportedAlgorithm):
        own = None
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except TypeError:
        return f"--key: the private key in {key} has a passphrase; expected one without"
    except ValueError:
        return f"--key: {key} holds no private key in PEM form"
    except (OSError, UnsupportedAlgorithm):
        private = None
    if own is not None and private is not None:
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        if own.public_bytes(*form) != private.public_key().public_bytes(*form):
            return f"--key: the private key in {key} is not that of the first certificate in {cert}"
    why = getattr(error, "reason", None) or type(error).__name__
    return f"--cert: OpenSSL does not take {cert} with {key} ({why})"


def _without_bytes(record: logging.LogRecord) -> bool:
    """Reduce aiohttp's log record to one line without the request."""
    kind, error, trace = record.exc_info or (None, None, None)
    record.exc_info = record.exc_text = None
    if kind is None or error is None:
        return True
    arguments: tuple[Any, ...]
    if issubclass(kind, HttpProcessingError | web.RequestPayloadError):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, arguments = "a request could not be read: %s", (kind.__name__,)
        allowed = _limit.allows("requests could not be read")
    else:  # type and place only: its message may hold anything
        place = traceback.extract_tb(trace)[-1:]
        where = f"{Path(place[0].filename).name}:{place[0].lineno}" if place else "an unknown place"
        record.msg, arguments = "unexpected %s at %s", (kind.__name__, where)
        allowed = _limit.allows("requests met something unexpected")
    record.args = arguments
    return allowed


def _left_out(kind: str, count: int) -> None:
    http_logger.warning("%d more %s within %d s", count, kind, PERIOD)


_limit: Final = LogLimit(tell=_left_out)


http_logger: Final = logging.getLogger(f"{__name__}.http")
http_logger.addFilter(_without_bytes)
