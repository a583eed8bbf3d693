"""The ceremonies and what they need, pure: time is passed in, and nothing is sent or stored."""
