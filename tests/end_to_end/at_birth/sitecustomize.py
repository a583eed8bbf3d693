"""Writes down every secret the moment it is made: for the log-leak test, which puts this folder on PYTHONPATH.

Python imports a module of this name by itself before a program begins. Each line of the file that
SECRETS_AT_BIRTH names is one secret: where it was made, and its bytes in hex.
"""

import importlib.abc
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import aead
from cryptography.hazmat.primitives.kdf import hkdf

_FILE = os.open(os.environ["SECRETS_AT_BIRTH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

_token_bytes, _generate, _hkdf, _aesgcm = (
    secrets.token_bytes,
    ec.generate_private_key,
    hkdf.HKDF,
    aead.AESGCM,
)


def born(what: str, value: bytes) -> None:
    os.write(_FILE, f"{what} {value.hex()}\n".encode())


def _caller() -> str:
    return str(sys._getframe(2).f_globals.get("__name__"))


def token_bytes(nbytes: int | None = None) -> bytes:
    value = _token_bytes(nbytes)
    born(f"random:{_caller()}", value)
    return value


def generate_private_key(curve: ec.EllipticCurve, backend: Any = None) -> ec.EllipticCurvePrivateKey:
    key = _generate(curve, backend)
    born(f"private-key:{_caller()}", key.private_numbers().private_value.to_bytes(32, "big"))
    return key


class HKDF:
    def __init__(self, *args: Any, **options: Any) -> None:
        self._kdf, self._for = _hkdf(*args, **options), _caller()

    def derive(self, material: bytes) -> bytes:
        value = self._kdf.derive(material)
        born(f"derived:{self._for}", value)
        return value


def make_aesgcm(key: bytes) -> aead.AESGCM:
    born(f"cipher-key:{_caller()}", key)
    return _aesgcm(key)


secrets.token_bytes = token_bytes
ec.generate_private_key = generate_private_key
hkdf.HKDF = HKDF  # type: ignore[assignment]
aead.AESGCM = make_aesgcm  # type: ignore[assignment]


def _watch_urls(module: ModuleType) -> None:
    encode: Callable[[Any], str] = module.FidoUrl.encode

    def watched(self: Any) -> str:
        text = encode(self)
        born("fido-url", text.encode())
        return text

    module.FidoUrl.encode = watched


def _watch_adverts(module: ModuleType) -> None:
    encode: Callable[[Any], bytes] = module.Eid.encode

    def watched(self: Any) -> bytes:
        plaintext = encode(self)
        born("eid", plaintext)
        return plaintext

    module.Eid.encode = watched


class _AfterImport(importlib.abc.MetaPathFinder):
    """Changes some modules right after they were imported."""

    changes = {  # noqa: RUF012  nobody changes it
        "headless_passkey.hybrid.fido_url": _watch_urls,
        "headless_passkey.hybrid.eid": _watch_adverts,
    }

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        change = self.changes.get(name)
        if change is None:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterImport())
