"""Emulated Bluetooth controllers on one emulated radio link, for demonstrations and tests."""
