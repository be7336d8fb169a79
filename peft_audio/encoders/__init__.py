"""Pretrained encoders: families, loading, exact padding, SpecAugment."""
