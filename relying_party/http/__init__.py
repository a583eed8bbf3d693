"""The aiohttp application: requests in, JSON and pages out."""
