"""Compare strategies under equal conditions."""
