"""Sign in with a passkey on a device that has no screen.

Nothing is imported here: every name has one address, and a server that needs one module of the core
does not load the radio.

======================================  ============================================================================
``headless_passkey.device``             all of it in one object: what most programs need (docs/how-to/device-sdk.md)
``headless_passkey.rp_ceremony``        what `Device` does: a ceremony at a relying party, with all options
``headless_passkey.rp.session``         a session in use: fetch, refresh, sign out
``headless_passkey.rp.session_store``   the sessions a device keeps, on disk
``headless_passkey.ceremony``           one ceremony: request options in, assertion out
``headless_passkey.rp.conduit``         the same against a relying party, session at the end
``headless_passkey.ctap_device``        a phone as python-fido2's CtapDevice
``headless_passkey.account.enrolment``  joining an account, and what the device keeps on disk
``headless_passkey.account.relay``      the push relay as the device sees it
``headless_passkey.radio``              where BLE adverts come from
``headless_passkey.net.tunnel``         the encrypted channel's websocket
``headless_passkey.webauthn.options``   options JSON and origin to CTAP, and back to response JSON
``headless_passkey.webauthn.origins``   which origin may use which RP ID: public suffixes, related origins
``headless_passkey.trust``              rings, invitations, envelopes: who may speak for an account
``headless_passkey.hybrid``             CTAP 2.2/2.3 hybrid transport, both roles, no I/O
``headless_passkey.errors``             everything that can go wrong, as one tree
======================================  ============================================================================
"""
