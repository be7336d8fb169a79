"""Predict labels and evaluate adapters."""
