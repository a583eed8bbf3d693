"""Everything that is neither device nor relying party: relay, tunnel service, companion, emulated radio."""
