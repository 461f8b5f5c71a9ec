"""Whether a cluster is fit, and the promise kept on it."""
