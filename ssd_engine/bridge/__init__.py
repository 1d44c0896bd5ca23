"""Two vocabularies: the same text in either model's tokens, and the draft's distribution on the target's."""
