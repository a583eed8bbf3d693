"""WebAuthn as a client does it: options to a CTAP request, a reply to response JSON; origins and extensions. No I/O."""
