"""Named pairs: what they are (`presets`), and how their weights come to this machine (`fetch`, `convert`)."""
