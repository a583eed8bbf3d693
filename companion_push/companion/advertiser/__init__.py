"""Radios that send the phone's advert: one interface, and a module for each radio."""
