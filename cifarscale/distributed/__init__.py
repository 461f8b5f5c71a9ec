"""The ranks of a job: how they meet, exchange and draw."""
