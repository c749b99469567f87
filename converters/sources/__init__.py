"""Where models come from: one kind of source a file."""
