"""Names of servers are looked up in bounded time and in bounded threads: every outgoing call of all programs stands on it (docs/adr/0065).

- `resolver`: `Lookups`, and aiohttp's resolver over it

It knows nothing of who asks.
"""
