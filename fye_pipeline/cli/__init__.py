"""The `fye` command: one file a command."""
