"""How forward passes are run; each backend feeds the same sample spaces, scheme control and verification."""
