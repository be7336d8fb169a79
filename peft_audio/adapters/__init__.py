"""Adapter directories: save, load, verify."""
