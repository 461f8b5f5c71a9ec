"""Sweeps: search, trials, populations."""
