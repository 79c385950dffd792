"""The embedded store: one SQLite file, one process, no set-up."""
