"""Files, downloads, and what outlives a process."""
