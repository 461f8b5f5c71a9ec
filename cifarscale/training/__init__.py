"""One engine, and the tasks that say only what is theirs."""
