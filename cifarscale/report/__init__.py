"""Runs and sweeps as one page for people."""
