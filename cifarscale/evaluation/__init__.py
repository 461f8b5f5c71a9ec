"""Exact figures, the same for any number of ranks."""
