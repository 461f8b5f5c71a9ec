"""The command line: thin, and quick to start. Whatever is heavy is imported inside the commands."""
