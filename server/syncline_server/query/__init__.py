"""Point reads."""
