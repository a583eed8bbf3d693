"""Push: how the relay wakes a companion that sleeps. It carries no content (docs/protocol/relay.md, Push)."""
