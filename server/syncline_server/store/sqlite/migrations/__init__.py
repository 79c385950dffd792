"""The SQLite schema, step by step."""
