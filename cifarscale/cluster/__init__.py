"""Where a job runs: in this process, or in several on this machine."""
