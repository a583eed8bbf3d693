"""A separate service that accepts a device's access tokens: it knows who calls, and keeps no accounts.

    python examples/resource_server.py --issuer https://login.example --url http://localhost:8473

It verifies tokens with the relying party's public keys (`relying-party serve --token-key FILE`); with
`--secret FILE` it asks the relying party about each token (`relying-party serve --resource-secrets FILE`).
A device calls the service with `headless-passkey session fetch http://localhost:8473/me`.
"""

import argparse
import ssl
import sys
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from relying_party.errors import UsageError
from relying_party.http.http_server import http_logger
from relying_party.resource import ACCESS, Guard, Introspection, Keys, Verify


def make_service(
    url: str, issuer: str, *, secret: str | None = None, tls: ssl.SSLContext | None = None
) -> web.Application:
    """The service at `url`, an origin. secret: to ask the issuer; None: verify here. tls: for the issuer."""
    verify: Verify = Keys(jwks_uri=f"{issuer}/jwks.json")
    if secret is not None:
        verify = Introspection(endpoint=f"{issuer}/introspect", secret=secret)
    guard = Guard(resource=url, issuer=issuer, verify=verify, tls=tls)
    service = web.Application(middlewares=[guard.middleware], handler_args={"logger": http_logger})
    service.cleanup_ctx.append(guard.opened)
    service.router.add_get("/me", me)
    service.router.add_post("/echo", echo)
    return service


async def me(request: web.Request) -> web.Response:
    """Answer who calls. A service stores its own data under the user's handle."""
    access = request[ACCESS]
    return web.json_response({"user": access.subject, "device": access.key_thumbprint})


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type="application/octet-stream")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--issuer", required=True, metavar="URL", help="the relying party's base URL")
    parser.add_argument(
        "--url", default="http://localhost:8473", metavar="URL", help="where we are, on loopback"
    )
    parser.add_argument("--secret", type=Path, metavar="FILE", help="ask the relying party, with this secret")
    parser.add_argument(
        "--ca", type=Path, metavar="FILE", help="PEM file of roots to believe of the relying party"
    )
    args = parser.parse_args()
    try:
        secret = None if args.secret is None else args.secret.read_text().strip()
        tls = ssl.create_default_context(cafile=args.ca)
        service = make_service(args.url, args.issuer, secret=secret, tls=tls)
    except (OSError, UsageError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    web.run_app(service, host="127.0.0.1", port=urlsplit(args.url).port or 80, access_log=None)


if __name__ == "__main__":
    main()
