"""Pictures, videos and sound, read and written."""
