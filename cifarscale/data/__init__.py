"""Data sets to shards, shards to batches."""
