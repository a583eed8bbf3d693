"""CTAP 2.2/2.3 hybrid transport (§11.5): both roles, no I/O, no clock.

======================  ==========================================  ==================
module                  what                                        section
======================  ==========================================  ==================
``fido_url``            the QR code's content                        11.5.1
``keys``                key derivation, P-256 points                11.5.1
``eid``                 the BLE advert and its suffix               11.5.1, 11.5.2
``data_channel``        the direct channel's messages               11.5.1.1
``tunnel_url``          tunnel domains, URLs, headers               11.5.1, 11.5.2
``noise``               KNpsk0 and NKpsk0                           11.5.1.2
``linking``             linking information, client payload         11.5.2
``messages``            padding, post-handshake message, framing    11.5.1.2
``ctap2``               getInfo, makeCredential, getAssertion       6
``channel``             the encrypted channel, from both ends       11.5.1.2
``client_platform``     the initiator: what the device does         11.5.1, 11.5.2
``authenticator``       the responder: what the phone does          11.5.1, 11.5.2
``cbor``                the one door for CBOR                       8
======================  ==========================================  ==================
"""
