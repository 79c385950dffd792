"""Exact copies: tokens, the ring of newest frames, subscription loops."""
