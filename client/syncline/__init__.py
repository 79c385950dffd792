"""Syncline: push records, follow changes, hold exact copies."""
