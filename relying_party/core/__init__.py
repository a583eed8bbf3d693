"""Ceremonies, challenges, credentials, sessions and proofs. Pure: time is passed in, and nothing is sent or stored."""
