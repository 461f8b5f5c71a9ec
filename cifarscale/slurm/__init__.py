"""SLURM: its commands, profiles, plans, submission, and what runs in its tasks."""
