"""Decode audio files and resample them."""
