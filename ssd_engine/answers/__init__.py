"""Chosen tokens become text, tool calls and a result."""
