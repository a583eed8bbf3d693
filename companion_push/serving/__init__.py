"""How relay and tunnel service are served: sockets, TLS, trusted proxies, HTTP, limits of the log."""
