"""What is kept of runs, and how it survives."""
