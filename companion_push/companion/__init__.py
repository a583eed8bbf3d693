"""The companion app: it receives and checks requests, asks the user, and hands the FIDO URL to the phone."""
