"""How model families write tool calls, one notation a module."""
