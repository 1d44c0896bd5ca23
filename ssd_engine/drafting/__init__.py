"""What is drafted in a round, and how much of it. No answer depends on it, only the time that an answer takes."""
