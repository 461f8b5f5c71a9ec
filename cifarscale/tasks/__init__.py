"""What is computed: a folder a task. Importing one of them loads no torch."""
