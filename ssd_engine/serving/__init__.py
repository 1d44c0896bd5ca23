"""Requests on their way: checked, put in line, decoded together, delivered."""
