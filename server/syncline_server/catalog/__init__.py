"""Datasets, sources, keys and schemas."""
