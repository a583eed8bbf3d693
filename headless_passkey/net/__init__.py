"""Network clients: TLS, the tunnel's websocket, requests with proofs, proxies."""
