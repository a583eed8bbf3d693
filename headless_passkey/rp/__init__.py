"""The device's client of the relying party: ceremonies, and the sessions that they open."""
