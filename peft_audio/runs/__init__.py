"""Run folders and reports."""
