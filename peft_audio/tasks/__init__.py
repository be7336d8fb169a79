"""Tasks: targets, loss, probabilities, decisions and metrics."""
