"""Ceremonies, challenges, credentials, sessions, tokens and proofs. Time is passed in; nothing is sent, and storing is the caller's."""
