"""CIFAR-100 to shards, shards to batches."""
