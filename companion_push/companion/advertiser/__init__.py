"""The phone's radio: one small interface, one module per way of advertising."""
