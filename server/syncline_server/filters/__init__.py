"""Filters and projections: which records a reader wants, and which of their fields."""
