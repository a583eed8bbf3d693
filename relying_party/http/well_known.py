"""The well-known documents, made from what verification uses (docs/protocol/relying-party.md)."""

from typing import Any

from relying_party.config import Config


def related_origins(config: Config) -> dict[str, Any]:
    """``/.well-known/webauthn``: every origin whose pages may use our RP ID (WebAuthn Level 3 §5.11)."""
    return {"origins": sorted(config.web_origins | config.device_origins)}


def passkey_endpoints(config: Config) -> dict[str, Any]:
    """``/.well-known/passkey-endpoints``: where people make passkeys and manage them."""
    return {"enroll": config.home + config.enroll, "manage": config.home + config.manage}


def device_endpoint(config: Config) -> dict[str, Any]:
    """``/.well-known/headless-passkey``: where devices that were told the origin alone find us."""
    return {"relying_party": config.public_url}
