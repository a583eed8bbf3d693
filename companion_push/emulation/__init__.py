"""Bluetooth controllers that are not there, on one emulated air: for demonstrations and tests."""
