"""Freshness: who is heard from, and who is late."""
