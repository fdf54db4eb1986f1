"""Planning from files on disk: which files, what their headers say, and what a live model would call it."""
