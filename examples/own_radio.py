"""The core with a radio and a socket of one's own: no bleak, no aiohttp, no asyncio.

The radio is any program that writes adverts as lines of hexadecimal to our stdin; the socket is one class
over `ssl`. The hybrid transport itself is in `headless_passkey.hybrid` and
`headless_passkey.webauthn.options`, which take bytes and return bytes. `docs/how-to/own-radio.md` runs this
against `companion-push phone` through pipes.

    python examples/own_radio.py sign-in --tunnel 300=wss://localhost:8443 --ca ca.pem --url FILE < ADVERTS
"""

import argparse
import base64
import hashlib
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final, Self
from urllib.parse import urlsplit

from headless_passkey.errors import (
    CtapError,
    HeadlessPasskeyError,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
)
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.ctap2 import Status, status_name
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.hybrid.tunnel_url import MAX_MESSAGE_SIZE, SUBPROTOCOL, connect_url, tunnel_domain
from headless_passkey.webauthn.options import AuthenticationOptions, Credential, RegistrationOptions

ORIGIN: Final = "https://login.example"
TIMEOUT: Final = 60.0  # seconds for a message to come: somebody may be looking at a phone
OPTIONS: Final[dict[str, dict[str, Any]]] = {  # what a relying party would have sent
    "register": {
        "challenge": base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode(),
        "rp": {"id": "login.example", "name": "Example"},
        "user": {"id": "YWRh", "name": "ada", "displayName": "Ada"},
        "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
        "authenticatorSelection": {"residentKey": "required", "userVerification": "required"},
    },
    "sign-in": {
        "challenge": base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode(),
        "rpId": "login.example",
        "userVerification": "required",
    },
}


def ceremony(
    options: AuthenticationOptions | RegistrationOptions,
    *,
    adverts: Iterable[bytes],
    hand_over: BinaryIO,
    services: dict[int, str],
    tls: ssl.SSLContext,
) -> Credential:
    """One ceremony, from the FIDO URL to the relying party's JSON.

    adverts: service data, from any radio. hand_over: takes the FIDO URL to the phone. services: addresses of
    tunnel services by number; any other number stands for its own domain.
    """
    transaction = QrTransaction.create(hint=options.hint, time=int(time.time()))
    hand_over.write(transaction.url.encode().encode() + b"\n")
    hand_over.close()

    eid = hear(transaction, adverts)
    base = services.get(eid.tunnel_domain) or f"wss://{tunnel_domain(eid.tunnel_domain)}"
    with Tunnel(connect_url(base, eid.routing_id, transaction.url.tunnel_id), tls) as tunnel:
        pending = transaction.handshake(eid)
        tunnel.send(pending.message)
        channel = pending.finish(tunnel.receive())
        phone = channel.receive_post_handshake(tunnel.receive())

        tunnel.send(channel.send(options.ctap_request()))
        while not isinstance(event := channel.receive(tunnel.receive()), Ctap):
            pass  # an update, which may come at any time
        goodbye = channel.shutdown()
        if goodbye is not None:
            tunnel.send(goodbye)
    if event.code != Status.SUCCESS:
        raise CtapError(event.code, status_name(event.code))
    return options.accept(event.payload, phone.get_info)


def hear(transaction: QrTransaction, adverts: Iterable[bytes]) -> Eid:
    """The first advert that was sealed for our URL; adverts of other people's phones are skipped."""
    for service_data in adverts:
        eid = transaction.open_advert(service_data)
        if eid is not None:
            return eid
    raise TransportError("the radio has ended, and our phone was not heard")


def adverts_from(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Adverts from a radio, as lines of hexadecimal. Yours may be HCI, a microcontroller or a sniffer."""
    for line in lines:
        try:
            yield bytes.fromhex(line.decode("ascii"))
        except ValueError:
            continue  # noise on the line


class Tunnel:
    """A websocket (RFC 6455) as a tunnel needs it: binary messages, each whole."""

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        try:
            self._socket = tls.wrap_socket(
                socket.create_connection((host, port), timeout=TIMEOUT), server_hostname=host
            )
            self._stream = self._socket.makefile("rb")
            self._upgrade(parts.netloc, parts.path)
        except OSError as error:
            raise TransportError(f"no tunnel through {host}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, message: bytes) -> None:
        """Send one message."""
        self._frame(0x2, message)

    def receive(self) -> bytes:
        """The next message; pings that come before it are answered."""
        message = b""
        while True:
            first, second = self._exactly(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
            if second & 0x80 or first & 0x70 or len(message) + size > MAX_MESSAGE_SIZE:
                raise RemoteProtocolError(
                    "the tunnel service sent a frame that is masked, extended or too long",
                    reason=ProtocolReason.WEBSOCKET_VIOLATION,
                )
            payload = self._exactly(size)
            match first & 0x0F:
                case 0x0 | 0x2:
                    message += payload
                    if first & 0x80:
                        return message
                case 0x8:
                    raise TransportError("the tunnel was closed")
                case 0x9:
                    self._frame(0xA, payload)
                case 0xA:
                    pass
                case _:
                    raise RemoteProtocolError(
                        "only binary messages come through a tunnel",
                        reason=ProtocolReason.WEBSOCKET_VIOLATION,
                    )

    def _upgrade(self, netloc: str, path: str) -> None:
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
        )
        self._socket.sendall(request.encode("ascii"))
        status = self._line().split()
        headers = dict[str, str]()
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        expected = base64.b64encode(
            hashlib.sha1((key + guid).encode(), usedforsecurity=False).digest()
        ).decode()
        if status[1:2] != ["101"] or headers.get("sec-websocket-accept") != expected:
            raise TransportError("the tunnel service did not take us in")
        if headers.get("sec-websocket-protocol") != SUBPROTOCOL:
            raise SetupError(
                f"this is no tunnel service: it does not speak {SUBPROTOCOL}", reason=SetupReason.WRONG_SERVER
            )

    def _line(self) -> str:
        return self._stream.readline(8192).decode("latin-1").rstrip("\r\n")

    def _exactly(self, size: int) -> bytes:
        try:
            data = self._stream.read(size)
        except OSError as error:
            raise TransportError("the tunnel broke off") from error
        if len(data) != size:
            raise TransportError("the tunnel broke off")
        return data

    def _frame(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        head = bytes([0x80 | opcode])
        if size <= 125:
            head += bytes([0x80 | size])
        elif size <= 0xFFFF:
            head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
        else:
            head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
        mask = secrets.token_bytes(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        try:
            self._socket.sendall(head + mask + masked)
        except OSError as error:
            raise TransportError("the tunnel broke off") from error


def main(words: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=OPTIONS)
    parser.add_argument("--tunnel", metavar="N=wss://HOST:PORT", help="a tunnel service of your own")
    parser.add_argument("--ca", metavar="FILE", help="whom to believe, instead of the system's roots")
    parser.add_argument(
        "--url", metavar="FILE", required=True, help="where the FIDO URL goes: a pipe to the phone"
    )
    args = parser.parse_args(words)
    number, _, base = (args.tunnel or "0=").partition("=")
    kind = RegistrationOptions if args.what == "register" else AuthenticationOptions
    try:
        credential = ceremony(
            kind.parse(OPTIONS[args.what], origin=ORIGIN),
            adverts=adverts_from(sys.stdin.buffer),
            hand_over=Path(args.url).open("wb"),  # noqa: SIM115  it is closed once the URL is written
            services={int(number): base},
            tls=ssl.create_default_context(cafile=args.ca),
        )
    except HeadlessPasskeyError as error:
        print(f"{type(error).__name__}: {error.explain()}", file=sys.stderr)
        return int(error.exit_status)
    print(credential.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
