"""Measurements of a pair: how fast and how safe it is."""
