"""Cache the output of the frozen layers."""
