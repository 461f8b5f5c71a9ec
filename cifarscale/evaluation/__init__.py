"""Exact metrics, the same for any number of ranks."""
