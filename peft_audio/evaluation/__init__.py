"""Run a model on a split; compute scores and significance."""
