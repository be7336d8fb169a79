"""Train a model, and save and resume a training."""
