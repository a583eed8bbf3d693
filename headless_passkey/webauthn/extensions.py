"""Client extensions of WebAuthn Level 3, as far as phones serve them over hybrid: credProps, prf, largeBlob (§10.1).

The client sends an extension's input as a CTAP extension input of the same name, and gets the result among the
unsigned extension outputs (CTAP 2.2 §6.1.2, §6.2.2: keys 6 and 8). This is Chromium's encoding of prf and
largeBlob for phones, which have neither PIN protocols nor large-blob commands; its sources are the reference:
device/fido/prf_input.cc, ctap_get_assertion_request.cc, ctap_make_credential_request.cc,
device_response_converter.cc. The client sends an extension only to a phone whose getInfo names it. Other extensions
are ignored.

    prf, create     {"eval": {"first": 32 bytes, "second": 32 bytes}}       {"enabled": bool, "results": …}
    prf, get        the same, "evalByCredential": {credential ID: {…}}      {"results": {"first": …, "second": …}}
    largeBlob, create   {"support": "required" or "preferred"}              {"supported": bool}
    largeBlob, get      {"read": true}                                      {"blob": deflated, "originalSize": n}
                        {"write": deflated, "originalSize": n}              {"written": bool}
"""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid.ctap2 import GetInfoResponse
from headless_passkey.text.base64url import from_base64url
from program_parts.base64url import base64url

MAX_BLOB_SIZE: Final = 64 * 1024  # bytes of a large blob, uncompressed
MAX_PRF_INPUT_SIZE: Final = 64 * 1024  # bytes before hashing

_PRF_CONTEXT: Final = b"WebAuthn PRF\x00"
_PRF_OUTPUT_SIZE: Final = 32
_RAW_DEFLATE: Final = -zlib.MAX_WBITS  # RFC 1951, the compression of large blobs (CTAP 2.2 §6.10.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationExtensions:
    """The extensions of a registration."""

    cred_props: bool = False
    prf: "Prf | None" = None
    large_blob: str | None = None  # "required" or "preferred"

    @classmethod
    def parse(cls, extensions: Mapping[str, Any]) -> Self:
        """Parse AuthenticationExtensionsClientInputsJSON; `RemoteProtocolError` where WebAuthn requires an error."""
        prf, large_blob = optional_object(extensions, "prf"), optional_object(extensions, "largeBlob")
        if prf is not None and prf.get("evalByCredential") is not None:
            raise RemoteProtocolError(
                "prf.evalByCredential is for assertions: there is no credential yet",
                reason=ProtocolReason.MALFORMED_OPTIONS,
            )
        if large_blob is not None and (_has(large_blob, "read") or _has(large_blob, "write")):
            raise RemoteProtocolError(
                "largeBlob.read and largeBlob.write are for assertions",
                reason=ProtocolReason.MALFORMED_OPTIONS,
            )
        support = None
        if large_blob is not None:
            support = "required" if large_blob.get("support") == "required" else "preferred"
        return cls(
            cred_props=extensions.get("credProps") is True, prf=Prf.parse(extensions, ()), large_blob=support
        )

    def ctap_inputs(self, phone: GetInfoResponse | None) -> dict[str, Any]:
        """Make the CTAP inputs for the extensions that this phone supports. phone: its getInfo; None takes it to support all."""
        inputs: dict[str, Any] = {}
        if self.prf is not None and _serves(phone, "prf"):
            inputs["prf"] = self.prf.ctap_input()
        if self.large_blob is not None and _serves(phone, "largeBlob"):
            inputs["largeBlob"] = {"support": self.large_blob}
        if self.large_blob == "required" and not inputs.get("largeBlob"):
            raise RemoteProtocolError(
                "the options require support for large blobs, which this phone lacks",
                reason=ProtocolReason.UNSUPPORTED_OPTIONS,
            )
        return inputs

    def results(self, outputs: Mapping[str, Any], *, resident_key: bool) -> dict[str, Any]:
        """Make the client extension results from the phone's outputs, for requested extensions only.

        outputs: the unsigned extension outputs. resident_key: whether the request was for a discoverable credential.
        """
        results: dict[str, Any] = {}
        if self.cred_props:
            results["credProps"] = {"rk": resident_key}
        if self.prf is not None:
            output = _output(outputs, "prf")
            enabled = _typed(output, "enabled", bool) or False
            results["prf"] = {"enabled": enabled, **(self.prf.results(output, None) if enabled else {})}
        if self.large_blob is not None:
            supported = _typed(_output(outputs, "largeBlob"), "supported", bool) or False
            if self.large_blob == "required" and not supported:
                raise RemoteProtocolError(
                    "the phone did not enable large blobs for the credential, although the options require it",
                    reason=ProtocolReason.EXTENSION_NOT_DONE,
                )
            results["largeBlob"] = {"supported": supported}
        return results


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationExtensions:
    """The extensions of an assertion."""

    prf: "Prf | None" = None
    read_large_blob: bool = False
    write_large_blob: bytes | None = field(repr=False, default=None)

    @classmethod
    def parse(cls, extensions: Mapping[str, Any], allow_list: tuple[bytes, ...]) -> Self:
        """Parse AuthenticationExtensionsClientInputsJSON; `RemoteProtocolError` where WebAuthn requires an error."""
        large_blob = optional_object(extensions, "largeBlob") or {}
        if large_blob.get("support"):
            raise RemoteProtocolError(
                "largeBlob.support is for registrations", reason=ProtocolReason.MALFORMED_OPTIONS
            )
        write = _bytes(large_blob, "write", MAX_BLOB_SIZE) if _has(large_blob, "write") else None
        if write is not None and (_has(large_blob, "read") or len(allow_list) != 1):
            raise RemoteProtocolError(
                "largeBlob.write takes exactly one allowed credential, and excludes largeBlob.read",
                reason=ProtocolReason.MALFORMED_OPTIONS,
            )
        return cls(
            prf=Prf.parse(extensions, allow_list),
            read_large_blob=large_blob.get("read") is True,
            write_large_blob=write,
        )

    def ctap_inputs(self, phone: GetInfoResponse | None) -> dict[str, Any]:
        """Make the CTAP inputs for the extensions that this phone supports. phone: its getInfo; None takes it to support all."""
        inputs: dict[str, Any] = {}
        if self.prf is not None and self.prf.asks and _serves(phone, "prf"):
            inputs["prf"] = self.prf.ctap_input()
        if self.read_large_blob and _serves(phone, "largeBlob"):
            inputs["largeBlob"] = {"read": True}
        if self.write_large_blob is not None and _serves(phone, "largeBlob"):
            inputs["largeBlob"] = {
                "write": _deflate(self.write_large_blob),
                "originalSize": len(self.write_large_blob),
            }
        return inputs

    def results(self, outputs: Mapping[str, Any], *, credential_id: bytes) -> dict[str, Any]:
        """Make the client extension results from the phone's outputs, for requested extensions only.

        outputs: the unsigned extension outputs. credential_id: the credential that signed.
        """
        results: dict[str, Any] = {}
        if self.prf is not None:
            results["prf"] = self.prf.results(_output(outputs, "prf"), credential_id)
        if self.read_large_blob:
            blob = _blob(_output(outputs, "largeBlob"))
            results["largeBlob"] = {} if blob is None else {"blob": base64url(blob)}
        if self.write_large_blob is not None:
            written = _typed(_output(outputs, "largeBlob"), "written", bool) or False
            results["largeBlob"] = {"written": written}
        return results


@dataclass(frozen=True, slots=True, kw_only=True)
class PrfSalts:
    """The salts for which the phone evaluates a credential's pseudo-random function: one, or two."""

    first: bytes = field(repr=False)  # 32 bytes
    second: bytes | None = field(repr=False, default=None)  # 32 bytes

    @classmethod
    def parse(cls, values: Any) -> Self:
        """Parse AuthenticationExtensionsPRFValuesJSON, and hash the inputs, so that no site chooses a salt (§10.1.4)."""
        if not isinstance(values, Mapping):
            raise RemoteProtocolError(
                "the inputs of prf are not an object", reason=ProtocolReason.MALFORMED_OPTIONS
            )
        return cls(
            first=_salt(_bytes(values, "first", MAX_PRF_INPUT_SIZE)),
            second=_salt(_bytes(values, "second", MAX_PRF_INPUT_SIZE)) if _has(values, "second") else None,
        )

    def ctap_values(self) -> dict[str, bytes]:
        return {"first": self.first} | ({} if self.second is None else {"second": self.second})


@dataclass(frozen=True, slots=True, kw_only=True)
class Prf:
    """The prf extension (§10.1.4): the phone evaluates a pseudo-random function of the credential."""

    eval: PrfSalts | None = None  # for any credential
    by_credential: Mapping[bytes, PrfSalts] = field(repr=False, default_factory=dict)  # by credential ID

    @classmethod
    def parse(cls, extensions: Mapping[str, Any], allow_list: tuple[bytes, ...]) -> Self | None:
        values = optional_object(extensions, "prf")
        if values is None:
            return None
        by_credential = {
            _octets(credential_id, "evalByCredential"): PrfSalts.parse(salts)
            for credential_id, salts in (optional_object(values, "evalByCredential") or {}).items()
        }
        if not by_credential.keys() <= set(allow_list):
            raise RemoteProtocolError(
                "prf.evalByCredential names a credential that is not in allowCredentials",
                reason=ProtocolReason.MALFORMED_OPTIONS,
            )
        return cls(
            eval=PrfSalts.parse(values["eval"]) if _has(values, "eval") else None,
            by_credential=by_credential,
        )

    @property
    def asks(self) -> bool:
        """Whether there is a salt to evaluate."""
        return self.eval is not None or bool(self.by_credential)

    def ctap_input(self) -> dict[str, Any]:
        inputs: dict[str, Any] = {} if self.eval is None else {"eval": self.eval.ctap_values()}
        if self.by_credential:
            inputs["evalByCredential"] = {
                credential_id: salts.ctap_values() for credential_id, salts in self.by_credential.items()
            }
        return inputs

    def results(self, output: Mapping[str, Any], credential_id: bytes | None) -> dict[str, Any]:
        """Parse the phone's prf output: ``{"results": …}`` for the salts of this credential, else empty."""
        salts = self.eval if credential_id is None else self.by_credential.get(credential_id, self.eval)
        values = _typed(output, "results", dict)
        if salts is None or not values:
            return {}
        asked = salts.ctap_values()
        came = {name: _typed(values, name, bytes) for name in asked}
        if not all(value is not None and len(value) == _PRF_OUTPUT_SIZE for value in came.values()):
            raise RemoteProtocolError(
                "the phone's prf results are not 32 bytes for each input",
                reason=ProtocolReason.MALFORMED_EXTENSION,
            )
        return {"results": {name: base64url(value) for name, value in came.items()}}


def _salt(value: bytes) -> bytes:
    return hashlib.sha256(_PRF_CONTEXT + value).digest()


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=_RAW_DEFLATE)
    return packer.compress(data) + packer.flush()


def _blob(output: Mapping[str, Any]) -> bytes | None:
    """Decompress the credential's large blob; None when the phone stores none."""
    packed, size = _typed(output, "blob", bytes), _typed(output, "originalSize", int)
    if not packed and not size:
        return None
    if packed is None or size is None or not 0 <= size <= MAX_BLOB_SIZE:
        raise RemoteProtocolError(
            "a large blob comes with its size, of at most 64 KiB", reason=ProtocolReason.MALFORMED_EXTENSION
        )
    unpacker = zlib.decompressobj(wbits=_RAW_DEFLATE)
    try:
        blob = unpacker.decompress(packed, size + 1)  # bounded: a decompression bomb ends here
    except zlib.error as error:
        raise RemoteProtocolError(
            "the phone's large blob is not deflated data", reason=ProtocolReason.MALFORMED_EXTENSION
        ) from error
    if len(blob) != size or not unpacker.eof or unpacker.unused_data:
        raise RemoteProtocolError(
            "the phone's large blob is not of the size it says", reason=ProtocolReason.MALFORMED_EXTENSION
        )
    return blob


def _serves(phone: GetInfoResponse | None, extension: str) -> bool:
    return phone is None or extension in phone.extensions


def _output(outputs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Take one extension's output, a map; empty when the phone sent none."""
    output: Mapping[str, Any] = _typed(outputs, name, dict) or {}
    return output


def _typed(values: Mapping[str, Any], name: str, kind: type) -> Any:
    value = values.get(name)
    if value is not None and type(value) is not kind:
        raise RemoteProtocolError(
            f"the phone's extension output {name} is no {kind.__name__}",
            reason=ProtocolReason.MALFORMED_EXTENSION,
        )
    return value


def optional_object(values: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Read a member that is an object; None where it is absent, null or empty text."""
    value = values.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, Mapping):
        raise RemoteProtocolError(
            f"the options' {name} is not an object", reason=ProtocolReason.MALFORMED_OPTIONS
        )
    return value


def _has(values: Mapping[str, Any], name: str) -> bool:
    return values.get(name) is not None


def _bytes(values: Mapping[str, Any], name: str, longest: int) -> bytes:
    data = _octets(values.get(name), name)
    if len(data) > longest:
        raise RemoteProtocolError(
            f"the options' {name} is longer than {longest} bytes", reason=ProtocolReason.MALFORMED_OPTIONS
        )
    return data


def _octets(text: Any, name: str) -> bytes:
    if not isinstance(text, str):
        raise RemoteProtocolError(
            f"the options' {name} is not base64url text", reason=ProtocolReason.MALFORMED_OPTIONS
        )
    return from_base64url(text)
