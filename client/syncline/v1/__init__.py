"""Generated from proto/syncline/v1: see `make proto`. Not part of the public API."""
