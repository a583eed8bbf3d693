"""The companion app: receives, checks, asks, and hands the FIDO URL to the phone."""
