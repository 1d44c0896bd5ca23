"""Which tokens an answer may have."""
