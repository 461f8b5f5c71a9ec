"""Starting a job in this process or in several; what a rank runs first, and leaves last."""
