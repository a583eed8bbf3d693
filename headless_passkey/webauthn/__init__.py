"""The WebAuthn client: options JSON to a CTAP request, its reply to response JSON; origins and extensions. No I/O."""
