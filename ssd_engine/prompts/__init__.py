"""A conversation becomes token ids, and text never becomes control tokens."""
