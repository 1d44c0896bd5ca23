"""vLLM backend: the rule inside vLLM's speculative decoding with a draft model."""
