"""Save, load and verify adapters."""
