"""Measurements of a pair: how fast it is."""
