"""Strategies: which weights train."""
