"""Text of others, read strictly and shown safely: names, domains, base64url, JSON. Pure."""
