"""Where users, passkeys and sessions are kept."""
