"""A small, exact WebAuthn relying party on python-fido2: library, aiohttp application, program.

Nothing is imported here: every name has one address. What it says on the wire is written in
docs/protocol/relying-party.md; with the device and the push programs it shares that page and no code.

====================================  ========================================================================
``relying_party.core.ceremonies``     begin and complete registration and authentication: every check, pure
``relying_party.core.callers``        a browser, or somebody with a key: a device, an app
``relying_party.http.request``        what a request says: who sends it, which session goes with it, its body
``relying_party.http.answers``        what we answer, as JSON: sessions, accounts, signals, problems
``relying_party.core.messages``       request bodies, parsed once and strictly
``relying_party.core.challenges``     what the server remembers between begin and complete: once, not for long
``relying_party.core.proofs``         which device key makes a request (RFC 9449), pure
``relying_party.core.sessions``       tokens, of which only the hash is kept
``relying_party.core.access_tokens``  tokens that other services verify (RFC 9068)
``relying_party.resource``            such a service's guard: token and proof of each request
``relying_party.core.credentials``    users, passkeys, sessions: what is stored, and the store's interface
``relying_party.store.sqlite``        that store in one file
``relying_party.http.app``            the aiohttp application: ``make_app(config)``
``relying_party.http.account``        a user and their own account
``relying_party.http.well_known``     who else uses our passkeys, and where they are managed
``relying_party.http.metrics``        what is counted
``relying_party.http.page``           the page that shows who is registered and who is signed in
``relying_party.config``              what an operator chooses
``relying_party.errors``              everything that can go wrong, as one tree
====================================  ========================================================================
"""
