"""The relying party as the device sees it: one ceremony, and the session that it opens."""
