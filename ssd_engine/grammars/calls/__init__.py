"""How families' calls are written as grammars, one notation a module."""
