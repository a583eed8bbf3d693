"""Radios that receive BLE adverts: one interface, and a module for each radio."""
