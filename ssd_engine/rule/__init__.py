"""The algorithm: sample spaces, scheme control, verification, signals. It imports nothing but settings and errors."""
