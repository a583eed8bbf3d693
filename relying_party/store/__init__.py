"""Stores for users, passkeys and sessions."""
