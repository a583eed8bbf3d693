"""A device that signs in with a passkey of a browser's virtual authenticator, as a phone would give it."""

import base64
from time import time
from types import TracebackType
from typing import Any, Self

from aiohttp import ClientSession, TCPConnector
from certificates import Certificate
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from tests.rp.authenticator_double import JSON, DeviceKey, ES256Key, Faults, Passkey, get


class BrowserDevice:
    """An async context manager: its connections end with it."""

    def __init__(self, url: str, certificate: Certificate) -> None:
        self._url, self._key, self._token = url, DeviceKey(), ""
        self._nonce: str | None = None
        self._http = ClientSession(connector=TCPConnector(ssl=certificate.client_context()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def sign_in(self, credential: dict[str, Any], label: str) -> None:
        """credential: as the browser tells it, with its private key."""
        private = load_der_private_key(base64.b64decode(credential["privateKey"]), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        passkey = Passkey(
            rp_id=credential["rpId"],
            user_handle=base64.b64decode(credential["userHandle"]),
            key=ES256Key(private),
            credential_id=base64.b64decode(credential["credentialId"]),
        )
        status, begun = await self._post("/webauthn/authentication/options", {"client": {"label": label}})
        assert status == 200, begun
        response = get(passkey, begun["publicKey"], self._url, Faults(counter=credential["signCount"] + 1))
        body = {"ceremony": begun["ceremony"], "response": response}
        status, session = await self._post("/webauthn/authentication/result", body)
        assert status == 200, session
        self._token = session["token"]

    async def is_signed_in(self) -> bool:
        status, _ = await self._send("GET", "/session", None, self._token)
        return status == 200

    async def _post(self, path: str, body: JSON) -> tuple[int, JSON]:
        return await self._send("POST", path, body)

    async def _send(
        self, method: str, path: str, body: JSON | None, token: str | None = None
    ) -> tuple[int, JSON]:
        url, head = self._url + path, {} if token is None else {"Authorization": f"DPoP {token}"}
        while True:
            proof = self._key.proof(method, url, time(), token, nonce=self._nonce)
            async with self._http.request(method, url, json=body, headers={"DPoP": proof, **head}) as answer:
                said, known = dict(await answer.json(content_type=None)), self._nonce
                self._nonce = answer.headers.get("DPoP-Nonce", known)
                if not str(said.get("type")).endswith(":use-dpop-nonce") or self._nonce == known:
                    return answer.status, said
