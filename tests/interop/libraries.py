"""Four relying parties, asked the same: ours, python-fido2's bare server, py_webauthn and @simplewebauthn/server.

Each gets the challenge, the RP ID, the origins and the credential it needs, and is told to require user
presence and verification and to take the algorithms we offer. Nothing else is done for a library: what its
verification has no place for is left to its caller, and so accepted.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import webauthn
from fido2 import cbor
from fido2.cose import CoseKey
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestedCredentialData,
    PublicKeyCredentialParameters,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
    UserVerificationRequirement,
)
from fido2.webauthn import PublicKeyCredentialDescriptor as FidoDescriptor
from fido2.webauthn import ResidentKeyRequirement as FidoResidentKey
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
)
from webauthn.helpers.structs import UserVerificationRequirement as PyUserVerification

from tests.rp.authenticator_double import JSON, b64, unb64

ALGORITHMS: Final = (-7, -8, -257)
FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a verifier is told about a ceremony."""

    challenge: str  # base64url
    rp_id: str
    origins: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a verifier remembers of a registration."""

    credential_id: bytes
    cose_key: bytes
    counter: int = 0


class Library(Protocol):
    """Somebody else's relying party; its answers are None, or why it refused."""

    name: str

    async def registration_options(self, challenge: str, *, rp_id: str, user: JSON) -> JSON: ...

    async def authentication_options(self, challenge: str, *, rp_id: str, allowed: Sequence[str]) -> JSON: ...

    async def verify_registration(self, response: JSON, expected: Expected) -> str | None: ...

    async def verify_authentication(self, response: JSON, expected: Expected, known: Known) -> str | None: ...


class PyWebauthn:
    name = "py_webauthn"

    async def registration_options(self, challenge: str, *, rp_id: str, user: JSON) -> JSON:
        options = webauthn.generate_registration_options(
            rp_id=rp_id,
            rp_name="Example",
            user_name=user["name"],
            user_display_name=user["displayName"],
            user_id=unb64(user["id"]),
            challenge=unb64(challenge),
            supported_pub_key_algs=[COSEAlgorithmIdentifier(one) for one in ALGORITHMS],
            authenticator_selection=AuthenticatorSelectionCriteria(
                resident_key=ResidentKeyRequirement.REQUIRED, user_verification=PyUserVerification.REQUIRED
            ),
        )
        return dict(json.loads(webauthn.options_to_json(options)))

    async def authentication_options(self, challenge: str, *, rp_id: str, allowed: Sequence[str]) -> JSON:
        options = webauthn.generate_authentication_options(
            rp_id=rp_id,
            challenge=unb64(challenge),
            user_verification=PyUserVerification.REQUIRED,
            allow_credentials=[PublicKeyCredentialDescriptor(id=unb64(one)) for one in allowed],
        )
        return dict(json.loads(webauthn.options_to_json(options)))

    async def verify_registration(self, response: JSON, expected: Expected) -> str | None:
        try:
            webauthn.verify_registration_response(
                credential=response,
                expected_challenge=unb64(expected.challenge),
                expected_rp_id=expected.rp_id,
                expected_origin=list(expected.origins),
                require_user_verification=True,
                supported_pub_key_algs=[COSEAlgorithmIdentifier(one) for one in ALGORITHMS],
            )
        except WebAuthnException as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  not all it cannot read is told in its own words
            return f"{type(error).__name__}: {error}"
        return None

    async def verify_authentication(self, response: JSON, expected: Expected, known: Known) -> str | None:
        try:
            webauthn.verify_authentication_response(
                credential=response,
                expected_challenge=unb64(expected.challenge),
                expected_rp_id=expected.rp_id,
                expected_origin=list(expected.origins),
                credential_public_key=known.cose_key,
                credential_current_sign_count=known.counter,
                require_user_verification=True,
            )
        except WebAuthnException as error:
            return str(error)
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error}"
        return None


class PythonFido2:
    """The library ours is made with, as it verifies by itself."""

    name = "python-fido2"

    async def registration_options(self, challenge: str, *, rp_id: str, user: JSON) -> JSON:
        options, _ = self._server(rp_id).register_begin(
            PublicKeyCredentialUserEntity(
                id=unb64(user["id"]), name=user["name"], display_name=user["displayName"]
            ),
            resident_key_requirement=FidoResidentKey.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
            challenge=unb64(challenge),
        )
        return dict(dict(options)["publicKey"])

    async def authentication_options(self, challenge: str, *, rp_id: str, allowed: Sequence[str]) -> JSON:
        options, _ = self._server(rp_id).authenticate_begin(
            [FidoDescriptor(type=PublicKeyCredentialType.PUBLIC_KEY, id=unb64(one)) for one in allowed]
            or None,
            user_verification=UserVerificationRequirement.REQUIRED,
            challenge=unb64(challenge),
        )
        return dict(dict(options)["publicKey"])

    async def verify_registration(self, response: JSON, expected: Expected) -> str | None:
        try:
            self._server(expected.rp_id).register_complete(self._state(expected), response)
        except Exception as error:  # noqa: BLE001  on malformed bytes it raises whatever broke
            return f"{type(error).__name__}: {error}"
        return None

    async def verify_authentication(self, response: JSON, expected: Expected, known: Known) -> str | None:
        key = CoseKey.parse(cast("Mapping[int, Any]", cbor.decode(known.cose_key)))
        credential = AttestedCredentialData.create(bytes(16), known.credential_id, key)
        try:
            self._server(expected.rp_id).authenticate_complete(self._state(expected), [credential], response)
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error}"
        return None

    def _server(self, rp_id: str) -> Fido2Server:
        server = Fido2Server(PublicKeyCredentialRpEntity(id=rp_id, name="Example"))
        server.allowed_algorithms = [
            PublicKeyCredentialParameters(type=PublicKeyCredentialType.PUBLIC_KEY, alg=one)
            for one in ALGORITHMS
        ]
        return server

    def _state(self, expected: Expected) -> dict[str, Any]:
        return {"challenge": expected.challenge, "user_verification": UserVerificationRequirement.REQUIRED}


class SimpleWebAuthn:
    """@simplewebauthn/server, in a Node.js process of its own."""

    name = "SimpleWebAuthn"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def registration_options(self, challenge: str, *, rp_id: str, user: JSON) -> JSON:
        answer = await self._ask(
            "generateRegistrationOptions",
            rpName="Example",
            rpID=rp_id,
            userName=user["name"],
            userDisplayName=user["displayName"],
            userID={"$bytes": user["id"]},
            challenge={"$bytes": challenge},
            supportedAlgorithmIDs=list(ALGORITHMS),
            authenticatorSelection={"residentKey": "required", "userVerification": "required"},
        )
        return dict(answer["value"])

    async def authentication_options(self, challenge: str, *, rp_id: str, allowed: Sequence[str]) -> JSON:
        answer = await self._ask(
            "generateAuthenticationOptions",
            rpID=rp_id,
            challenge={"$bytes": challenge},
            userVerification="required",
            allowCredentials=[{"id": one} for one in allowed],
        )
        return dict(answer["value"])

    async def verify_registration(self, response: JSON, expected: Expected) -> str | None:
        return _refusal(
            await self._ask(
                "verifyRegistrationResponse",
                response=response,
                expectedChallenge=expected.challenge,
                expectedOrigin=list(expected.origins),
                expectedRPID=expected.rp_id,
                requireUserVerification=True,
                supportedAlgorithmIDs=list(ALGORITHMS),
            )
        )

    async def verify_authentication(self, response: JSON, expected: Expected, known: Known) -> str | None:
        return _refusal(
            await self._ask(
                "verifyAuthenticationResponse",
                response=response,
                expectedChallenge=expected.challenge,
                expectedOrigin=list(expected.origins),
                expectedRPID=expected.rp_id,
                credential={
                    "id": b64(known.credential_id),
                    "publicKey": {"$bytes": b64(known.cose_key)},
                    "counter": known.counter,
                },
                requireUserVerification=True,
            )
        )

    async def _ask(self, call: str, **options: Any) -> JSON:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": call, "options": options}).encode() + b"\n")
        return dict(json.loads(await self._process.stdout.readline()))


def _refusal(answer: JSON) -> str | None:
    if "error" in answer:
        return str(answer["error"])
    return None if answer["value"]["verified"] else "not verified"


def known_from(registration: JSON) -> Known:
    """What to remember of a registration response."""
    data = cast("JSON", cbor.decode(unb64(registration["response"]["attestationObject"])))["authData"]
    size = int.from_bytes(data[53:55], "big")
    _, rest = cbor.decode_from(data[55 + size :])
    end = len(data) - len(rest)
    return Known(
        credential_id=data[55 : 55 + size],
        cose_key=data[55 + size : end],
        counter=int.from_bytes(data[33:37], "big"),
    )
