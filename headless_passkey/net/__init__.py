"""What leaves over IP: TLS, the tunnel's websocket, requests with proofs, the way through a proxy."""
