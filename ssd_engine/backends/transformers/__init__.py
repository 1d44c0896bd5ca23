"""The embedded default: any pair of Hugging Face causal language models, in this process."""
