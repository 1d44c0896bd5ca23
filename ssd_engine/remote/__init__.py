"""A client of `ssd serve`. It needs no torch."""
