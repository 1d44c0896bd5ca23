"""The `ssd` command line. Models and tensors are imported inside the commands, so that `ssd --help` is quick."""

from ssd_engine.cli.app import app, main

__all__ = ["app", "main"]
