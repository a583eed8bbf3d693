"""Identity: whose account it is, where somebody else than the relay knows (docs/protocol/relay.md, Identity)."""
