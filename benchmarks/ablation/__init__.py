"""What each setting of the cache does: the rows and the command."""
