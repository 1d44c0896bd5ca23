"""What a source of model files raises; `fetch` turns it into `ModelLoadError` when no source is left."""


class SourceError(Exception):
    """One source did not deliver; the message says why."""
