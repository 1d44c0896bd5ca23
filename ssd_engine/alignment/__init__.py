"""Makes a safety-aligned draft out of any small instruct model."""
