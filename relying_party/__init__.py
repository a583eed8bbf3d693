"""A small, exact WebAuthn relying party on python-fido2: library, aiohttp application, program.

Nothing is imported here: every name has one address. What it says on the wire is written in
docs/protocol/relying-party.md. With the device and the push programs it shares that page, and no code of theirs.

====================================  ========================================================================
``relying_party.core.ceremonies``     begin and complete registration and authentication: every check, pure
``relying_party.core.callers``        a browser, or a client with a key: a device, an app
``relying_party.http.request``        a request's caller, session and body
``relying_party.http.answers``        answers in JSON: sessions, accounts, signals, problems
``relying_party.core.messages``       request bodies, parsed once and strictly
``relying_party.core.challenges``     challenge records: single use, and expiring
``relying_party.core.proofs``         proofs of possession of a key (RFC 9449), pure
``relying_party.core.sessions``       sessions and refresh tokens, stored as hashes
``relying_party.core.operations``     what a step-up is for: one operation, its target and its text
``relying_party.core.removals``       which removals are delayed, and who calls them off
``relying_party.core.access_tokens``  tokens that other services verify (RFC 9068)
``relying_party.resource``            such a service's guard: token and proof of each request
``relying_party.core.credentials``    users, passkeys, sessions: what is stored, and the store's interface
``relying_party.store.sqlite``        that store in one file
``relying_party.store.postgres``      that store in a database, for several machines
``relying_party.http.app``            the aiohttp application: ``make_app(config)``
``relying_party.http.account``        a user and their own account
``relying_party.http.well_known``     the well-known documents
``relying_party.http.metrics``        what is counted, in Prometheus' format
``relying_party.http.page``           the page that shows who is registered and who is signed in
``relying_party.config``              the operator's settings
``relying_party.errors``              the tree of errors
====================================  ========================================================================
"""
