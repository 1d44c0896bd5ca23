"""Long jobs that survive a kill: journals, progress, sets of prompts."""
