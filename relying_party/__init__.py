"""A small, exact WebAuthn relying party on python-fido2: library, aiohttp application, program."""
