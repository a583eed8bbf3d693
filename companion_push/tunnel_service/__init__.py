"""The hybrid tunnel service: pairs two websockets and never looks inside."""
