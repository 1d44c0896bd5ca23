"""What happened while an answer was decoded, token by token and bin by bin."""
