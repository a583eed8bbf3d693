"""How a server of HTTP is served: relay, tunnel service, relying party and the companion's page stand on it (docs/adr/0066).

- `listening`: sockets, and an application that is served on them until its end
- `tls`: their certificate
- `accepting`: who comes
- `connections`: deadlines and caps of connections
- `addresses`: whose they are, also behind proxies
- `runner`: aiohttp's server within these bounds; answers and log lines for what is not HTTP
- `first_request`: an upgrade that is answered without aiohttp's server
- `proofs`: of a caller's key, as far as servers verify them alike
- `rate_limit`: what a refusal by a limit tells in its headers
- `log_limit`: lines in a flood
- `metrics`: connections, event loop and process, for Prometheus (an extra of relay and tunnel service)
- `errors`: what it raises

It knows nothing of what is served: it answers and raises what the program has for that.
"""
