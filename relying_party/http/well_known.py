"""The well-known documents, made from the settings that verification uses (docs/protocol/relying-party.md)."""

from typing import Any

from relying_party.config import Config


def related_origins(config: Config) -> dict[str, Any]:
    """``/.well-known/webauthn``: the origins that may use our RP ID (WebAuthn Level 3 §5.11)."""
    return {"origins": sorted(config.web_origins | config.device_origins)}


def passkey_endpoints(config: Config) -> dict[str, Any]:
    """``/.well-known/passkey-endpoints``: the URLs at which users create and manage passkeys."""
    return {"enroll": config.home + config.enroll, "manage": config.home + config.manage}


def device_endpoint(config: Config) -> dict[str, Any]:
    """``/.well-known/headless-passkey``: our base URL, for devices that know the origin only."""
    return {"relying_party": config.public_url}
